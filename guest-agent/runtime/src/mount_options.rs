//! Mount options as mount(8) spells them, sorted into what the kernel takes
//! them as.

use guest_kernel::mount::{
    ATIME_FIELD, Attributes, NO_ATIME, NO_DEV, NO_DIR_ATIME, NO_EXEC, NO_SUID, NO_SYM_FOLLOW,
    READ_ONLY, STRICT_ATIME,
};
use rustix::mount::MountPropagationFlags;

/// What a mount binds, if it is a bind mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bind {
    /// One mount.
    Single,
    /// A mount and all below it.
    Recursive,
}

/// How mounts below it are passed on (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Propagation {
    pub(crate) flag: MountPropagationFlags,
    pub(crate) recursive: bool,
}

/// Options, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    pub(crate) attributes: Attributes,
    /// For the mounts below it too.
    pub(crate) recursive: Attributes,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) bind: Option<Bind>,
    /// For the file system: its own words, and those of every one.
    pub(crate) data: Vec<(String, Option<String>)>,
    /// Whether device nodes were asked for by name.
    pub(crate) devices: bool,
    /// Whether its owners are mapped, and those of the mounts below it.
    pub(crate) id_map: Option<Bind>,
    /// Whether it begins with what it covers.
    pub(crate) copy_up: bool,
}

/// An option that is not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mount option {0}")]
pub(crate) struct UnsupportedOption(pub(crate) String);

/// Options that mean something this code does not do.
const REFUSED: [&str; 4] = ["loop", "remount", "move", "mand"];

impl MountOptions {
    /// Sorts `options`; a later one overrides an earlier one.
    ///
    /// # Errors
    /// The first option that means something this code does not do.
    pub(crate) fn parse(options: &[String]) -> Result<Self, UnsupportedOption> {
        let mut sorted = Self::default();
        // One string may hold several, as on mount's command line.
        for option in options.iter().flat_map(|option| option.split(',')) {
            sorted.add(option)?;
        }
        Ok(sorted)
    }

    /// As [`MountOptions::parse`], for a mount of the guest's own.
    ///
    /// # Errors
    /// Also what only a container's mounts can be.
    pub(crate) fn parse_of_guest(options: &[String]) -> Result<Self, UnsupportedOption> {
        let sorted = Self::parse(options)?;
        if sorted.id_map.is_some() {
            return Err(UnsupportedOption("idmap".into()));
        }
        if sorted.copy_up {
            return Err(UnsupportedOption("tmpcopyup".into()));
        }
        Ok(sorted)
    }

    /// Adds attributes that no option can take away.
    pub(crate) fn force(&mut self, bits: u64) {
        self.attributes.set |= bits;
        self.attributes.clear &= !bits;
        self.recursive.clear &= !bits;
    }

    fn add(&mut self, option: &str) -> Result<(), UnsupportedOption> {
        if REFUSED.contains(&option) {
            return Err(UnsupportedOption(option.into()));
        }
        let recursive = option.strip_prefix('r');
        let found = attribute(option).map(|bits| (&mut self.attributes, option, bits));
        let found = match (found, recursive) {
            (None, Some(word)) => attribute(word).map(|bits| (&mut self.recursive, word, bits)),
            (found, _) => found,
        };
        if let Some((attributes, word, (set, clear))) = found {
            attributes.set = (attributes.set & !clear) | set;
            attributes.clear = (attributes.clear & !set) | clear;
            self.devices = match word {
                "dev" => true,
                "nodev" => false,
                _ => self.devices,
            };
            return Ok(());
        }
        if let Some((flag, recursive)) = propagation(option) {
            self.propagation = Some(Propagation { flag, recursive });
            return Ok(());
        }
        match option {
            "bind" => self.bind = self.bind.or(Some(Bind::Single)),
            "rbind" => self.bind = Some(Bind::Recursive),
            "idmap" => self.id_map = self.id_map.or(Some(Bind::Single)),
            "tmpcopyup" => self.copy_up = true,
            "ridmap" => self.id_map = Some(Bind::Recursive),
            // What is so anyway.
            "" | "defaults" | "async" | "auto" | "noauto" | "nofail" => {}
            option => {
                let (key, value) = match option.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (option, None),
                };
                self.data.push((key.into(), value));
            }
        }
        Ok(())
    }
}

