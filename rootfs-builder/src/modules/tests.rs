//! Load order and refusals, on modules made for the purpose.

use super::*;
use crate::sample::{self, lay_out};
use proptest::prelude::*;

fn resolve(directory: &Path, wanted: &[&str]) -> Result<Vec<String>, ModuleError> {
    let modules = ModuleDirectory::scan(directory)?.resolve(wanted.iter().copied())?;
    Ok(modules.into_iter().map(|module| module.name).collect())
}

#[test]
fn dependencies_come_first_and_once() {
    let directory = tempfile::tempdir().unwrap();
    lay_out(
        directory.path(),
        &[
            ("net_card", &["bus", "failover"]),
            ("failover", &["core"]),
            ("bus", &["core"]),
            ("core", &[]),
            ("unwanted", &[]),
        ],
    );
    let order = resolve(directory.path(), &["bus", "net-card", "bus"]).unwrap();
    assert_eq!(order, ["core", "bus", "failover", "net_card"]);
}

#[test]
fn what_is_built_in_is_left_out() {
    let directory = tempfile::tempdir().unwrap();
    lay_out(directory.path(), &[("a", &["built_in"])]);
    std::fs::write(
        directory.path().join("modules.builtin"),
        "kernel/lib/built-in.ko\n",
    )
    .unwrap();
    assert_eq!(
        resolve(directory.path(), &["a", "built_in"]).unwrap(),
        ["a"]
    );
}

#[test]
fn a_missing_module_is_named_with_who_wants_it() {
    let directory = tempfile::tempdir().unwrap();
    lay_out(directory.path(), &[("a", &["b"])]);
    let error = resolve(directory.path(), &["a"]).unwrap_err().to_string();
    assert!(error.starts_with("find module b (for a)"), "{error}");
    let error = resolve(directory.path(), &["c"]).unwrap_err().to_string();
    assert!(
        error.starts_with("find module c (for the guest)"),
        "{error}"
    );
}

#[test]
fn modules_that_wait_for_each_other_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    lay_out(directory.path(), &[("a", &["b"]), ("b", &["a"])]);
    let error = resolve(directory.path(), &["a"]).unwrap_err();
    assert!(matches!(error, ModuleError::Circle(_)), "{error}");
}

#[test]
fn a_forbidden_module_is_refused_even_as_a_dependency() {
    for forbidden in kernel_config::requirement::FORBIDDEN {
        let directory = tempfile::tempdir().unwrap();
        lay_out(
            directory.path(),
            &[("innocent", &[forbidden.module]), (forbidden.module, &[])],
        );
        for wanted in ["innocent", forbidden.module] {
            let error = resolve(directory.path(), &[wanted]).unwrap_err();
            assert!(matches!(error, ModuleError::Forbidden(_)), "{error}");
        }
    }
}

#[test]
fn a_compressed_module_is_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("virtio-rng.ko.xz"), "").unwrap();
    let error = resolve(directory.path(), &["virtio_rng"]).unwrap_err();
    assert!(error.to_string().contains("it is compressed"), "{error}");
}

#[test]
fn modules_of_two_kernels_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    lay_out(directory.path(), &[("a", &[])]);
    let other = sample::module_saying(&["name=b".into(), "vermagic=5.10.0 SMP".into()]);
    std::fs::write(directory.path().join("b.ko"), other).unwrap();
    let error = resolve(directory.path(), &["a", "b"]).unwrap_err();
    assert!(matches!(error, ModuleError::Release { .. }), "{error}");
}

#[test]
fn two_files_of_one_name_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    lay_out(directory.path(), &[("a_b", &[])]);
    std::fs::write(directory.path().join("a_b.ko"), "").unwrap();
    let error = resolve(directory.path(), &["a_b"]).unwrap_err();
    assert!(matches!(error, ModuleError::Ambiguous { .. }), "{error}");
}

#[test]
fn a_module_under_a_false_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let loopback = sample::module("vsock_loopback", &[]);
    std::fs::write(directory.path().join("vsock.ko"), loopback).unwrap();
    let error = resolve(directory.path(), &["vsock"]).unwrap_err();
    assert!(matches!(error, ModuleError::Name { .. }), "{error}");
}

#[test]
fn links_are_not_followed_and_junk_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/", directory.path().join("build")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", directory.path().join("a.ko")).unwrap();
    std::fs::write(directory.path().join("b.ko"), "not an ELF file").unwrap();
    let missing = resolve(directory.path(), &["a"]).unwrap_err();
    assert!(matches!(missing, ModuleError::Missing { .. }), "{missing}");
    let junk = resolve(directory.path(), &["b"]).unwrap_err();
    assert!(matches!(junk, ModuleError::Elf { .. }), "{junk}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn each_module_is_loaded_once_and_after_what_it_needs(
        edges in prop::collection::vec((0usize..12, 0usize..12), 0..40)
    ) {
        let directory = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..12).map(|number| format!("m{number}")).collect();
        // Only ever towards smaller numbers: no circles.
        let needs = |from: usize| -> Vec<&str> {
            edges.iter()
                .filter(|(a, b)| *a == from && b < a)
                .map(|(_, b)| names[*b].as_str())
                .collect()
        };
        for (number, name) in names.iter().enumerate() {
            lay_out(directory.path(), &[(name, &needs(number))]);
        }
        let wanted: Vec<_> = names.iter().rev().map(String::as_str).collect();
        let order = resolve(directory.path(), &wanted).unwrap();
        prop_assert_eq!(order.len(), names.len());
        let place = |name: &str| order.iter().position(|each| each == name);
        for (number, name) in names.iter().enumerate() {
            for need in needs(number) {
                prop_assert!(place(need) < place(name));
            }
        }
    }

    #[test]
    fn garbage_is_no_module_and_never_panics(mut bytes: Vec<u8>, damage: prop::sample::Index) {
        let _ = crate::elf::module_info(&bytes);
        let _ = crate::elf::static_program(&bytes);
        let mut module = sample::module("a", &["b"]);
        let at = damage.index(module.len());
        module[at] = bytes.pop().unwrap_or(0xff);
        let _ = crate::elf::module_info(&module);
        let _ = crate::elf::static_program(&module);
    }
}
