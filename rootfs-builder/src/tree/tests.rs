//! What a survey tells apart, and what it refuses.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;

fn plant(root: &Path) {
    fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    fs::write(root.join("etc/passwd"), "root").unwrap();
    fs::write(root.join("etc.conf"), "").unwrap();
    symlink("../../../../etc/shadow", root.join("etc/escape")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
}

fn planted() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    plant(directory.path());
    directory
}

fn set_mode(path: PathBuf, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_digest_does_not_depend_on_the_place() {
    let (here, there) = (planted(), planted());
    let survey = survey(here.path()).unwrap();
    assert_eq!(survey, super::survey(there.path()).unwrap());
    assert_eq!((survey.entries, survey.bytes), (7, 4));
}

#[test]
fn the_digest_tells_every_change() {
    let changes: [fn(&Path); 6] = [
        |root| fs::write(root.join("etc/passwd"), "toor").unwrap(),
        |root| fs::rename(root.join("etc/passwd"), root.join("etc/passwe")).unwrap(),
        |root| set_mode(root.join("etc/passwd"), 0o4755),
        |root| set_mode(root.to_path_buf(), 0o701),
        |root| fs::create_dir(root.join("empty")).unwrap(),
        |root| {
            fs::remove_file(root.join("dangling")).unwrap();
            symlink("elsewhere", root.join("dangling")).unwrap();
        },
    ];
    let before = survey(planted().path()).unwrap().digest;
    for (number, change) in changes.iter().enumerate() {
        let directory = planted();
        change(directory.path());
        let after = survey(directory.path()).unwrap().digest;
        assert_ne!(before, after, "change {number}");
    }
}

#[test]
fn a_link_is_never_followed() {
    let directory = planted();
    symlink("/", directory.path().join("all")).unwrap();
    assert_eq!(survey(directory.path()).unwrap().entries, 8);
    let link = directory.path().join("all");
    assert!(matches!(survey(&link), Err(TreeError::NotADirectory(_))));
}

#[test]
fn a_socket_is_refused_by_name() {
    let directory = planted();
    let path = directory.path().join("etc/socket");
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = survey(directory.path()).unwrap_err().to_string();
    assert!(error.contains("etc/socket: sockets"), "{error}");
}

#[test]
fn a_fifo_is_kept_without_waiting_for_a_writer() {
    let directory = planted();
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, directory.path().join("fifo"), mode).unwrap();
    assert_eq!(survey(directory.path()).unwrap().entries, 8);
}

#[test]
fn a_device_node_is_refused_by_name() {
    let directory = planted();
    let path = directory.path().join("null");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::CharacterDevice,
        Mode::from_raw_mode(0o600),
        rustix::fs::makedev(1, 3),
    );
    if made.is_err() {
        eprintln!("skipped: only root makes device nodes");
        return;
    }
    let error = survey(directory.path()).unwrap_err().to_string();
    assert!(error.contains("null: device nodes"), "{error}");
}

#[test]
fn an_attribute_that_would_be_lost_is_refused() {
    let directory = planted();
    let path = directory.path().join("etc/passwd");
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::lsetxattr(&path, "user.note", b"1", flags).is_err() {
        eprintln!("skipped: the file system for temporary files has no attributes");
        return;
    }
    let error = survey(directory.path()).unwrap_err().to_string();
    assert!(error.contains("user.note"), "{error}");
}

#[test]
fn names_of_any_bytes_are_kept() {
    use std::os::unix::ffi::OsStrExt;
    let directory = planted();
    let name = std::ffi::OsStr::from_bytes(b"\xff\n-T0");
    fs::write(directory.path().join(name), "").unwrap();
    assert_eq!(survey(directory.path()).unwrap().entries, 8);
}
