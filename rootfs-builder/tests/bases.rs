//! Images on bases, as the program makes them.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails, also in what it calls"
)]

use rootfs_builder::digest::Digest;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rootfs-builder");

/// The shortest static ELF file.
fn agent(directory: &Path) -> String {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    bytes.resize(52, 0);
    bytes.extend([64, 0, 56, 0, 0, 0, 64, 0, 0, 0, 0, 0]);
    let path = directory.join("agent");
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

fn run(directory: &Path, kind: &str, words: &[&str]) -> Output {
    let output = directory.join("image").display().to_string();
    let agent = agent(directory);
    Command::new(PROGRAM)
        .args([kind, "--agent", &agent, "--output", &output])
        .args(words)
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .unwrap()
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn manifest(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A tree with a directory made in that order.
fn plant(root: &Path, names: impl IntoIterator<Item = u32>) {
    fs::create_dir_all(root.join("srv")).unwrap();
    for number in names {
        fs::write(root.join(format!("srv/{number}")), number.to_string()).unwrap();
    }
    symlink("../../etc/shadow", root.join("srv/escape")).unwrap();
}

#[test]
fn a_directory_gives_the_same_image_and_the_same_list_wherever_it_lies() {
    let here = tempfile::tempdir().unwrap();
    let there = tempfile::tempdir_in("/dev/shm").unwrap();
    plant(&here.path().join("tree"), 0..40);
    plant(&there.path().join("tree"), (0..40).rev());
    let mut kinds: Vec<&[&str]> = vec![&["initrd", "--compression", "zstd"]];
    let has = |tool: &str| {
        let there = rootfs_builder::tool::command(tool)
            .arg("--help")
            .output()
            .is_ok();
        if !there {
            eprintln!("skipped: {tool} is not installed");
        }
        there
    };
    if has("mkfs.erofs") {
        kinds.push(&["image", "--format", "erofs", "--layout", "verity"]);
    }
    if has("mke2fs") {
        kinds.push(&["image", "--format", "ext4"]);
    }
    for words in kinds {
        let build = |directory: &Path| {
            let at = |name: &str| directory.join(name).display().to_string();
            let (tree, list) = (at("tree"), at("list.json"));
            let further = ["--base", &tree, "--spdx", &list];
            let output = run(directory, words[0], &[&words[1..], &further].concat());
            assert!(output.status.success(), "{output:?}");
            (
                fs::read(at("image")).unwrap(),
                fs::read(at("list.json")).unwrap(),
            )
        };
        let (first, second) = (build(here.path()), build(there.path()));
        assert!(first == second, "{words:?}");
        if words[0] == "image" {
            let manifest = manifest(&here.path().join("image.json"));
            assert_eq!(manifest["spdx"], Digest::of(&first.1).to_string());
        }
    }
}

#[test]
fn an_image_of_an_oci_layout_says_which_layers_went_in() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    plant(&tree, 0..3);
    let tar = rootfs_builder::tool::command("tar")
        .args(["--create", "--owner=0", "--group=0", "."])
        .current_dir(&tree)
        .output();
    let Ok(tar) = tar else {
        eprintln!("skipped: tar is not installed");
        return;
    };
    let layout = directory.path().join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        fs::write(blobs.join(&digest), bytes).unwrap();
        let media_type = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({
            "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len(),
        })
    };
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", Digest::of(&tar.stdout))] },
    });
    let image = serde_json::json!({
        "config": blob("config.v1+json", config.to_string().as_bytes()),
        "layers": [blob("layer.v1.tar", &tar.stdout)],
    });
    let index = serde_json::json!({
        "manifests": [blob("manifest.v1+json", image.to_string().as_bytes())],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        "{\"imageLayoutVersion\":\"1.0.0\"}",
    )
    .unwrap();
    let beside = directory.path().join("image.json").display().to_string();
    let base = format!("oci:{}", layout.display());
    let output = run(
        directory.path(),
        "initrd",
        &["--base", &base, "--manifest", &beside],
    );
    assert!(output.status.success(), "{output:?}");
    let described = manifest(Path::new(&beside));
    let layer = &described["inputs"][2];
    assert_eq!(layer["name"], "base layer 1");
    assert_eq!(layer["sha256"], Digest::of(&tar.stdout).to_string());
    let paths = described["files"].as_array().unwrap().iter();
    let paths: Vec<_> = paths.filter_map(|file| file["path"].as_str()).collect();
    assert!(
        paths.contains(&"/srv/escape") && paths.contains(&"/init"),
        "{paths:?}"
    );
    // The same, found damaged: nothing is left of an image.
    fs::remove_file(directory.path().join("image")).unwrap();
    fs::write(blobs.join(Digest::of(&tar.stdout).to_string()), "x").unwrap();
    let text = complaint(&run(directory.path(), "initrd", &["--base", &base]));
    assert!(
        text.contains("its size is not what the image says"),
        "{text}"
    );
    assert!(!directory.path().join("image").exists());
}

