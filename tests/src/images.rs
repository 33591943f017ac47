//! Container images for the tests, built once and shared.

use crate::{built, target};
use serde_json::Value;
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
    tree_to_erofs(root, &image);
    image
}

/// An image of what lies below `tree`, at `image`.
///
/// # Panics
/// When it cannot be built.
pub fn tree_to_erofs(tree: &Path, image: &Path) {
    let mut command = Command::new(built("release/rootfs-builder"));
    command.args(["tree-to-erofs", "--tree"]).arg(tree);
    run(command.arg("--output").arg(image));
}

/// A root disk with the agent, in `directory`, made with these further words of
/// `rootfs-builder image`: its file, and its manifest.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn root_disk(directory: &Path, words: &[&str]) -> (PathBuf, Value) {
    let disk = directory.join("root.img");
    let mut command = agent_image("image", &disk);
    run(command.args(words).args(["--output-format", "json"]));
    let manifest = fs::read(directory.join("root.img.json")).expect("read the manifest");
    let manifest = serde_json::from_slice(&manifest).expect("parse the manifest");
    (disk, manifest)
}

/// The words of the kernel command line that boot from the first disk, by its
/// manifest; with another root hash, if one is given.
///
/// # Panics
/// When the manifest is none of a disk with a hash tree.
#[must_use]
pub fn verity_words(manifest: &Value, root_hash: Option<&str>) -> String {
    let verity = &manifest["disk"]["verity"];
    let text = |key: &str| verity[key].as_str().expect("a text in the manifest");
    let blocks = verity["data_blocks"].as_u64().expect("a count of blocks");
    let root_hash = root_hash.unwrap_or_else(|| text("root_hash"));
    format!(
        "dm-mod.create=\"root,,,ro,0 {} verity 1 /dev/vda1 /dev/vda2 4096 4096 {blocks} 1 sha256 \
         {root_hash} {}\" root=/dev/dm-0 rootfstype=erofs ro",
        blocks * 8,
        text("salt")
    )
}

/// An initrd in `directory` that can set dm-verity up, packed as asked for.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn verity_initrd(directory: &Path, compression: &str) -> PathBuf {
    let initrd = directory.join("initrd.img");
    let mut command = agent_image("initrd", &initrd);
    command.args(["--compression", compression, "--module", "dm_verity"]);
    run(command.arg("--modules").arg(built("guest/modules")));
    initrd
}

/// The guest's own kernel.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn own_kernel() -> PathBuf {
    own("bzImage")
}

/// The same for a VMM that does not unpack it.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn own_vmlinux() -> PathBuf {
    own("vmlinux")
}

fn own(file: &str) -> PathBuf {
    let kernel = target().join("guest/own").join(file);
    assert!(
        kernel.is_file(),
        "{} is missing; `make kernel` builds it",
        kernel.display()
    );
    kernel
}

/// An initrd in `directory` with nothing but the agent: all that the guest's own
/// kernel needs.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn agent_initrd(directory: &Path) -> PathBuf {
    let initrd = directory.join("initrd.img");
    run(agent_image("initrd", &initrd).args(["--compression", "none"]));
    initrd
}

/// An archive in `directory` with nothing in it, for a kernel that mounts its
/// root disk by itself: one entry, that of the end (cpio(5), newc).
///
/// # Panics
/// When it cannot be written.
#[must_use]
pub fn no_initrd(directory: &Path) -> PathBuf {
    const END: &str = "TRAILER!!!\0";
    let initrd = directory.join("initrd.img");
    // Thirteen fields of eight digits, of which the twelfth is the name's length.
    let mut archive = format!("070701{:088}{:08x}{:08}{END}", 0, END.len(), 0);
    while archive.len() % 4 != 0 {
        archive.push('\0');
    }
    fs::write(&initrd, archive).expect("write the archive");
    initrd
}

fn agent_image(verb: &str, output: &Path) -> Command {
    let mut command = Command::new(built("release/rootfs-builder"));
    let agent = built("x86_64-unknown-linux-musl/release/guest-agent");
    command.args([verb, "--agent"]).arg(agent);
    command.arg("--output").arg(output);
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("start rootfs-builder");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rootfs-builder: {error}");
}
