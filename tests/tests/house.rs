//! The rules of the house, held against the source: ceilings, the allowed
//! arrows of ARCHITECTURE.md, and where unsafe code may live. Function length,
//! SAFETY comments and missing documentation are clippy's and rustc's part.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const CODE_LINES_CEILING: usize = 600;

/// Package -> the packages of ours it may depend on.
const PACKAGE_ARROWS: [(&str, &str, &[&str]); 13] = [
    ("protocols", "protocols", &[]),
    ("policy", "policy", &[]),
    (
        "guest-agent",
        "guest-agent",
        // `rpc` and `service` are told apart below. guest-kernel: for PID 1.
        &[
            "authz",
            "guest-kernel",
            "guest-runtime",
            "policy",
            "protocols",
        ],
    ),
    ("authz", "guest-agent/authz", &["policy", "protocols"]),
    ("guest-runtime", "guest-agent/runtime", &["guest-kernel"]),
    ("guest-kernel", "guest-agent/kernel", &[]),
    (
        "host-ctl",
        "host-ctl",
        // kernel-config: for `doctor --guest`.
        &[
            "agent-client",
            "hypervisor",
            "kernel-config",
            "policy",
            "protocols",
        ],
    ),
    ("hypervisor", "host-ctl/hypervisor", &[]),
    ("agent-client", "host-ctl/agent-client", &["protocols"]),
    (
        "rootfs-builder",
        "rootfs-builder",
        &["kernel-config", "policy"],
    ),
    ("kernel-config", "kernel-config", &[]),
    ("uniqueness-probe", "tests/probe", &[]),
    (
        "nested-host-lab",
        "tests/lab",
        &["kernel-config", "rootfs-builder"],
    ),
];

/// Module of a package -> what of the package itself it may name.
const MODULE_ARROWS: [(&str, &str, &[&str]); 15] = [
    ("guest-agent/src", "rpc", &["rpc", "service"]),
    ("guest-agent/src", "service", &["service"]),
    ("guest-agent/src", "boot", &["boot", "rpc", "service"]),
    ("guest-agent/runtime/src", "cgroup", &["cgroup"]),
    ("guest-agent/runtime/src", "storage", &["storage"]),
    ("guest-agent/runtime/src", "network", &["network"]),
    ("guest-agent/runtime/src", "memory", &["memory"]),
    ("host-ctl/src", "config", &["config"]),
    ("host-ctl/src", "timeline", &["timeline"]),
    ("host-ctl/src", "host", &["host", "config", "timeline"]),
    (
        "host-ctl/src",
        "store",
        &["store", "host", "config", "timeline"],
    ),
    (
        "host-ctl/src",
        "sandbox",
        &["sandbox", "store", "host", "config", "timeline"],
    ),
    // A template is a sandbox that is booted, warmed and kept: the boot recipe
    // is the sandbox's.
    (
        "host-ctl/src",
        "template",
        &["template", "sandbox", "store", "host", "config", "timeline"],
    ),
    // A clone is planned from a template; the supervisor carries it out.
    (
        "host-ctl/src",
        "supervisor",
        &[
            "supervisor",
            "template",
            "sandbox",
            "store",
            "host",
            "config",
            "timeline",
        ],
    ),
    (
        "host-ctl/src",
        "cli",
        &[
            "cli",
            "supervisor",
            "template",
            "sandbox",
            "store",
            "host",
            "config",
            "timeline",
        ],
    ),
];

/// Crates that a module may not name, with the reason.
const FORBIDDEN: [(&str, &str, &str); 6] = [
    (
        "guest-agent/src/service",
        "protobuf",
        "protobuf types end in rpc",
    ),
    (
        "guest-agent/src/service",
        "protocols::wire",
        "protobuf types end in rpc",
    ),
    (
        "guest-agent/src/service",
        "guest_kernel",
        "only the runtime calls the kernel",
    ),
    (
        "guest-agent/src/service",
        "authz::Gate",
        "below the gate the seal is only read",
    ),
    (
        "host-ctl/src",
        "protocols::wire",
        "protobuf types end in agent-client",
    ),
    (
        "host-ctl/src",
        "protobuf",
        "protobuf types end in agent-client",
    ),
];

/// The only places with unsafe code.
const UNSAFE_HOMES: [&str; 2] = [
    "guest-agent/kernel/src/",
    "host-ctl/hypervisor/src/process/",
];

const FORBIDDEN_NAMES: [&str; 5] = ["utils", "common", "helpers", "misc", "manager"];

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests lies in the project").into()
}

