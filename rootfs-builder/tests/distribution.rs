//! The distribution's kernel, as kernel-config/fetch-distro-kernel.sh leaves
//! it, against the list of what the guest needs.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails, also in what it calls"
)]

use kernel_config::{KernelConfig, check, modules_in_load_order};
use rootfs_builder::modules::ModuleDirectory;
use std::path::PathBuf;

/// Where kernel, configuration and modules lie.
fn kernel() -> Option<PathBuf> {
    let kernel = std::env::var_os("TARDIGRADE_TEST_KERNEL").map(PathBuf::from);
    let directory = kernel.as_deref().and_then(|kernel| kernel.parent());
    match directory {
        Some(directory) if directory.join("modules").is_dir() => Some(directory.into()),
        _ => {
            eprintln!("skipped: TARDIGRADE_TEST_KERNEL names no kernel with modules beside it");
            None
        }
    }
}

fn config(directory: &std::path::Path) -> KernelConfig {
    let text = std::fs::read_to_string(directory.join("config")).unwrap();
    text.parse().unwrap()
}

#[test]
fn the_kernel_has_what_the_guest_needs() {
    let Some(directory) = kernel() else { return };
    let report = check(&config(&directory));
    assert!(report.passes(), "{report}");
}

#[test]
fn the_list_is_exactly_what_its_modules_ask_for_in_their_order() {
    let Some(directory) = kernel() else { return };
    let config = config(&directory);
    let listed: Vec<_> = modules_in_load_order(Some(&config)).collect();
    let modules = ModuleDirectory::scan(&directory.join("modules")).unwrap();
    let resolved = modules.resolve(listed.iter().copied()).unwrap();
    let resolved: Vec<_> = resolved.iter().map(|module| module.name.as_str()).collect();
    assert_eq!(resolved, listed);
}
