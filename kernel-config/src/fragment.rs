//! Fragments of a kernel configuration: what our own kernel is asked to have,
//! one option a line, with the reason.
//!
//! ```text
//! CONFIG_EROFS_FS=y    # container images are read-only EROFS disks
//! ```
//!
//! The files lie in kernel-config/fragments and are part of the program.

use std::collections::BTreeMap;
use std::fmt;

/// A machine a kernel can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Architecture {
    /// x86-64.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64")]
    Aarch64,
}

/// What all kernels have, beside the machine's.
const COMMON: [(&str, &str); 10] = [
    ("base", include_str!("../fragments/base.config")),
    ("virtio", include_str!("../fragments/virtio.config")),
    ("vsock", include_str!("../fragments/vsock.config")),
    (
        "file-systems",
        include_str!("../fragments/file-systems.config"),
    ),
    ("verity", include_str!("../fragments/verity.config")),
    ("containers", include_str!("../fragments/containers.config")),
    ("network", include_str!("../fragments/network.config")),
    ("clone", include_str!("../fragments/clone.config")),
    ("hotplug", include_str!("../fragments/hotplug.config")),
    ("hardening", include_str!("../fragments/hardening.config")),
];
const X86_64: (&str, &str) = ("x86_64", include_str!("../fragments/x86_64.config"));
const AARCH64: (&str, &str) = ("aarch64", include_str!("../fragments/aarch64.config"));
const WAIVERS: &str = include_str!("../waivers");

impl Architecture {
    /// What its kernel is put together from: names and texts.
    pub fn fragments(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let machine = match self {
            Self::X86_64 => X86_64,
            Self::Aarch64 => AARCH64,
        };
        COMMON.into_iter().chain([machine])
    }
}

/// An option that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The Kconfig name without `CONFIG_`.
    pub option: String,
    /// `y`, `n`, a number, or a string with its quotes.
    pub value: String,
    /// What for.
    pub why: String,
    /// The fragment that asks.
    pub fragment: String,
}

/// Why fragments cannot be put together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// A line that is none.
    #[error("fragment {fragment}, line {number}: not CONFIG_NAME=value # why")]
    Line {
        /// The fragment.
        fragment: String,
        /// Counted from 1.
        number: usize,
    },
    /// An option that is asked for with two values.
    #[error("CONFIG_{option} is redefined: {first} in {in_first}, {second} in {in_second}")]
    Redefined {
        /// Without `CONFIG_`.
        option: String,
        /// One value.
        first: String,
        /// Where.
        in_first: String,
        /// The other.
        second: String,
        /// Where.
        in_second: String,
    },
    /// An option that is asked for twice with one value.
    #[error("CONFIG_{option} is redundant: {in_first} and {in_second} both ask for it")]
    Redundant {
        /// Without `CONFIG_`.
        option: String,
        /// One fragment.
        in_first: String,
        /// The other.
        in_second: String,
    },
    /// A fragment that is none of this machine's.
    #[error("there is no fragment {0}")]
    Unknown(String),
    /// A waiver that is none.
    #[error("waivers, line {0}: not an option and a reason")]
    Waiver(usize),
}

/// All that a kernel is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composition(BTreeMap<String, Asked>);

impl Composition {
    /// Our own kernel's.
    ///
    /// # Errors
    /// See [`FragmentError`]; the tests see to it that there is none.
    pub fn of(architecture: Architecture) -> Result<Self, FragmentError> {
        Self::from_fragments(architecture.fragments())
    }

    /// The same without one of the fragments, to see what that one costs.
    ///
    /// # Errors
    /// [`FragmentError::Unknown`] if there is none of that name.
    pub fn without(architecture: Architecture, left_out: &str) -> Result<Self, FragmentError> {
        if !architecture.fragments().any(|(name, _)| name == left_out) {
            return Err(FragmentError::Unknown(left_out.into()));
        }
        Self::from_fragments(
            architecture
                .fragments()
                .filter(|(name, _)| *name != left_out),
        )
    }