/// The attribute bits a word sets and clears.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (READ_ONLY, 0),
        "rw" => (0, READ_ONLY),
        "nosuid" => (NO_SUID, 0),
        "suid" => (0, NO_SUID),
        "nodev" => (NO_DEV, 0),
        "dev" => (0, NO_DEV),
        "noexec" => (NO_EXEC, 0),
        "exec" => (0, NO_EXEC),
        "noatime" => (NO_ATIME, ATIME_FIELD),
        "strictatime" => (STRICT_ATIME, ATIME_FIELD),
        // The kernel's default has no bit.
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, ATIME_FIELD),
        "nodiratime" => (NO_DIR_ATIME, 0),
        "diratime" => (0, NO_DIR_ATIME),
        "nosymfollow" => (NO_SYM_FOLLOW, 0),
        "symfollow" => (0, NO_SYM_FOLLOW),
        _ => return None,
    })
}

/// The propagation a word means, as OCI's `rootfsPropagation` has it too.
pub(crate) fn propagation_of(word: &str) -> Option<Propagation> {
    propagation(word).map(|(flag, recursive)| Propagation { flag, recursive })
}

fn propagation(option: &str) -> Option<(MountPropagationFlags, bool)> {
    let (word, recursive) = match option.strip_prefix('r') {
        Some(word) => (word, true),
        None => (option, false),
    };
    let flag = match word {
        "private" => MountPropagationFlags::PRIVATE,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "shared" => MountPropagationFlags::SHARED,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some((flag, recursive))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(options: &[&str]) -> MountOptions {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        MountOptions::parse(&options).unwrap()
    }

    #[test]
    fn words_are_sorted_and_the_rest_is_for_the_file_system() {
        let options = parse(&["nosuid,noexec", "mode=755", "size=64k", "newinstance", "rw"]);
        assert_eq!(options.attributes.set, NO_SUID | NO_EXEC);
        assert_eq!(options.attributes.clear, READ_ONLY);
        assert_eq!(
            options.data,
            [
                ("mode".into(), Some("755".into())),
                ("size".into(), Some("64k".into())),
                ("newinstance".into(), None)
            ]
        );
    }

    #[test]
    fn the_later_of_two_opposites_counts() {
        assert_eq!(parse(&["ro", "rw"]).attributes.set, 0);
        assert_eq!(parse(&["rw", "ro"]).attributes.set, READ_ONLY);
        assert_eq!(
            parse(&["noatime", "strictatime"]).attributes.set,
            STRICT_ATIME
        );
        assert_eq!(parse(&["rbind", "bind"]).bind, Some(Bind::Recursive));
    }

    #[test]
    fn a_word_with_an_r_is_for_the_mounts_below_too() {
        let options = parse(&["rro", "rnosuid", "ro", "noexec", "relatime"]);
        assert_eq!(options.recursive.set, READ_ONLY | NO_SUID);
        assert_eq!(options.attributes.set, READ_ONLY | NO_EXEC);
        assert_eq!(parse(&["rro", "rrw"]).recursive.set, 0);
        assert_eq!(parse(&["rrelatime"]).recursive.clear, ATIME_FIELD);
        // Of file systems, that begin with the letter too.
        assert_eq!(parse(&["rsize=4096"]).recursive, Attributes::default());
        let mut forced = parse(&["rdev"]);
        assert!(forced.devices);
        forced.force(NO_DEV);
        assert_eq!(forced.recursive.clear & NO_DEV, 0);
    }

    #[test]
    fn what_only_a_container_has_is_refused_for_the_guest() {
        for option in ["idmap", "ridmap", "tmpcopyup"] {
            let options = [option.to_owned()];
            assert!(MountOptions::parse(&options).is_ok());
            assert!(MountOptions::parse_of_guest(&options).is_err(), "{option}");
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for option in REFUSED {
            let error = MountOptions::parse(&["ro".into(), option.into()]).unwrap_err();
            assert_eq!(error, UnsupportedOption(option.into()));
        }
    }

    #[test]
    fn a_forced_attribute_is_not_taken_away() {
        let mut options = parse(&["dev", "rw"]);
        options.force(NO_DEV);
        assert_eq!(options.attributes.set, NO_DEV);
        assert_eq!(options.attributes.clear, READ_ONLY);
    }

    proptest! {
        #[test]
        fn no_bit_is_both_set_and_cleared_but_of_the_field_of_several(
            words in prop::collection::vec(
                prop::sample::select(vec!["ro", "rw", "dev", "nodev", "suid", "nosuid"]), 0..8)
        ) {
            let options = parse(&words);
            prop_assert_eq!(options.attributes.set & options.attributes.clear, 0);
        }
    }
}