/// Every Rust file of the project, path relative to its root, and its text.
fn sources() -> BTreeMap<String, String> {
    let root = root();
    let mut found = BTreeMap::new();
    let mut pending = vec![root.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    pending.push(path);
                }
            } else if name.ends_with(".rs") {
                let relative = path.strip_prefix(&root).unwrap();
                let text = fs::read_to_string(&path).unwrap();
                found.insert(relative.to_string_lossy().into_owned(), text);
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

fn code_lines(text: &str) -> usize {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

/// The text without comments, so that a word in prose is no arrow.
fn code(text: &str) -> String {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn assert_none(what: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{what}:\n  {}", offences.join("\n  "));
}

#[test]
fn no_file_is_longer_than_its_ceiling() {
    let offences: Vec<String> = sources()
        .iter()
        .map(|(path, text)| (path, code_lines(text)))
        .filter(|(_, lines)| *lines > CODE_LINES_CEILING)
        .map(|(path, lines)| format!("{path}: {lines} lines of code"))
        .collect();
    assert_none("files over the ceiling", &offences);
}

#[test]
fn every_file_says_what_it_is_for() {
    let offences: Vec<String> = sources()
        .iter()
        .filter(|(path, text)| !path.contains("/tests/fail/") && !text.starts_with("//!"))
        .map(|(path, _)| path.clone())
        .collect();
    assert_none("files without a leading //!", &offences);
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    let offences: Vec<String> = sources()
        .into_keys()
        .filter(|path| {
            path.split(['/', '.'])
                .any(|part| FORBIDDEN_NAMES.contains(&part))
        })
        .collect();
    assert_none("files named for nothing in particular", &offences);
}

#[test]
fn unsafe_code_has_an_address() {
    let offences: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| !UNSAFE_HOMES.iter().any(|home| path.starts_with(home)))
        .filter(|(path, _)| *path != "tests/tests/house.rs")
        .filter(|(_, text)| {
            let code = code(text);
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        })
        .map(|(path, _)| path.clone())
        .collect();
    assert_none("unsafe code outside its homes", &offences);
}

#[test]
fn packages_depend_only_along_the_arrows() {
    let ours: BTreeSet<&str> = PACKAGE_ARROWS.iter().map(|(name, ..)| *name).collect();
    let mut offences = Vec::new();
    for (name, directory, allowed) in PACKAGE_ARROWS {
        let manifest = fs::read_to_string(root().join(directory).join("Cargo.toml")).unwrap();
        let dependencies = manifest
            .split("\n[")
            .find(|section| section.starts_with("dependencies]"))
            .unwrap_or_default();
        for line in dependencies.lines().skip(1) {
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if ours.contains(dependency) && !allowed.contains(&dependency) {
                offences.push(format!("{name} -> {dependency}"));
            }
        }
    }
    assert_none("arrows between packages that are not allowed", &offences);
}

#[test]
fn modules_import_only_along_the_arrows() {
    let mut offences = Vec::new();
    for (path, text) in sources() {
        for (source, module, allowed) in MODULE_ARROWS {
            let home = format!("{source}/{module}");
            let inside = path.starts_with(&format!("{home}/")) || path == format!("{home}.rs");
            if !inside {
                continue;
            }
            let code = code(&text);
            for (at, _) in code.match_indices("crate::") {
                let rest = &code[at + "crate::".len()..];
                let target: String = rest
                    .chars()
                    .take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
                    .collect();
                let is_module = MODULE_ARROWS
                    .iter()
                    .any(|(other, module, _)| *other == source && *module == target);
                if is_module && !allowed.contains(&target.as_str()) {
                    offences.push(format!("{path} -> crate::{target}"));
                }
            }
        }
    }
    assert_none("arrows between modules that are not allowed", &offences);
}

#[test]
fn no_module_names_a_crate_that_ends_above_it() {
    let mut offences = Vec::new();
    for (path, text) in sources() {
        for (place, word, reason) in FORBIDDEN {
            if path.starts_with(&format!("{place}/")) && code(&text).contains(&format!("{word}::"))
            {
                offences.push(format!("{path} names {word}: {reason}"));
            }
        }
    }
    assert_none("crates named where they do not belong", &offences);
}

/// The page names tests as `PATH::NAME`, and further ones of the same file as
/// `::NAME`.
#[test]
fn every_test_that_the_page_of_field_failures_names_is_there() {
    const SHORT: [(&str, &str); 3] = [
        ("wire/", "tests/wire/"),
        ("container/", "runtime/tests/container/"),
        ("convert/", "src/rpc/convert/"),
    ];
    let page = fs::read_to_string(root().join("docs/field-failures.md")).unwrap();
    let sources = sources();
    let source = |path: &str| {
        let long = SHORT.iter().find_map(|(short, long)| {
            let rest = path.strip_prefix(short)?;
            Some(format!("{long}{rest}"))
        });
        let path = long.unwrap_or_else(|| path.to_owned());
        let inside = sources.get(&format!("guest-agent/{path}"));
        inside.or_else(|| sources.get(&path)).cloned()
    };
    let (mut named, mut offences, mut file) = (0, Vec::new(), "");
    for word in page.split('`').skip(1).step_by(2) {
        let Some((path, name)) = word.split_once("::") else {
            continue;
        };
        if !path.is_empty() {
            file = path;
        }
        named += 1;
        let found = source(file).is_some_and(|text| text.contains(&format!("fn {name}(")));
        if !found {
            offences.push(format!("{file}::{name}"));
        }
    }
    assert!(named > 50, "the page was not read");
    assert_none("tests that are not there", &offences);
}
