//! CopyFile: files, directories and links below one directory, and nothing
//! outside it.

use crate::harness::{Calls, Guest, assert_refused, context};
use protocols::wire::agent;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use ttrpc::Code;

const SHARED: &str = "/run/kata-containers/shared/containers";
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

fn copy(path: &str, mode: u32, data: &[u8]) -> agent::CopyFileRequest {
    let mut request = agent::CopyFileRequest::new();
    request.path = format!("{SHARED}/{path}");
    request.file_mode = mode;
    request.file_size = i64::try_from(data.len()).unwrap();
    request.dir_mode = 0o750;
    (request.uid, request.gid) = (1000, 2000);
    request.data = data.into();
    request
}

impl Calls {
    async fn copy(&self, request: &agent::CopyFileRequest) -> ttrpc::Result<()> {
        self.0.copy_file(context(), request).await.map(drop)
    }
}

/// Where the tests see a copied file.
fn place(guest: &Guest, path: &str) -> PathBuf {
    guest.inside(&format!("{SHARED}/{path}"))
}

#[tokio::test]
async fn a_file_is_there_when_its_last_piece_is_and_not_before() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let whole = place(&guest, "made/on/the way.txt");
    let mut request = copy("made/on/the way.txt", REGULAR | 0o4755, b"hello, ");
    request.file_size = 13;
    calls.copy(&request).await.unwrap();
    assert!(!whole.exists());
    assert_eq!(fs::read_dir(whole.parent().unwrap()).unwrap().count(), 0);
    // A neighbour whose name differs after the last dot alone.
    calls
        .copy(&copy("made/on/the way.conf", REGULAR | 0o600, b"other"))
        .await
        .unwrap();
    request.offset = 7;
    request.data = b"world!".into();
    calls.copy(&request).await.unwrap();
    assert_eq!(fs::read(&whole).unwrap(), b"hello, world!");
    let found = fs::metadata(&whole).unwrap();
    // The set-user-id bit outlives the change of the owner.
    assert_eq!(
        (found.mode(), found.uid(), found.gid()),
        (REGULAR | 0o4755, 1000, 2000)
    );
    for made in ["made", "made/on"] {
        let made = fs::metadata(place(&guest, made)).unwrap();
        assert_eq!(
            (made.mode(), made.uid(), made.gid()),
            (DIRECTORY | 0o750, 1000, 2000)
        );
    }
    // A next file replaces it at once; those who have the old one open keep it.
    calls
        .copy(&copy("made/on/the way.txt", REGULAR | 0o600, b""))
        .await
        .unwrap();
    assert_eq!(fs::read(&whole).unwrap(), b"");
    let names = fs::read_dir(whole.parent().unwrap()).unwrap();
    assert_eq!(names.count(), 2);
}

#[tokio::test]
async fn directories_keep_what_is_in_them_and_links_replace_what_was_there() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    calls
        .copy(&copy("config/v1/key", REGULAR | 0o644, b"one"))
        .await
        .unwrap();
    calls
        .copy(&copy("config/v2/key", REGULAR | 0o644, b"two"))
        .await
        .unwrap();
    calls
        .copy(&copy("config", DIRECTORY | 0o1777, b""))
        .await
        .unwrap();
    assert_eq!(
        fs::metadata(place(&guest, "config")).unwrap().mode(),
        DIRECTORY | 0o1777
    );
    for (version, content) in [("v1", "one"), ("v2", "two")] {
        let data = version.as_bytes();
        calls
            .copy(&copy("config/..data", SYMLINK | 0o777, data))
            .await
            .unwrap();
        let link = place(&guest, "config/..data");
        assert_eq!(fs::read_link(&link).unwrap().to_str(), Some(version));
        assert_eq!(fs::symlink_metadata(&link).unwrap().uid(), 1000);
        assert_eq!(fs::read_to_string(link.join("key")).unwrap(), content);
    }
    // A container could have made the link: also one that stays inside is not
    // followed.
    let through = copy("config/..data/more", REGULAR | 0o644, b"x");
    assert_refused(
        calls.copy(&through).await,
        Code::INVALID_ARGUMENT,
        "through a symbolic link",
    );
    assert!(!place(&guest, "config/v2/more").exists());
    // Each kind takes the place of each other.
    for mode in [
        SYMLINK | 0o777,
        REGULAR | 0o600,
        SYMLINK | 0o777,
        DIRECTORY | 0o700,
    ] {
        calls
            .copy(&copy("config/v1", mode, b"target"))
            .await
            .unwrap();
        let found = fs::symlink_metadata(place(&guest, "config/v1")).unwrap();
        assert_eq!(found.mode() & !0o7777, mode & !0o7777);
    }
}

#[tokio::test]
async fn nothing_outside_the_directory_is_reached() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    calls
        .copy(&copy("here", REGULAR | 0o600, b""))
        .await
        .unwrap();
    let before = guest.traces();
    for path in [
        "/etc/passwd",
        "/run/kata-containers/shared/containers",
        "/run/kata-containers/shared/containers/",
        "/run/kata-containers/shared/containers/../up",
        "/run/kata-containers/shared/containers/a/../../up",
        "/run/kata-containers/shared/containers-not/a",
    ] {
        let mut request = copy("", REGULAR | 0o600, b"x");
        request.path = path.into();
        assert_refused(calls.copy(&request).await, Code::INVALID_ARGUMENT, "path");
    }
    assert_eq!(guest.traces(), before);
    for (link, target) in [
        ("absolute", "/run"),
        ("upward", "../.."),
        ("magic", "/proc/self/root"),
    ] {
        calls
            .copy(&copy(link, SYMLINK | 0o777, target.as_bytes()))
            .await
            .unwrap();
        let before = guest.traces();
        for path in [format!("{link}/file"), format!("{link}/made/file")] {
            let through = calls.copy(&copy(&path, REGULAR | 0o600, b"x")).await;
            assert_refused(through, Code::INVALID_ARGUMENT, "symbolic link");
        }
        assert_eq!(guest.traces(), before);
    }
}

#[tokio::test]
async fn what_is_no_piece_of_a_file_is_refused() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let before = guest.traces();
    // A socket, a device, a FIFO: also where their bits hold a link's.
    for mode in [0o140_000, 0o060_000, 0o020_000, 0o010_000, 0o130_000] {
        let refused = calls.copy(&copy("a", mode | 0o600, b"x")).await;
        assert_refused(refused, Code::UNIMPLEMENTED, "is not supported");
    }
    let mut request = copy("a", REGULAR | 0o600, b"xy");
    for (size, offset) in [(-1, 0), (2, -1), (2, 1), (1, 0), (2, i64::MAX)] {
        (request.file_size, request.offset) = (size, offset);
        let refused = calls.copy(&request).await;
        assert_refused(refused, Code::INVALID_ARGUMENT, "");
    }
    let mut request = copy("a", REGULAR | 0o600, b"");
    request.uid = -2;
    assert_refused(calls.copy(&request).await, Code::INVALID_ARGUMENT, "uid");
    let empty = copy("a", SYMLINK | 0o777, b"");
    assert_refused(
        calls.copy(&empty).await,
        Code::INVALID_ARGUMENT,
        "symbolic link",
    );
    assert_eq!(guest.traces(), before);
}