    /// Of fragments by name and text.
    ///
    /// # Errors
    /// See [`FragmentError`].
    pub fn from_fragments<'a>(
        fragments: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, FragmentError> {
        let mut options: BTreeMap<String, Asked> = BTreeMap::new();
        for (fragment, text) in fragments {
            for (number, line) in (1..).zip(text.lines()) {
                if line.trim().is_empty() || line.starts_with('#') {
                    continue;
                }
                let asked = parse(fragment, line).ok_or_else(|| FragmentError::Line {
                    fragment: fragment.into(),
                    number,
                })?;
                if let Some(first) = options.get(&asked.option) {
                    return Err(clash(first, &asked));
                }
                options.insert(asked.option.clone(), asked);
            }
        }
        Ok(Self(options))
    }

    /// Every option, sorted by name.
    pub fn asked(&self) -> impl Iterator<Item = &Asked> {
        self.0.values()
    }

    /// What is asked of an option, named without `CONFIG_`.
    #[must_use]
    pub fn get(&self, option: &str) -> Option<&Asked> {
        self.0.get(option)
    }
}

/// What the kernel's build takes: no reasons, and its own way of saying no.
impl fmt::Display for Composition {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Asked { option, value, .. } in self.asked() {
            match value.as_str() {
                "n" => writeln!(to, "# CONFIG_{option} is not set")?,
                value => writeln!(to, "CONFIG_{option}={value}")?,
            }
        }
        Ok(())
    }
}

fn parse(fragment: &str, line: &str) -> Option<Asked> {
    let (setting, why) = line.split_once(" # ")?;
    let (option, value) = setting
        .trim_end()
        .strip_prefix("CONFIG_")?
        .split_once('=')?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_value = value == "y"
        || value == "n"
        || value.parse::<u64>().is_ok()
        || (value.len() >= 2 && value.starts_with('"') && value.ends_with('"'));
    let right =
        !option.is_empty() && option.bytes().all(is_name) && is_value && !why.trim().is_empty();
    right.then(|| Asked {
        option: option.into(),
        value: value.into(),
        why: why.trim().into(),
        fragment: fragment.into(),
    })
}

fn clash(first: &Asked, second: &Asked) -> FragmentError {
    let option = first.option.clone();
    let (in_first, in_second) = (first.fragment.clone(), second.fragment.clone());
    if first.value == second.value {
        FragmentError::Redundant {
            option,
            in_first,
            in_second,
        }
    } else {
        FragmentError::Redefined {
            option,
            first: first.value.clone(),
            in_first,
            second: second.value.clone(),
            in_second,
        }
    }
}

/// Options that may be settled otherwise than they are asked for, each with the
/// reason.
pub type Waivers = BTreeMap<String, String>;

/// Our own.
///
/// # Errors
/// [`FragmentError::Waiver`]; the tests see to it that there is none.
pub fn waivers() -> Result<Waivers, FragmentError> {
    parse_waivers(WAIVERS)
}

