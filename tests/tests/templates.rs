//! Damaged templates are found, told, and never cloned; two builds of one
//! template make one.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use serde_json::Value;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tardigrade_tests::{Home, images, sandbox};

const COMMAND: [&str; 2] = ["sleep", "100000"];
/// A byte of the guest's kernel, which lies in low memory.
const SOMEWHERE: u64 = (16 << 20) + 17;

/// Builds the template `shell` and gives the directory it lies in.
fn template(home: &Home) -> PathBuf {
    let built = home.build_template("shell", &images::busybox(), &COMMAND);
    assert_eq!(built["existing"], false, "{built}");
    let digest = built["digest"].as_str().unwrap();
    home.path().join("store/templates").join(digest)
}

/// Flips one byte; size, mode and the times that can be set stay.
fn flip(path: &Path, offset: u64) {
    let before = fs::metadata(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
    let times = FileTimes::new()
        .set_accessed(before.accessed().unwrap())
        .set_modified(before.modified().unwrap());
    file.set_times(times).unwrap();
    fs::set_permissions(path, before.permissions()).unwrap();
}

fn cut(path: &Path, size: u64) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    let file: File = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(size).unwrap();
}

/// What `verify` has against the template.
fn refusal(home: &Home) -> String {
    let output = home.run(["--output", "json", "template", "verify", "shell"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let verified: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verified["whole"], false);
    verified["refusal"].as_str().unwrap().to_owned()
}

/// Clones, which must be a cold boot that works, and gives the reason told.
fn booted_because(home: &Home) -> String {
    let outcome = home.json(["clone", "shell"]);
    let clone = &outcome["clones"][0];
    assert_eq!(clone["booted"], true, "{clone}");
    let id = sandbox(clone);
    assert_eq!(home.text(["exec", id, "--", "echo", "works"]), "works\n");
    home.text(["rm", id]);
    clone["fallback"].as_str().unwrap().to_owned()
}

#[test]
fn one_flipped_byte_of_memory_is_found_and_never_cloned() {
    let home = Home::new();
    let memory = template(&home).join("memory");
    flip(&memory, SOMEWHERE);
    for reason in [refusal(&home), booted_because(&home)] {
        assert!(reason.contains("memory"), "{reason}");
        assert!(reason.contains("sha256"), "{reason}");
    }
    // The same bytes again are the same template, whatever their times.
    flip(&memory, SOMEWHERE);
    home.text(["template", "verify", "shell"]);
    home.clone_template("shell", 1);
}

#[test]
fn a_template_with_a_cut_or_missing_file_is_booted_cold_and_built_anew() {
    let home = Home::new();
    let directory = template(&home);
    let (state, away) = (directory.join("state"), home.path().join("away"));
    fs::rename(&state, &away).unwrap();
    for reason in [refusal(&home), booted_because(&home)] {
        assert!(reason.contains("state"), "{reason}");
        assert!(reason.contains("missing"), "{reason}");
    }
    fs::rename(&away, &state).unwrap();
    home.clone_template("shell", 1);

    cut(&directory.join("memory"), 64 << 20);
    for reason in [refusal(&home), booted_because(&home)] {
        assert!(reason.contains("memory"), "{reason}");
        assert!(reason.contains("size"), "{reason}");
    }
    assert_eq!(template(&home), directory);
    home.text(["template", "verify", "shell"]);
    home.clone_template("shell", 1);
}

#[test]
fn half_a_template_is_not_listed_and_half_a_manifest_not_believed() {
    let home = Home::new();
    let directory = template(&home);
    // As a killed build leaves it: some files, no manifest, a random name.
    let staged = home.path().join("store/staging").join("0f".repeat(16));
    fs::create_dir(&staged).unwrap();
    fs::copy(directory.join("state"), staged.join("state")).unwrap();
    fs::write(staged.join("memory"), "half").unwrap();
    let listed = home.json(["template", "list"]);
    assert_eq!(listed["templates"].as_array().unwrap().len(), 1);
    home.text(["gc"]);
    assert!(!staged.exists());

    let manifest = directory.join("manifest.json");
    let size = fs::metadata(&manifest).unwrap().len();
    cut(&manifest, size / 2);
    let reason = refusal(&home);
    assert!(reason.contains("manifest.json"), "{reason}");
    let listed = home.json(["template", "list"]);
    let reason = &listed["templates"][0]["refusal"];
    assert!(
        reason.as_str().unwrap().contains("manifest.json"),
        "{reason}"
    );
    // What is to be booted stands in the manifest: nothing can be made of it.
    let output = home.run(["clone", "shell"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("manifest.json"), "{output:?}");
    assert_eq!(home.json(["list"])["sandboxes"], Value::Array(Vec::new()));
    assert_eq!(template(&home), directory);
    home.clone_template("shell", 1);
}

#[test]
fn two_builds_of_one_template_at_once_make_one() {
    let home = Home::new();
    let rootfs = images::busybox();
    let rootfs = rootfs.to_str().unwrap();
    let start = |name| {
        home.command(["--output", "json", "template", "build", name])
            .args(["--rootfs", rootfs, "--memory", "128", "--"])
            .args(COMMAND)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let builds = [start("one"), start("other")];
    let mut built: Vec<Value> = Vec::new();
    for build in builds {
        let output = build.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        built.push(serde_json::from_slice(&output.stdout).unwrap());
    }
    assert_eq!(built[0]["digest"], built[1]["digest"]);
    let reused = built.iter().filter(|built| built["existing"] == true);
    assert_eq!(reused.count(), 1);
    let listed = home.json(["template", "list"]);
    let listed = listed["templates"].as_array().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["names"], serde_json::json!(["one", "other"]));
    home.clone_template("other", 1);
}

#[test]
fn a_cold_boot_in_a_clones_place_is_warmed_like_the_template() {
    let home = Home::new();
    let rootfs = images::busybox();
    let mut arguments = vec!["template", "build", "warm", "--memory", "128", "--rootfs"];
    arguments.push(rootfs.to_str().unwrap());
    arguments.extend([
        "--ready",
        "true",
        "--warm",
        "sh -c 'echo warmed > /tmp/warm'",
    ]);
    arguments.extend(["--", "sleep", "100000"]);
    let built = home.json(arguments);
    let digest = built["digest"].as_str().unwrap();
    let state = home
        .path()
        .join("store/templates")
        .join(digest)
        .join("state");
    fs::remove_file(state).unwrap();

    let clones = home.json(["clone", "warm"]);
    let clone = &clones["clones"][0];
    assert_eq!(clone["booted"], true, "{clone}");
    assert!(clone["fallback"].is_string(), "{clone}");
    let text = home.text(["exec", sandbox(clone), "--", "cat", "/tmp/warm"]);
    assert_eq!(text, "warmed\n");
}
