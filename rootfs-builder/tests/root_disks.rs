//! Root disks as the program makes them: the same bytes every time, and no
//! damage that goes unseen.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails, also in what it calls"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rootfs-builder");
const BLOCK: usize = 4096;

fn tools_are_missing() -> bool {
    for (tool, package) in [("mke2fs", "e2fsprogs"), ("mkfs.erofs", "erofs-utils")] {
        if rootfs_builder::tool::command(tool)
            .arg("--help")
            .output()
            .is_err()
        {
            eprintln!("skipped: {tool} is not installed (package {package})");
            return true;
        }
    }
    false
}

/// The shortest static ELF file, padded to some blocks.
fn agent() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    bytes.resize(52, 0);
    bytes.extend([64, 0, 56, 0, 0, 0, 64, 0, 0, 0, 0, 0]);
    bytes.extend((0..1_000_000_u32).flat_map(|number| (number / 3).to_le_bytes()));
    bytes
}

/// A directory with inputs.
fn kitchen() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("agent"), agent()).unwrap();
    fs::write(directory.path().join("extra"), "extra").unwrap();
    directory
}

fn run(words: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(words)
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Builds a disk in `directory`.
fn build(directory: &Path, name: &str, words: &[&str]) -> PathBuf {
    let at = |name: &str| directory.join(name).display().to_string();
    let file = format!("{}:/srv/extra:640", at("extra"));
    let (agent, output) = (at("agent"), at(name));
    let mut all = vec![
        "image", "--agent", &agent, "--file", &file, "--output", &output,
    ];
    all.extend(words);
    let built = run(&all);
    assert!(built.status.success(), "{built:?}");
    output.into()
}

fn verify(image: &Path, words: &[&str]) -> Output {
    let image = image.to_str().unwrap();
    run(&[&["verify", image], words].concat())
}

#[test]
fn the_same_inputs_give_the_same_disk_wherever_they_lie() {
    if tools_are_missing() {
        return;
    }
    let (here, there) = (kitchen(), tempfile::tempdir_in("/dev/shm").unwrap());
    // Written in another order, to another file system.
    for name in ["extra", "agent"] {
        fs::copy(here.path().join(name), there.path().join(name)).unwrap();
    }
    let kinds: [&[&str]; 4] = [
        &["--format", "ext4"],
        &[
            "--format",
            "ext4",
            "--layout",
            "partition",
            "--align",
            "1048576",
        ],
        &["--format", "erofs", "--layout", "verity"],
        &["--format", "erofs", "--compression", "lz4"],
    ];
    for words in kinds {
        let first = build(here.path(), "disk", words);
        let second = build(there.path(), "disk", words);
        let bytes = fs::read(&first).unwrap();
        assert!(bytes == fs::read(second).unwrap(), "{words:?}");
        let align = if words.contains(&"--align") {
            1 << 20
        } else {
            2 << 20
        };
        assert_eq!(bytes.len() % align, 0, "{words:?}");
        let manifest = |directory: &Path| fs::read(directory.join("disk.json")).unwrap();
        assert_eq!(manifest(here.path()), manifest(there.path()));
        assert!(verify(&first, &[]).status.success(), "{words:?}");
        // Nothing but inputs, disk and manifest is left.
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 4);
    }
}

#[test]
fn every_part_of_a_disk_is_looked_at() {
    if tools_are_missing() {
        return;
    }
    let kitchen = kitchen();
    let image = build(kitchen.path(), "disk", &["--layout", "verity"]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(kitchen.path().join("disk.json")).unwrap()).unwrap();
    let number = |pointer: &str| manifest.pointer(pointer).unwrap().as_u64().unwrap() as usize;
    let (data, tree) = (number("/disk/offset"), number("/disk/verity/offset"));
    let whole = fs::read(&image).unwrap();
    let cases = [
        (data + 3 * BLOCK + 77, "data block 3 is corrupted"),
        (tree - 1, "is corrupted"),
        (tree + BLOCK + 40, "the root hash is"),
        (tree + 2 * BLOCK, "hash block 2 is corrupted"),
        (tree + 90, "the hash tree has another salt"),
        (512 + 60, "the partition table's header is corrupted"),
        (whole.len() - 512 + 60, "the copy of the partition table"),
    ];
    for (at, expected) in cases {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&image, damaged).unwrap();
        let output = verify(&image, &[]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{at}: {output:?}");
        assert!(said.contains("its sha256 is"), "{at}: {said}");
        assert!(said.contains(expected), "{at}: {said}");
    }
    fs::write(&image, &whole).unwrap();
    // Both count if both are given.
    let root_hash = manifest.pointer("/disk/verity/root_hash").unwrap();
    let root_hash = root_hash.as_str().unwrap().to_owned();
    let blocks = number("/disk/verity/data_blocks").to_string();
    let beside = kitchen.path().join("disk.json").display().to_string();
    let both = |root_hash: &str| {
        let words = ["--root-hash", root_hash, "--data-blocks", &blocks];
        verify(&image, &[&words[..], &["--manifest", &beside]].concat())
    };
    assert!(both(&root_hash).status.success());
    let output = both(&"0".repeat(64));
    assert!(text(&output).contains("the root hash is"), "{output:?}");
    // Partitions elsewhere than the manifest says are found, whatever else.
    let described = fs::read_to_string(&beside).unwrap();
    let forged = described.replace(
        &format!("\"size\": {}", number("/disk/size")),
        "\"size\": 4096",
    );
    fs::write(&beside, forged).unwrap();
    let output = verify(&image, &[]);
    let said = text(&output);
    assert!(
        said.contains("other partitions than the manifest"),
        "{said}"
    );
    fs::write(&beside, described).unwrap();
    // Cut off, the disk is another.
    fs::write(&image, &whole[..whole.len() / 2]).unwrap();
    assert!(!verify(&image, &[]).status.success());
}