fn parse_waivers(text: &str) -> Result<Waivers, FragmentError> {
    let lines = (1..).zip(text.lines());
    lines
        .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            let (option, reason) = line.split_once(' ').ok_or(FragmentError::Waiver(number))?;
            let reason = reason.trim();
            if reason.is_empty() {
                return Err(FragmentError::Waiver(number));
            }
            Ok((option.to_owned(), reason.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requirement::{FORBIDDEN, GUEST, Necessity};

    /// What the kernel's build sets by itself, because something that is asked
    /// for selects it.
    const SELECTED: [&str; 6] = [
        "VIRTIO",
        "VIRTIO_PCI_LIB",
        "VIRTIO_VSOCKETS_COMMON",
        "FAILOVER",
        "NET_FAILOVER",
        "CRYPTO_CRC32C",
    ];

    fn compose(fragments: &[(&'static str, &'static str)]) -> Result<Composition, FragmentError> {
        Composition::from_fragments(fragments.iter().copied())
    }

    #[test]
    fn each_machine_is_asked_for_all_that_a_guest_requires_and_nothing_forbidden() {
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            let composition = Composition::of(architecture).unwrap();
            for requirement in GUEST {
                let option = requirement.option;
                if requirement.necessity != Necessity::Required || SELECTED.contains(&option) {
                    continue;
                }
                let asked = composition.get(option).map(|asked| asked.value.as_str());
                assert_eq!(asked, Some("y"), "{architecture:?}: {option}");
            }
            for forbidden in FORBIDDEN {
                let asked = composition.get(forbidden.option);
                assert!(asked.is_none_or(|asked| asked.value == "n"), "{asked:?}");
            }
            assert_eq!(composition.get("MODULES").unwrap().value, "n");
        }
    }

    #[test]
    fn our_waivers_are_of_options_that_are_asked_for() {
        let x86_64 = Composition::of(Architecture::X86_64).unwrap();
        let aarch64 = Composition::of(Architecture::Aarch64).unwrap();
        for option in waivers().unwrap().keys() {
            let asked = x86_64.get(option).or(aarch64.get(option));
            assert!(asked.is_some(), "{option}");
        }
    }

    #[test]
    fn a_line_without_a_reason_is_refused() {
        for text in [
            "CONFIG_A=y",
            "CONFIG_A=y #",
            "CONFIG_A=y #  ",
            "CONFIG_A=m # a module",
            "A=y # why",
            "CONFIG_A # why",
            "CONFIG_=y # why",
        ] {
            let error = Composition::from_fragments([("x", text)]).unwrap_err();
            assert!(
                matches!(error, FragmentError::Line { number: 1, .. }),
                "{text}"
            );
        }
    }

    #[test]
    fn an_option_is_asked_for_once() {
        let again = compose(&[("a", "CONFIG_A=y # 1"), ("b", "CONFIG_A=y # 2")]);
        let text = again.unwrap_err().to_string();
        assert_eq!(text, "CONFIG_A is redundant: a and b both ask for it");
        let other = compose(&[("a", "CONFIG_A=y # 1"), ("b", "CONFIG_A=n # 2")]);
        let text = other.unwrap_err().to_string();
        assert_eq!(text, "CONFIG_A is redefined: y in a, n in b");
    }

    #[test]
    fn a_fragment_that_is_left_out_asks_for_nothing_and_the_others_for_all() {
        let whole = Composition::of(Architecture::X86_64).unwrap();
        for (name, _) in Architecture::X86_64.fragments() {
            let rest = Composition::without(Architecture::X86_64, name).unwrap();
            for asked in whole.asked() {
                assert_eq!(rest.get(&asked.option).is_none(), asked.fragment == name);
            }
        }
        let unknown = Composition::without(Architecture::X86_64, "aarch64").unwrap_err();
        assert_eq!(unknown.to_string(), "there is no fragment aarch64");
    }

    #[test]
    fn the_build_gets_settings_without_reasons() {
        let text = "# about\n\nCONFIG_B=n # no\nCONFIG_A=\"x y\" # why # so\nCONFIG_C=12 # why\n";
        let composition = Composition::from_fragments([("x", text)]).unwrap();
        let expected = "CONFIG_A=\"x y\"\n# CONFIG_B is not set\nCONFIG_C=12\n";
        assert_eq!(composition.to_string(), expected);
        assert_eq!(composition.get("A").unwrap().why, "why # so");
    }

    #[test]
    fn a_waiver_has_a_reason() {
        assert_eq!(parse_waivers("# x\nA because\n").unwrap()["A"], "because");
        assert_eq!(parse_waivers("A\n"), Err(FragmentError::Waiver(1)));
        assert_eq!(parse_waivers("\nA  \n"), Err(FragmentError::Waiver(2)));
    }
}
