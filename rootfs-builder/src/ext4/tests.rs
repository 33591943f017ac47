//! mke2fs as we call it, and what is left of it afterwards.

use super::*;
use crate::tool::command;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

fn tools_are_missing() -> bool {
    let missing = command("mke2fs").arg("-V").output().is_err();
    if missing {
        eprintln!("skipped: mke2fs is not installed (package e2fsprogs)");
    }
    missing
}

/// A tree whose names are made in the given order.
fn plant(root: &Path, names: impl IntoIterator<Item = u32>) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    for number in names {
        let text = format!("{number} ").repeat(number as usize * 300);
        fs::write(root.join(format!("d/{number:03}")), text).unwrap();
    }
    symlink("../../../../etc/shadow", root.join("escape")).unwrap();
    symlink("x".repeat(200), root.join("long")).unwrap();
    fs::write(root.join("d/e/\u{e4} -x"), "odd").unwrap();
    let mode = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(root.join("d/e"), mode).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(root.join("d/001"), Some(1234), Some(70_000)).unwrap();
    }
}

fn request(directory: &Path) -> Request {
    Request {
        tree: directory.join("tree"),
        output: directory.join("fs"),
        source_date_epoch: 0,
        deadline: Duration::from_secs(60),
    }
}

fn debugfs(image: &Path, request: &str) -> String {
    let output = command("debugfs")
        .args(["-R", request])
        .arg(image)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_same_tree_gives_the_same_bytes_wherever_and_whenever_it_was_made() {
    if tools_are_missing() {
        return;
    }
    let here = tempfile::tempdir().unwrap();
    // Another file system, which lists directories in another order.
    let there = tempfile::tempdir_in("/dev/shm").unwrap();
    plant(&here.path().join("tree"), 0..60);
    plant(&there.path().join("tree"), (0..60).rev());
    let first = build(&request(here.path())).unwrap();
    let second = build(&request(there.path())).unwrap();
    assert_eq!(first, second);
    let bytes = |directory: &Path| fs::read(directory.join("fs")).unwrap();
    assert!(bytes(here.path()) == bytes(there.path()));
}

#[test]
fn the_file_system_is_sound_and_everything_belongs_to_root_at_one_time() {
    if tools_are_missing() {
        return;
    }
    for time in [0, 1_700_000_000, u32::MAX] {
        let directory = tempfile::tempdir().unwrap();
        plant(&directory.path().join("tree"), 0..3);
        let mut request = request(directory.path());
        request.source_date_epoch = time;
        build(&request).unwrap();
        let check = command("e2fsck")
            .arg("-fn")
            .arg(&request.output)
            .output()
            .unwrap();
        assert!(check.status.success(), "{check:?}");
        for path in ["/", "/d/001", "/escape", "/d/e", "/lost+found"] {
            let text = debugfs(&request.output, &format!("stat {path}"));
            assert!(
                text.contains("User:     0   Group:     0"),
                "{path}: {text}"
            );
            for name in ["ctime", "atime", "mtime", "crtime"] {
                let span = u32::from(time > 0x7fff_ffff);
                let wanted = format!("{name}: 0x{time:08x}:{span:08x} ");
                assert!(
                    text.contains(&wanted),
                    "{path}: {wanted:?} is not in {text}"
                );
            }
        }
        let text = debugfs(&request.output, "stat /d/e");
        assert!(text.contains("Mode:  01777"), "{text}");
        let text = debugfs(&request.output, "cat /d/002");
        assert_eq!(text, "2 ".repeat(600));
    }
}

#[test]
fn a_tree_of_any_shape_fits_in() {
    if tools_are_missing() {
        return;
    }
    // Many small files, long names, deep directories; one large file.
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    let mut deep = tree.clone();
    // mke2fs 1.47.0 dies of paths some 2000 bytes long.
    for _ in 0..10 {
        deep.push("d".repeat(50));
    }
    fs::create_dir_all(&deep).unwrap();
    for number in 0..500 {
        fs::write(tree.join(format!("{number:0200}")), "x").unwrap();
    }
    fs::write(deep.join("large"), vec![7; 150 << 20]).unwrap();
    build(&request(directory.path())).unwrap();
    let check = command("e2fsck")
        .arg("-fn")
        .arg(directory.path().join("fs"))
        .output();
    let check = check.unwrap();
    assert!(check.status.success(), "{check:?}");
}