#[test]
fn busybox_is_there_with_its_applets() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), "initrd", &["--base", "busybox"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        // Not installed, or not the static one: then it says which package.
        assert!(said.contains("busybox-static"), "{said}");
        eprintln!("skipped: {said}");
        return;
    }
    let listed = Command::new(PROGRAM)
        .arg("inspect")
        .arg(directory.path().join("image"))
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains(" bin/sh -> /bin/busybox"), "{listed}");
    assert!(listed.contains(" init\n"), "{listed}");
}

#[test]
fn a_busybox_that_is_not_static_is_refused_with_its_package() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(PROGRAM)
        .args([
            "initrd",
            "--base",
            "busybox",
            "--output",
            "/nowhere/x",
            "--agent",
        ])
        .arg(agent(directory.path()))
        .env("BUSYBOX", "/bin/ls")
        .output()
        .unwrap();
    let text = complaint(&output);
    assert!(
        text.contains("busybox-static") && text.contains("interpreter"),
        "{text}"
    );
}

#[test]
fn packages_are_refused_by_bases_that_have_none() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), "initrd", &["--package", "hello"]);
    assert!(complaint(&output).contains("only the base debian:SUITE can"));
}

/// With a mmdebstrap of our own, or none, on PATH.
fn with_mmdebstrap(directory: &Path, script: Option<&str>, words: &[&str]) -> Output {
    let programs = directory.join("programs");
    fs::create_dir_all(&programs).unwrap();
    let mut path = programs.display().to_string();
    if let Some(script) = script {
        let program = programs.join("mmdebstrap");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        path.push_str(":/usr/bin:/bin");
    }
    Command::new(PROGRAM)
        .args(["initrd", "--agent", &agent(directory), "--output"])
        .arg(directory.join("image"))
        .args(words)
        .env("PATH", path)
        .output()
        .unwrap()
}

#[test]
fn debian_is_what_mmdebstrap_makes_without_what_is_this_machines() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    for (path, text) in [
        ("etc/hostname", "mine"),
        ("etc/resolv.conf", "mine"),
        (
            "var/lib/dpkg/status",
            "Package: dash\nStatus: install ok installed\nVersion: 1\n",
        ),
    ] {
        fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
        fs::write(tree.join(path), text).unwrap();
    }
    let said = directory.path().join("said");
    let script = format!(
        "echo \"$SOURCE_DATE_EPOCH $*\" >'{}'; for target; do :; done; \
         cd '{}' && exec tar --create --owner=0 --group=0 --file \"$target\" .",
        said.display(),
        tree.display()
    );
    let beside = directory.path().join("image.json").display().to_string();
    let words = [
        "--base",
        "debian:bookworm",
        "--package",
        "hello",
        "--package",
        "dash",
        "--manifest",
        &beside,
    ];
    let output = with_mmdebstrap(directory.path(), Some(&script), &words);
    assert!(output.status.success(), "{output:?}");
    let said = fs::read_to_string(said).unwrap();
    assert!(said.contains("--include=hello,dash bookworm "), "{said}");
    let described = manifest(Path::new(&beside));
    assert_eq!(described["packages"][0]["name"], "dash");
    let text = described.to_string();
    assert!(
        !text.contains("/etc/hostname") && !text.contains("/etc/resolv.conf"),
        "{text}"
    );
}

#[test]
fn without_mmdebstrap_its_package_is_named_and_its_complaints_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let words = ["--base", "debian:bookworm"];
    let text = complaint(&with_mmdebstrap(directory.path(), None, &words));
    if !Path::new("/usr/sbin/mmdebstrap").exists() {
        assert!(
            text.contains("start mmdebstrap (package mmdebstrap)"),
            "{text}"
        );
    }
    let failing = Some("echo no such suite >&2; exit 2");
    let text = complaint(&with_mmdebstrap(directory.path(), failing, &words));
    assert!(text.contains("no such suite"), "{text}");
    assert!(!directory.path().join("image").exists());
}
