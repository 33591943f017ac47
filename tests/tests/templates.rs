//! Damaged templates, and those of other machines, are found, told, and never
//! cloned; two builds of one template make one.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use host_ctl::config::Paths;
use host_ctl::store::{Claim, Draft, Requirements, Sha256, Store};
use host_ctl::timeline::Timeline;
use serde_json::Value;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tardigrade_tests::{Home, built, images, processes, sandbox};

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

/// Publishes the template `shell` once more, by the store's own hand, with other
/// requirements or another memory.
fn publish_again(home: &Home, requirements: fn(&mut Requirements), memory: fn(&Path)) {
    let store = Store::open(&Paths::below(home.path()).unwrap()).unwrap();
    let template = store.find("shell").unwrap();
    let manifest = template.manifest().clone();
    let mut wanted = manifest.requirements.clone();
    requirements(&mut wanted);
    let staging = store.stage().unwrap();
    for file in &manifest.files {
        let from = template.directory().join(&file.name);
        fs::copy(from, staging.path().join(&file.name)).unwrap();
    }
    let copy = staging.memory();
    fs::set_permissions(&copy, Permissions::from_mode(0o600)).unwrap();
    memory(&copy);
    let blobs = manifest.blobs.iter();
    let blobs: Vec<_> = blobs
        .map(|blob| store.blob(&blob.sha256).unwrap().unwrap())
        .collect();
    store.remove(template.digest()).unwrap();
    let lock = match store.claim(&wanted, Duration::ZERO).unwrap() {
        Claim::Build(lock) => Some(lock),
        Claim::Existing(_) => None,
    };
    let lock = lock.unwrap();
    let mut quiesce_id = [0; 16];
    for (index, byte) in quiesce_id.iter_mut().enumerate() {
        let digits = &manifest.quiesce_id[2 * index..][..2];
        *byte = u8::from_str_radix(digits, 16).unwrap();
    }
    let draft = Draft {
        imported: None,
        agent_version: manifest.agent_version,
        quiesce_id,
        blobs: &blobs,
        memory_opened_for_writing: true,
    };
    let published = store.publish(staging, &lock, &draft, &Timeline::new());
    let published = published.unwrap();
    let name = "shell".parse().unwrap();
    store.set_name(&name, published.template.digest()).unwrap();
}

#[test]
fn a_template_of_another_cpu_is_booted_cold_and_says_so() {
    let home = Home::new();
    template(&home);
    publish_again(&home, |_| {}, |_| {});
    home.clone_template("shell", 1);
    let other = |wanted: &mut Requirements| wanted.vmm.cpu = Some(Sha256::of(b"other flags"));
    publish_again(&home, other, |_| {});
    let reason = booted_because(&home);
    assert!(reason.contains("vmm.cpu differs"), "{reason}");
    let counted = &home.json(["template", "inspect", "shell"])["cold_boots"];
    assert_eq!(counted["count"], 1, "{counted}");
}

#[test]
fn what_a_template_was_made_of_is_not_booted_when_it_was_changed() {
    let home = Home::new();
    let directory = template(&home);
    let manifest = home.json(["template", "inspect", "shell"]);
    let machine = &manifest["requirements"]["machine"];
    let images = [
        ("machine.kernel", &machine["kernel"]),
        ("machine.disks[0].image", &machine["disks"][0]["image"]),
    ];
    for (field, image) in images {
        let blob = home
            .path()
            .join("store/blobs")
            .join(image.as_str().unwrap());
        flip(&blob, 4096);
        assert!(refusal(&home).contains(field));
        let output = home.run(["clone", "shell"]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(told.contains(field), "{told}");
        assert!(told.contains("is not as it was"), "{told}");
        assert_eq!(home.json(["list"])["sandboxes"], Value::Array(Vec::new()));
        flip(&blob, 4096);
    }
    assert!(processes::machines(home.path()).is_empty());
    assert!(directory.exists());
    home.clone_template("shell", 1);
}

/// How long a page of memory is.
const PAGE: usize = 4096;

/// Has the guest's agent, and its PID 1, do nothing but run in a circle: every
/// page of their program becomes no-operations and a jump back.
fn silence_the_agent(memory: &Path) {
    let program = fs::read(built("x86_64-unknown-linux-musl/release/guest-agent")).unwrap();
    let pages: std::collections::HashSet<&[u8]> = program
        .chunks_exact(PAGE)
        .filter(|page| page.iter().filter(|byte| **byte != 0).count() > PAGE / 2)
        .collect();
    let mut circle = [0x90; PAGE];
    circle[PAGE - 2..].copy_from_slice(&[0xeb, 0x80]);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(memory)
        .unwrap();
    let mut page = vec![0; PAGE];
    let mut replaced = 0;
    for offset in (0..fs::metadata(memory).unwrap().len()).step_by(PAGE) {
        file.read_exact_at(&mut page, offset).unwrap();
        if pages.contains(page.as_slice()) {
            file.write_all_at(&circle, offset).unwrap();
            replaced += 1;
        }
    }
    assert!(replaced > 100, "{replaced} pages of the agent were found");
}

#[test]
fn a_guest_that_is_silent_after_its_resume_is_given_up_in_time_and_booted_cold() {
    let home = Home::new();
    template(&home);
    publish_again(&home, |_| {}, silence_the_agent);
    let begun = Instant::now();
    let reason = booted_because(&home);
    assert!(
        begun.elapsed() < Duration::from_secs(180),
        "{:?}",
        begun.elapsed()
    );
    assert!(reason.contains("the guest's console ends with"), "{reason}");
    let deadline = ["no answer within", "did not answer"];
    assert!(
        deadline.iter().any(|words| reason.contains(words)),
        "{reason}"
    );
    assert!(processes::machines(home.path()).is_empty());
}

/// Whether a file holds these bytes.
fn holds(path: &Path, wanted: &[u8]) -> bool {
    let bytes = fs::read(path).unwrap();
    // The first byte alone is looked for quickly.
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == wanted[0]) {
        at += found;
        if bytes[at..].starts_with(wanted) {
            return true;
        }
        at += 1;
    }
    false
}

