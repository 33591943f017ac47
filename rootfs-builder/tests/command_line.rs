//! The program as it is called: exit status, messages, what is left behind.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails, also in what it calls"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rootfs-builder");

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .unwrap()
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn inspect_shows_what_another_cpio_wrote() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a"), "hello").unwrap();
    let archive = directory.path().join("archive");
    let written = Command::new("sh")
        .arg("-c")
        .arg(
            "cpio=cpio; command -v cpio || cpio='busybox cpio'; echo a | $cpio -o -H newc >archive",
        )
        .current_dir(directory.path())
        .status();
    if !written.is_ok_and(|status| status.success()) {
        eprintln!("skipped: neither cpio nor busybox is installed");
        return;
    }
    let output = run(&["inspect", archive.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("5 a\n"), "{text}");
}

#[test]
fn inspect_of_garbage_is_a_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("garbage");
    fs::write(&file, "garbage").unwrap();
    let text = complaint(&run(&["inspect", file.to_str().unwrap()]));
    assert_eq!(
        text,
        "rootfs-builder: inspect image: list the archive: read archive: no header at byte 0\n"
    );
    let text = complaint(&run(&["inspect", "/nowhere"]));
    assert!(text.contains("open /nowhere: No such file"), "{text}");
}

#[test]
fn text_from_an_archive_reaches_the_terminal_escaped() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("archive");
    let member = |name: &str, mode: u32| {
        let mut bytes = format!("070701{:08x}{mode:08x}", 1).into_bytes();
        bytes.extend(b"00000000".repeat(9));
        bytes.extend(format!("{:08x}{:08x}{name}\0", name.len() + 1, 0).into_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let mut bytes = member("\x1b[2J", 0o100_644);
    bytes.extend(member("TRAILER!!!", 0));
    fs::write(&file, bytes).unwrap();
    let output = run(&["inspect", file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert!(!output.stdout.contains(&0x1b));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("\\x1b[2J")
    );
}

#[test]
fn a_malformed_epoch_is_an_error() {
    let output = Command::new(PROGRAM)
        .args(["initrd", "--agent", "/bin/true", "--output", "/nowhere/x"])
        .env("SOURCE_DATE_EPOCH", "yesterday")
        .output()
        .unwrap();
    assert!(complaint(&output).contains("SOURCE_DATE_EPOCH"));
}

#[test]
fn a_file_that_may_not_be_read_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("secret"), "").unwrap();
    set_mode(&tree.join("secret"), 0);
    set_mode(directory.path(), 0o777);
    let mut command = Command::new(PROGRAM);
    command.args(["tree-to-erofs", "--tree"]).arg(&tree);
    command.arg("--output").arg(directory.path().join("image"));
    if rustix::process::geteuid().is_root() {
        // Nobody: root reads everything.
        command.uid(65534).gid(65534);
    }
    let Ok(output) = command.output() else {
        eprintln!("skipped: user nobody may not run {PROGRAM}");
        return;
    };
    let text = complaint(&output);
    assert!(text.contains("tree/secret: Permission denied"), "{text}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs a script in a mount namespace of its own, with a tmpfs of 200 KiB on
/// `directory`. `None` where this machine does not allow it.
fn on_a_small_disk(directory: &Path, script: &str) -> Option<Output> {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg(format!(
            "mount -t tmpfs -o size=200k tmpfs '{}' || exit 99\n{script}",
            directory.display()
        ))
        .output()
        .ok()?;
    let refused = output.status.code() == Some(99)
        || String::from_utf8_lossy(&output.stderr).starts_with("unshare:");
    (!refused).then_some(output)
}

#[test]
fn a_full_disk_is_a_clear_error_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    let disk = directory.path().join("disk");
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&disk).unwrap();
    let noise: Vec<u8> = (0..1_000_000u32)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(tree.join("file"), noise).unwrap();
    let builds = [
        format!("tree-to-erofs --tree '{}'", tree.display()),
        format!(
            "initrd --agent '{PROGRAM}.static' --file '{}':/f",
            tree.join("file").display()
        ),
    ];
    for build in builds {
        let build = build.replace(&format!("{PROGRAM}.static"), &static_program(&directory));
        let script = format!(
            "'{PROGRAM}' {build} --output '{0}/image'; status=$?; ls -A '{0}'; exit $status",
            disk.display()
        );
        let Some(output) = on_a_small_disk(&disk, &script) else {
            eprintln!("skipped: no user and mount namespaces here");
            return;
        };
        let text = complaint(&output);
        assert!(
            text.contains("No space left") || text.contains("full"),
            "{text}"
        );
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "left behind");
    }
}

/// The shortest static ELF file: a header and no segments.
fn static_program(directory: &tempfile::TempDir) -> String {
    let path: PathBuf = directory.path().join("agent");
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    bytes.resize(52, 0);
    bytes.extend([64, 0, 56, 0, 0, 0, 64, 0, 0, 0, 0, 0]);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}
