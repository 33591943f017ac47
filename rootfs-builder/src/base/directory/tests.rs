//! Trees that are kept, and trees that are refused.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;

fn tree() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("etc/deep")).unwrap();
    fs::write(directory.path().join("etc/passwd"), "root").unwrap();
    directory
}

fn complaint(root: &Path) -> String {
    load(root).unwrap_err().to_string()
}

#[test]
fn links_are_kept_as_they_are_and_never_followed() {
    let tree = tree();
    symlink("/", tree.path().join("all")).unwrap();
    symlink("../../../etc/shadow", tree.path().join("etc/escape")).unwrap();
    let (archive, _, _) = load(tree.path()).unwrap();
    let shown: Vec<_> = archive
        .entries()
        .map(|(path, entry)| {
            (
                path.to_string(),
                matches!(entry.content, Content::Symlink(_)),
            )
        })
        .collect();
    let expected = [
        ("all", true),
        ("etc", false),
        ("etc/deep", false),
        ("etc/escape", true),
        ("etc/passwd", false),
    ];
    assert_eq!(shown, expected.map(|(path, link)| (path.to_owned(), link)));
}

#[test]
fn what_an_image_cannot_hold_is_refused_by_name() {
    use std::os::unix::ffi::OsStrExt;
    let socket = tree();
    let path = socket.path().join("etc/socket");
    let _listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    assert!(complaint(socket.path()).contains("etc/socket: sockets"));
    let fifo = tree();
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, fifo.path().join("fifo"), mode).unwrap();
    assert!(complaint(fifo.path()).contains("fifo: FIFOs"));
    let odd = tree();
    fs::write(odd.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
    assert!(complaint(odd.path()).contains("\\xff: it is not UTF-8"));
    let file = tree();
    assert!(complaint(&file.path().join("etc/passwd")).contains("open"));
    let noted = tree();
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::lsetxattr(noted.path().join("etc/passwd"), "user.note", b"1", flags).is_ok() {
        assert!(complaint(noted.path()).contains("user.note"));
    } else {
        eprintln!("skipped: the file system for temporary files has no attributes");
    }
    let device = tree();
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        device.path().join("null"),
        FileType::CharacterDevice,
        mode,
        rustix::fs::makedev(1, 3),
    );
    if made.is_ok() {
        assert!(complaint(device.path()).contains("null: device nodes"));
    } else {
        eprintln!("skipped: only root makes device nodes");
    }
}

#[test]
fn a_file_that_changed_while_it_was_read_is_refused() {
    let tree = tree();
    let path = tree.path().join("etc/passwd");
    let before = rustix::fs::stat(&path).unwrap();
    let read = || read_unchanged(File::open(&path).unwrap(), &before, 1 << 20, &path);
    assert_eq!(read().unwrap(), b"root");
    fs::write(&path, "rootkit").unwrap();
    assert!(matches!(read(), Err(DirectoryError::Changed(_))));
    // Another file in its place, of the same length.
    fs::write(tree.path().join("new"), "root").unwrap();
    let before = rustix::fs::stat(&path).unwrap();
    fs::rename(tree.path().join("new"), &path).unwrap();
    let error = read_unchanged(File::open(&path).unwrap(), &before, 1 << 20, &path);
    assert!(matches!(error, Err(DirectoryError::Changed(_))));
}