#[test]
fn what_the_guest_freed_before_the_freeze_is_in_no_template_and_what_it_kept_is() {
    let home = Home::new();
    // Nobody tells the guest the marker itself: it computes it, into the memory
    // of a shell, a pipe and a file, many times over.
    let remember = |word: &str, then: &str| {
        format!(
            "sh -c 'h=$(echo {word} | sha256sum); for i in 1 2 3 4 5 6 7 8; do h=$h$h; done; \
             echo $h > /tmp/{word}; {then}'"
        )
    };
    let (freed, kept) = (
        remember("freed", "busybox rm /tmp/freed"),
        remember("kept", "true"),
    );
    let rootfs = images::busybox();
    let mut arguments = vec!["template", "build", "shell", "--memory", "128", "--rootfs"];
    arguments.extend([
        rootfs.to_str().unwrap(),
        "--warm",
        &freed,
        "--warm",
        &kept,
        "--",
    ]);
    arguments.extend(COMMAND);
    let built = home.json(arguments);
    let digest = built["digest"].as_str().unwrap();
    let memory = home
        .path()
        .join("store/templates")
        .join(digest)
        .join("memory");
    let marker = |word: &str| Sha256::of(format!("{word}\n").as_bytes()).to_string();
    assert!(holds(&memory, marker("kept").as_bytes()), "it is not found");
    assert!(!holds(&memory, marker("freed").as_bytes()), "it is found");
}

#[test]
fn an_exported_template_wakes_in_another_home_and_nowhere_without_its_key() {
    let (from, to) = (Home::new(), Home::new());
    template(&from);
    let [archive, key, other] = ["archive", "key", "other"].map(|name| from.path().join(name));
    for (path, digits) in [(&key, "0a"), (&other, "0b")] {
        fs::write(path, digits.repeat(32)).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }
    let [archive, key, other] = [&archive, &key, &other].map(|path| path.to_str().unwrap());
    let refused = from.failure(["template", "export", "shell", "-o", archive]);
    assert!(refused.contains("--plaintext"), "{refused}");
    let exported = from.json([
        "template",
        "export",
        "shell",
        "-o",
        archive,
        "--key-file",
        key,
    ]);
    assert_eq!(exported["encrypted"], true, "{exported}");

    let import = ["template", "import", archive, "--name", "shell"];
    let refused = to.failure(import);
    assert!(refused.contains("--trust-unsigned"), "{refused}");
    let refused = to.failure(import.into_iter().chain(["--trust-unsigned"]));
    assert!(refused.contains("encrypted"), "{refused}");
    let refused = to.failure(import.into_iter().chain(["--key-file", other]));
    assert!(refused.contains("not made with this key"), "{refused}");
    let imported = to.json(import.into_iter().chain(["--key-file", key]));
    assert_eq!(imported["digest"], exported["digest"]);
    to.text(["template", "verify", "shell"]);
    let clones = to.clone_template("shell", 1);
    let id = sandbox(&clones[0]);
    assert_eq!(to.text(["exec", id, "--", "echo", "works"]), "works\n");
}
