//! Templates with nothing in them: `run` wakes a copy of the one of its size and
//! starts its container there, and boots where there is none that serves.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use serde_json::Value;
use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use tardigrade_tests::{Home, images, processes, sandbox};

/// Builds the empty template `small` and gives the directory it lies in.
fn small(home: &Home) -> PathBuf {
    let built = home.json(["template", "build", "small", "--memory", "128"]);
    assert_eq!(built["existing"], false, "{built}");
    let digest = built["digest"].as_str().unwrap();
    home.path().join("store/templates").join(digest)
}

/// The words of `run` with that much memory and that command.
fn words<'a>(rootfs: &'a str, memory: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["run", "--rootfs", rootfs, "--memory", memory, "--"];
    words.extend(command);
    words
}

fn run(home: &Home, memory: &str) -> Value {
    let rootfs = images::busybox();
    home.json(words(
        rootfs.to_str().unwrap(),
        memory,
        &["sleep", "100000"],
    ))
}

#[test]
fn a_run_wakes_the_empty_template_of_its_size_and_is_its_own() {
    let home = Home::new();
    let directory = small(&home);
    let (one, other) = (run(&home, "128"), run(&home, "128"));
    let mut said = Vec::new();
    for made in [&one, &other] {
        assert_eq!(made["booted"], false, "{made}");
        assert_eq!(made["fallback"], Value::Null, "{made}");
        let script = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; \
                      sha256sum /bin/busybox; ps";
        let text = home.text(["exec", sandbox(made), "--", "sh", "-c", script]);
        assert!(text.contains("sleep 100000"), "{text}");
        said.push(text.lines().map(str::to_owned).collect::<Vec<_>>());
        let inspected = home.json(["inspect", sandbox(made)]);
        assert_eq!(
            inspected["template"],
            directory.file_name().unwrap().to_str().unwrap()
        );
        assert_eq!(inspected["spec"]["containers"][0]["id"], "main");
    }
    for (mine, yours) in said[0].iter().zip(&said[1]).take(3) {
        assert_ne!(mine, yours, "they share an identity");
    }
    // The image's bytes, read through a slot that was plugged without them.
    assert_eq!(said[0][3], said[1][3]);

    // What was woken so can be frozen with its container, and that be cloned.
    home.text(["template", "save", "full", sandbox(&one)]);
    let clones = home.clone_template("full", 2);
    for clone in &clones {
        let text = home.text(["exec", sandbox(clone), "--", "sha256sum", "/bin/busybox"]);
        assert_eq!(text.trim_end(), said[0][3]);
    }
    home.text(["rm", "--all"]);
    assert!(processes::machines(home.path()).is_empty());
}

#[test]
fn a_run_that_no_empty_template_serves_is_booted_and_says_why_if_one_should_have() {
    let home = Home::new();
    let directory = small(&home);
    // Of another size there is none: nothing is said of a template.
    let larger = run(&home, "160");
    assert_eq!(larger["booted"], true, "{larger}");
    assert_eq!(larger["fallback"], Value::Null, "{larger}");

    let memory = directory.join("memory");
    fs::set_permissions(&memory, Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().write(true).open(&memory).unwrap();
    file.set_len(64 << 20).unwrap();
    let booted = run(&home, "128");
    assert_eq!(booted["booted"], true, "{booted}");
    let reason = booted["fallback"].as_str().unwrap();
    assert!(reason.contains("memory"), "{reason}");
    let id = sandbox(&booted);
    assert_eq!(home.text(["exec", id, "--", "echo", "works"]), "works\n");
    let inspected = home.json(["template", "inspect", "small"]);
    assert_eq!(inspected["cold_boots"]["count"], 1, "{inspected}");
}

#[test]
fn a_run_is_not_woken_from_what_an_archive_has_brought() {
    let home = Home::new();
    small(&home);
    let archive = home.path().join("archive");
    let archive = archive.to_str().unwrap();
    home.text(["template", "export", "small", "--plaintext", "-o", archive]);
    home.text(["template", "rm", "small"]);
    let words = [
        "template",
        "import",
        archive,
        "--trust-unsigned",
        "--name",
        "small",
    ];
    home.text(words);
    let booted = run(&home, "128");
    assert_eq!(booted["booted"], true, "{booted}");
    assert_eq!(booted["fallback"], Value::Null, "{booted}");
    // One that was built here takes its place.
    small(&home);
    assert_eq!(run(&home, "128")["booted"], false);
}

#[test]
fn an_empty_template_is_neither_cloned_nor_waits_for_what_its_container_lacks() {
    let home = Home::new();
    small(&home);
    let output = home.run(["clone", "small"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("nothing in it"), "{text}");
    // What the agent refuses is not booted to hear the same again.
    let rootfs = images::busybox();
    let rootfs = rootfs.to_str().unwrap();
    let error = home.failure(words(rootfs, "128", &["no-such-command"]));
    assert!(error.contains("no-such-command"), "{error}");
    let inspected = home.json(["template", "inspect", "small"]);
    assert_eq!(inspected["cold_boots"]["count"], 0, "{inspected}");
    home.text(["gc"]);
    assert!(processes::machines(home.path()).is_empty());
    let left = fs::read_dir(home.path().join("run")).unwrap().count();
    assert_eq!(left, 0);

    for half in [
        vec!["template", "build", "x", "--rootfs", rootfs],
        vec!["template", "build", "x", "--", "true"],
        vec!["template", "build", "x", "--ready", "true"],
        vec!["run", "--rootfs", rootfs],
        vec!["run", "--", "true"],
    ] {
        let output = home.run(&half);
        assert_eq!(output.status.code(), Some(2), "{half:?}: {output:?}");
    }
}
