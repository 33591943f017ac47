//! Ready policies, from `policy/rego/`: to be given by name, or copied and
//! edited. Each says something to every rule there is.

/// A policy that comes with the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyPolicy {
    /// The name it is given by: its file's, without `.rego`.
    pub name: &'static str,
    /// Its source.
    pub source: &'static str,
}

macro_rules! ready {
    ($($(#[$doc:meta])* $constant:ident = $name:literal;)*) => {
        $(
            $(#[$doc])*
            pub const $constant: ReadyPolicy = ReadyPolicy {
                name: $name,
                source: include_str!(concat!("../rego/", $name, ".rego")),
            };
        )*

        /// All ready policies.
        pub const ALL: &[ReadyPolicy] = &[$($constant),*];
    };
}

ready! {
    /// Allows every request.
    ALLOW_ALL = "allow-all";
    /// Allows all but running a command, wherever it would run.
    DENY_EXEC = "deny-exec";
    /// Allows all but running a command outside every container.
    DENY_GUEST_EXEC = "deny-guest-exec";
    /// Denies every request; only Health is answered, which is never asked about.
    DENY_ALL_BUT_HEALTH = "deny-all-but-health";
}

/// The ready policy of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<ReadyPolicy> {
    ALL.iter().copied().find(|policy| policy.name == name)
}
