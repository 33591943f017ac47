//! What the nested host is told to do: shell text, since busybox's shell reads
//! it there.

use crate::error::LabError;
use std::fmt::Write;

/// The variables the command has in common with the lab: where programs and
/// the project's pieces are, how they print, and which VMMs to use.
const PASSED_ON: [&str; 38] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TERM",
    "NO_COLOR",
    "SHELL",
    "CARGO_HOME",
    "CARGO_TARGET_DIR",
    "CARGO_TERM_COLOR",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "RUST_MIN_STACK",
    "NEXTEST_PROFILE",
    "NEXTEST_HIDE_PROGRESS_BAR",
    "PROPTEST_CASES",
    "PROPTEST_SEED",
    "SOURCE_DATE_EPOCH",
    "TARDIGRADE_KERNEL",
    "TARDIGRADE_INITRD",
    "TARDIGRADE_TEST_KERNEL",
    "TARDIGRADE_TEST_VMLINUX",
    "TARDIGRADE_HOME",
    "ROOTFS_BUILDER",
    "GUEST_AGENT",
    "HOST_CTL",
    "UNIQUENESS_PROBE",
    "CLOUD_HYPERVISOR",
    "FIRECRACKER",
    "QEMU",
    "VIRTIOFSD",
    "REQUIRE_ALL",
    "DEMO_IMAGE",
    "RESTORE_FLOOR",
];
/// Says to every program that it runs in the nested host. There is no network,
/// which cargo is told before it tries.
const SET: [(&str, &str); 2] = [("TARDIGRADE_LAB", "1"), ("CARGO_NET_OFFLINE", "true")];

/// Where the lab's user is not root, the directories of the machine's root show
/// up as nobody's, who may rename what is in them. The nested host's are its
/// root's, those on the way to the working directory too.
const OWN_THE_WAY: &str = r#"way=$PWD
while [ "$way" != / ]; do
    [ "$(stat -c %u "$way")" = 65534 ] && chown 0:0 "$way"
    way=$(dirname "$way")
done
"#;

/// `text` as one word of a shell command.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A script that runs `command` in `directory` with the passed-on environment,
/// to which `extra` adds, and nothing else of the shell's.
///
/// # Errors
/// When one of `extra` is no variable.
pub(crate) fn command(
    command: &[String],
    directory: &str,
    extra: &[String],
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<String, LabError> {
    let mut text = format!("cd {} || exit 126\n{OWN_THE_WAY}", quote(directory));
    // By its path: busybox's shell would take its own env, and that its own
    // programs before those on PATH.
    text.push_str("exec /usr/bin/env -i");
    let mut set = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = write!(text, " {}", quote(&format!("{name}={value}")));
    };
    for name in PASSED_ON {
        if let Some(value) = lookup(name) {
            set(name, &value);
        }
    }
    for (name, value) in SET {
        set(name, value);
    }
    for word in extra {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), lookup(word)),
        };
        if !is_variable(name) {
            return Err(LabError::Variable(word.clone()));
        }
        if let Some(value) = value {
            set(name, &value);
        }
    }
    for word in command {
        text.push(' ');
        text.push_str(&quote(word));
    }
    text.push('\n');
    Ok(text)
}

/// What differs from run to run, for the nested host's PID 1: where the modules
/// lie, which to load, and what is shared (`tag`, path).
pub(crate) fn configuration(modules: &str, load: &[&str], shares: &[(String, String)]) -> String {
    let mut text = format!(
        "modules={}\nload={}\n",
        quote(modules),
        quote(&load.join(" "))
    );
    text.push_str("mount_shares() {\n    :\n");
    for (tag, path) in shares {
        let _ = writeln!(
            text,
            "    mount_share {} {} || return 1",
            quote(tag),
            quote(path)
        );
    }
    text.push_str("}\n");
    text
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(ToString::to_string).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_shell_reads_back_what_was_quoted(
            arguments in proptest::collection::vec("[^\0]{0,12}", 1..4),
            value in "[^\0]{0,12}",
        ) {
            let mut program = words(&["sh", "-c", "printf '%s\\0' \"$V\" \"$@\"", "sh"]);
            program.extend(arguments.clone());
            let script = command(&program, "/", &[format!("V={value}")], |name| {
                (name == "PATH").then(|| std::env::var("PATH").ok()).flatten()
            }).unwrap();
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            let mut expected = format!("{value}\0");
            for argument in &arguments {
                expected.push_str(argument);
                expected.push('\0');
            }
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        }
    }

    #[test]
    fn only_what_is_listed_or_asked_for_is_passed_on() {
        let have = |name: &str| {
            ["HOME", "SECRET", "WANTED"]
                .contains(&name)
                .then(|| format!("value of {name}"))
        };
        let script = command(&words(&["true"]), "/", &words(&["WANTED", "ABSENT"]), have).unwrap();
        assert!(script.contains("'HOME=value of HOME'"), "{script}");
        assert!(script.contains("'WANTED=value of WANTED'"), "{script}");
        assert!(script.contains("'TARDIGRADE_LAB=1'"), "{script}");
        assert!(!script.contains("SECRET"), "{script}");
        assert!(!script.contains("ABSENT"), "{script}");
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        for word in ["", "=x", "1A=x", "A B=x", "-i"] {
            let refused = command(&words(&["true"]), "/", &words(&[word]), |_| None);
            assert!(matches!(refused, Err(LabError::Variable(_))), "{word:?}");
        }
    }

    #[test]
    fn a_configuration_is_shell_text() {
        let shares = [("share0".into(), "/a 'b".into())];
        let script = configuration("/m", &["tun", "loop"], &shares)
            + "mount_share() { printf '%s=%s\\n' \"$1\" \"$2\"; }\nmount_shares; echo $load";
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text, "share0=/a 'b\ntun loop\n");
    }
}
