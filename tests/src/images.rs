//! Container images for the tests, built once and shared.

use crate::{built, target};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The applets of busybox that the tests run.
const APPLETS: [&str; 14] = [
    "sh",
    "cat",
    "echo",
    "sleep",
    "ls",
    "id",
    "hostname",
    "mount",
    "sha256sum",
    "dd",
    "kill",
    "ps",
    "true",
    "false",
];

/// An image with busybox, and the uniqueness probe at /bin/probe.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn busybox() -> PathBuf {
    let image = target().join("test-images/busybox.erofs");
    let probe = built("x86_64-unknown-linux-musl/release/uniqueness-probe");
    let builder = built("release/rootfs-builder");
    let busybox = Path::new("/bin/busybox");
    assert!(
        busybox.exists(),
        "busybox-static is missing; `make tools` installs it"
    );
    fs::create_dir_all(target().join("test-images")).expect("make the directory of images");
    // Tests are processes of their own and run side by side: one builds.
    let lock = fs::File::create(target().join("test-images/lock")).expect("make a lock");
    lock.lock().expect("lock the images");
    let age = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if age(&image) > age(&probe) {
        return image;
    }
    let tree = tempfile::tempdir().expect("make a tree");
    let root = tree.path();
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "run", "root"] {
        fs::create_dir(root.join(directory)).expect("make a directory");
    }
    fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
    fs::copy(probe, root.join("bin/probe")).expect("copy the probe");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("write passwd");
    let output = Command::new(builder)
        .args(["tree-to-erofs", "--tree"])
        .arg(root)
        .arg("--output")
        .arg(&image)
        .output()
        .expect("start rootfs-builder");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rootfs-builder: {error}");
    image
}