#[test]
fn the_words_for_the_kernel_name_tree_and_file_system() {
    if tools_are_missing() {
        return;
    }
    let kitchen = kitchen();
    let at = |name: &str| kitchen.path().join(name).display().to_string();
    let words = |layout: &str, device: &str| {
        let (agent, output) = (at("agent"), at("disk"));
        let output = run(&[
            "image", "--agent", &agent, "--output", &output, "--layout", layout, "--device", device,
        ]);
        assert!(output.status.success(), "{output:?}");
        let said = text(&output);
        said.split_once("kernel parameters: ")
            .unwrap()
            .1
            .trim_end()
            .to_owned()
    };
    assert_eq!(
        words("plain", "/dev/vda"),
        "root=/dev/vda rootfstype=erofs ro"
    );
    assert_eq!(
        words("partition", "/dev/pmem0"),
        "root=/dev/pmem0p1 rootfstype=erofs ro"
    );
    let verity = words("verity", "/dev/vdb");
    let start = "dm-mod.create=\"root,,,ro,0 ";
    assert!(verity.starts_with(start), "{verity}");
    assert!(
        verity.contains(" verity 1 /dev/vdb1 /dev/vdb2 4096 4096 "),
        "{verity}"
    );
    assert!(
        verity.ends_with("\" root=/dev/dm-0 rootfstype=erofs ro"),
        "{verity}"
    );
}

#[test]
fn a_disk_is_inspected_without_its_manifest() {
    if tools_are_missing() {
        return;
    }
    let kitchen = kitchen();
    let image = build(
        kitchen.path(),
        "disk",
        &["--format", "ext4", "--layout", "verity"],
    );
    let manifest = fs::read_to_string(kitchen.path().join("disk.json")).unwrap();
    fs::remove_file(kitchen.path().join("disk.json")).unwrap();
    let said = text(&run(&["inspect", image.to_str().unwrap()]));
    let root_hash = said.split("root hash ").nth(1).unwrap().trim_end();
    assert!(manifest.contains(root_hash), "{said}");
    assert!(
        said.contains("partition 1 \"root\"") && said.contains(", ext4 "),
        "{said}"
    );
    let image = build(kitchen.path(), "disk", &[]);
    let said = text(&run(&["inspect", image.to_str().unwrap()]));
    assert!(
        said.contains("no partitions") && said.contains(", erofs "),
        "{said}"
    );
}

#[test]
fn two_images_differ_in_what_went_into_them() {
    if tools_are_missing() {
        return;
    }
    let kitchen = kitchen();
    let first = build(kitchen.path(), "first", &[]);
    let again = build(kitchen.path(), "again", &[]);
    fs::write(kitchen.path().join("extra"), "more").unwrap();
    let second = build(kitchen.path(), "second", &["--agent-version", "7"]);
    let diff =
        |one: &Path, other: &Path| run(&["diff", one.to_str().unwrap(), other.to_str().unwrap()]);
    let same = diff(&first, &again);
    assert!(same.status.success() && same.stdout.is_empty(), "{same:?}");
    let output = diff(&first, &kitchen.path().join("second.json"));
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    for line in [
        "~ agent version: None",
        "~ input /srv/extra: 5 bytes",
        "~ file /srv/extra: 0640",
    ] {
        assert!(said.contains(line), "{said}");
    }
    assert!(!said.contains("/sbin/init"), "{said}");
    assert_eq!(diff(&second, &first).status.code(), Some(1));
    // A manifest of another program's is not guessed at.
    fs::write(kitchen.path().join("odd.json"), "{\"format\":1}").unwrap();
    let output = diff(&first, &kitchen.path().join("odd.json"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("its format is 1"), "{complaint}");
}

#[test]
fn what_cannot_be_a_disk_is_refused_and_leaves_nothing() {
    let kitchen = kitchen();
    let at = |name: &str| kitchen.path().join(name).display().to_string();
    let (agent, output) = (at("agent"), at("disk"));
    let refused = |words: &[&str], reason: &str| {
        let all = [&["image", "--agent", &agent, "--output", &output], words].concat();
        let complaint = run(&all);
        let said = String::from_utf8_lossy(&complaint.stderr).into_owned();
        assert_eq!(complaint.status.code(), Some(1), "{said}");
        assert!(said.contains(reason), "{said}");
        assert_eq!(fs::read_dir(kitchen.path()).unwrap().count(), 2);
    };
    refused(&["--align", "1000"], "align to 1000 bytes");
    let taken = format!("{}:/sbin/init", at("extra"));
    refused(&["--file", &taken], "the path is taken");
}
