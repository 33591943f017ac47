//! Holds a kernel's configuration against what the guest needs.

use crate::config::{KernelConfig, Setting};
use crate::nested_host::NESTED_HOST;
use crate::requirement::{FORBIDDEN, Forbidden, GUEST, Necessity, Presence, Requirement};
use serde::Serialize;
use std::fmt;

/// What a kernel lacks, and what it has too much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Required, and not there in a form the guest can use.
    pub missing: Vec<Requirement>,
    /// Built in, where no guest may have it.
    pub forbidden: Vec<Forbidden>,
    /// Optional, and not there.
    pub optional_missing: Vec<Requirement>,
}

impl Report {
    /// Whether the guest runs on such a kernel, safely.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.missing.is_empty() && self.forbidden.is_empty()
    }
}

/// Checks `config` against [`GUEST`] and [`FORBIDDEN`].
///
/// A forbidden option as a module passes: the module is kept out of the image
/// by rootfs-builder.
#[must_use]
pub fn check(config: &KernelConfig) -> Report {
    let mut report = hold_against(config, GUEST);
    report.forbidden = FORBIDDEN
        .iter()
        .filter(|forbidden| config.get(forbidden.option) == Some(&Setting::BuiltIn))
        .copied()
        .collect();
    report
}

/// Checks `config` against [`NESTED_HOST`]. Nothing is forbidden there.
#[must_use]
pub fn check_nested_host(config: &KernelConfig) -> Report {
    hold_against(config, NESTED_HOST)
}

fn hold_against(config: &KernelConfig, requirements: &[Requirement]) -> Report {
    let mut report = Report::default();
    for requirement in requirements.iter().filter(|&each| !satisfies(config, each)) {
        match requirement.necessity {
            Necessity::Required => report.missing.push(*requirement),
            Necessity::Preferred | Necessity::Optional => {
                report.optional_missing.push(*requirement);
            }
            Necessity::Dependency => {}
        }
    }
    report
}

fn satisfies(config: &KernelConfig, requirement: &Requirement) -> bool {
    match (config.get(requirement.option), requirement.presence) {
        (Some(Setting::BuiltIn), _) => true,
        (Some(Setting::Module), Presence::BuiltInOrModules(_)) => true,
        (Some(Setting::Module | Setting::Value(_)) | None, _) => false,
    }
}

/// One line a finding; nothing when there is none.
impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for missing in &self.missing {
            let form = match missing.presence {
                Presence::BuiltIn => "built in",
                Presence::BuiltInOrModules(_) => "built in or as a module",
            };
            let (option, why) = (missing.option, missing.why);
            writeln!(to, "missing CONFIG_{option} ({form}): {why}")?;
        }
        for Forbidden { option, why, .. } in &self.forbidden {
            writeln!(to, "forbidden CONFIG_{option} (built in): {why}")?;
        }
        for Requirement { option, why, .. } in &self.optional_missing {
            writeln!(to, "optional CONFIG_{option} is not there: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requirement::modules_in_load_order;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A configuration in which every requirement is met, as module where it
    /// may be one.
    fn modular(without: &str, extra: &str) -> KernelConfig {
        let lines: String = GUEST
            .iter()
            .filter(|requirement| requirement.option != without)
            .map(|requirement| match requirement.presence {
                Presence::BuiltIn => format!("CONFIG_{}=y\n", requirement.option),
                Presence::BuiltInOrModules(_) => format!("CONFIG_{}=m\n", requirement.option),
            })
            .collect();
        (lines + extra).parse().unwrap()
    }

    #[test]
    fn a_kernel_with_everything_passes_without_a_word() {
        let report = check(&modular("", "CONFIG_VSOCKETS_LOOPBACK=m\n"));
        assert!(report.passes());
        assert_eq!(report.to_string(), "");
    }

    #[test]
    fn each_missing_requirement_is_named_with_its_reason() {
        for requirement in GUEST {
            let report = check(&modular(requirement.option, ""));
            let required = requirement.necessity == Necessity::Required;
            assert_eq!(report.passes(), !required, "{}", requirement.option);
            if required {
                assert_eq!(report.missing, [*requirement]);
                assert!(report.to_string().contains(requirement.why));
            }
        }
    }

    #[test]
    fn a_module_does_not_do_where_built_in_is_asked() {
        let report = check(&modular("DEVTMPFS", "CONFIG_DEVTMPFS=m\n"));
        assert_eq!(report.missing.len(), 1);
        assert_eq!(report.missing[0].option, "DEVTMPFS");
    }

    #[test]
    fn loopback_and_vhost_built_in_are_refused() {
        for forbidden in FORBIDDEN {
            let report = check(&modular("", &format!("CONFIG_{}=y\n", forbidden.option)));
            assert_eq!(report.forbidden, [*forbidden]);
            assert!(!report.passes());
        }
    }

    #[test]
    fn the_list_names_no_option_and_no_module_twice_and_no_forbidden_one() {
        let options: BTreeSet<_> = GUEST.iter().map(|requirement| requirement.option).collect();
        assert_eq!(options.len(), GUEST.len());
        let modules: Vec<_> = modules_in_load_order(None).collect();
        let distinct: BTreeSet<_> = modules.iter().collect();
        assert_eq!(distinct.len(), modules.len());
        for forbidden in FORBIDDEN {
            assert!(!options.contains(forbidden.option));
            assert!(!modules.contains(&forbidden.module));
        }
    }

    #[test]
    fn a_built_in_driver_is_not_loaded() {
        let config = modular("EROFS_FS", "CONFIG_EROFS_FS=y\n");
        let modules: Vec<_> = modules_in_load_order(Some(&config)).collect();
        assert!(!modules.contains(&"erofs"));
        assert!(modules.contains(&"overlay"));
        assert!(!modules.contains(&"virtiofs"), "optional, so not by itself");
    }

    #[test]
    fn what_is_preferred_is_loaded_where_a_kernel_is_known_to_have_it() {
        let loaded = |config: Option<&KernelConfig>| {
            let mut modules = modules_in_load_order(config);
            modules.any(|module| module == "vmgenid")
        };
        assert!(loaded(Some(&modular("", "CONFIG_X=y\n"))));
        assert!(!loaded(Some(&modular("VMGENID", "CONFIG_VMGENID=y\n"))));
        let without = modular("VMGENID", "CONFIG_X=y\n");
        assert!(!loaded(Some(&without)) && check(&without).passes());
        assert!(!loaded(None));
    }

    proptest! {
        #[test]
        fn a_kernel_passes_exactly_if_all_that_is_required_is_there(
            present in prop::collection::vec(any::<bool>(), GUEST.len())
        ) {
            let lines: String = GUEST.iter().zip(&present)
                .filter(|(_, present)| **present)
                .map(|(requirement, _)| format!("CONFIG_{}=y\n", requirement.option))
                .collect();
            let report = check(&(lines + "CONFIG_X=y\n").parse().unwrap());
            let missing = GUEST.iter().zip(&present)
                .filter(|(requirement, present)| {
                    requirement.necessity == Necessity::Required && !**present
                })
                .count();
            prop_assert_eq!(report.missing.len(), missing);
            prop_assert_eq!(report.passes(), missing == 0);
        }
    }
}
