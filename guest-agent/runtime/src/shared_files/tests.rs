//! Paths, pieces and places of copied files.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

const DIRECTORY: &str = "/run/kata-containers/shared/containers";

#[test]
fn only_a_path_below_the_directory_is_one() {
    let below = |path: &str| relative(DIRECTORY, path);
    assert_eq!(below(&format!("{DIRECTORY}/a/b.c")), Some("a/b.c".into()));
    for path in [
        DIRECTORY,
        "/run/kata-containers/shared/containersx/a",
        "/run/kata-containers/shared/containers/",
        "/run/kata-containers/shared/containers/../a",
        "/run/kata-containers/shared/containers/a/..",
        "/run/kata-containers/shared/containers/a//b",
        "/run/kata-containers/shared/containers/./a",
        "/run/kata-containers/shared/containers/a\0b",
        "run/kata-containers/shared/containers/a",
        "",
    ] {
        assert_eq!(below(path), None, "{path}");
    }
}

fn piece(path: &str, size: u64, offset: u64, data: &[u8]) -> SharedFile {
    SharedFile {
        path: path.into(),
        content: Content::Regular {
            size,
            offset,
            data: data.into(),
        },
        mode: 0o640,
        directory_mode: 0o750,
        uid: None,
        gid: None,
    }
}

#[test]
fn a_file_whose_pieces_stop_coming_leaves_nothing_and_gives_way() {
    let directory = tempfile::tempdir().unwrap();
    let files = SharedFiles::below(directory.path());
    for number in 0..UNFINISHED_MAX + 10 {
        files
            .place(&piece(&number.to_string(), 2, 0, b"a"))
            .unwrap();
    }
    assert_eq!(files.lock().len(), UNFINISHED_MAX);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    // The youngest is still known.
    let last = (UNFINISHED_MAX + 9).to_string();
    files.place(&piece(&last, 2, 1, b"b")).unwrap();
    let whole = std::fs::read(directory.path().join(last)).unwrap();
    assert_eq!(whole, b"ab");
}

#[test]
fn no_link_that_a_container_made_leads_a_file_to_its_neighbour() {
    let directory = tempfile::tempdir().unwrap();
    let files = SharedFiles::below(directory.path());
    let place = |path: &str| directory.path().join(path);
    files.place(&piece("theirs/file", 1, 0, b"a")).unwrap();
    std::fs::create_dir(place("mine")).unwrap();
    for (link, target) in [("up", "../theirs"), ("file", "../theirs/file")] {
        std::os::unix::fs::symlink(target, place("mine").join(link)).unwrap();
    }
    // On the way: refused.
    for path in ["mine/up/file", "mine/up/new", "mine/up/made/new"] {
        let refused = files.place(&piece(path, 1, 0, b"b")).unwrap_err();
        assert!(matches!(refused, SharedFileError::Link { .. }), "{refused}");
        let mut directory = piece(path, 0, 0, b"");
        directory.content = Content::Directory;
        assert!(files.place(&directory).is_err());
    }
    // At its end: replaced.
    files.place(&piece("mine/file", 1, 0, b"c")).unwrap();
    assert_eq!(std::fs::read(place("mine/file")).unwrap(), b"c");
    let mut own = piece("mine/up", 0, 0, b"");
    own.content = Content::Directory;
    files.place(&own).unwrap();
    assert!(place("mine/up").symlink_metadata().unwrap().is_dir());
    let theirs: Vec<_> = std::fs::read_dir(place("theirs")).unwrap().collect();
    assert_eq!(theirs.len(), 1);
    assert_eq!(std::fs::read(place("theirs/file")).unwrap(), b"a");
}

#[test]
fn a_container_that_swaps_a_directory_for_a_link_meanwhile_leads_nothing_astray() {
    use rustix::fs::{RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    /// At the least; and until something was placed and something refused, which
    /// on a busy machine may take many.
    const ROUNDS: usize = 500;
    const DEADLINE: Duration = Duration::from_secs(60);
    let inside = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let files = SharedFiles::below(inside.path());
    std::fs::create_dir(inside.path().join("a")).unwrap();
    std::os::unix::fs::symlink(outside.path(), inside.path().join("b")).unwrap();
    let done = AtomicBool::new(false);
    let (mut placed, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, b) = (inside.path().join("a"), inside.path().join("b"));
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let mut place = |path: String, content| {
            let mut file = piece(&path, 1, 0, b"x");
            file.content = content;
            match files.place(&file) {
                Ok(()) => placed += 1,
                Err(_) => refused += 1,
            }
            placed > 0 && refused > 0
        };
        let begun = Instant::now();
        for round in 0.. {
            let regular = piece("", 1, 0, b"x").content;
            place(format!("a/made{round}/file"), regular);
            place(format!("a/directory{round}"), Content::Directory);
            let target = "x".into();
            let both = place(format!("a/link{round}"), Content::Symlink { target });
            if round >= ROUNDS && both || begun.elapsed() > DEADLINE {
                break;
            }
            // Of one processor the other thread has its part as well.
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
    // Refused or inside: never outside.
    assert!(
        placed > 0 && refused > 0,
        "{placed} placed, {refused} refused"
    );
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn pieces_that_come_at_once_make_the_file() {
    const PIECE: usize = 64 * 1024;
    let directory = tempfile::tempdir().unwrap();
    let files = SharedFiles::below(directory.path());
    for round in 0..20 {
        let path = format!("file-{round}");
        std::thread::scope(|scope| {
            for number in 0..8_u8 {
                let (files, path) = (&files, &path);
                let offset = u64::from(number) * PIECE as u64;
                let data = vec![number; PIECE];
                scope.spawn(move || {
                    let piece = piece(path, 8 * PIECE as u64, offset, &data);
                    files.place(&piece).unwrap();
                });
            }
        });
        let whole = std::fs::read(directory.path().join(&path)).unwrap();
        assert_eq!(whole.len(), 8 * PIECE);
    }
}

proptest! {
    #[test]
    fn pieces_in_any_order_make_the_file(
        content in prop::collection::vec(any::<u8>(), 1..60),
        width in 1_usize..20,
        order in any::<prop::sample::Index>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let files = SharedFiles::below(directory.path());
        let mut pieces: Vec<_> = content.chunks(width).enumerate().collect();
        let first = order.index(pieces.len());
        pieces.rotate_left(first);
        let path = directory.path().join("a/file");
        for (number, data) in pieces {
            prop_assert!(!path.exists());
            let offset = (number * width) as u64;
            files.place(&piece("a/file", content.len() as u64, offset, data)).unwrap();
        }
        prop_assert_eq!(std::fs::read(path).unwrap(), content);
        prop_assert!(files.lock().is_empty());
    }

    #[test]
    fn ranges_are_all_of_a_size_once_every_byte_is_in(
        ranges in prop::collection::vec((0_u64..40, 0_u64..40), 0..12),
    ) {
        let mut known = Ranges::default();
        let mut bytes = [false; 40];
        for (start, end) in ranges {
            let (start, end) = (start.min(end), start.max(end));
            known.insert(start, end);
            bytes[start as usize..end as usize].fill(true);
        }
        prop_assert_eq!(known.are_all_of(40), bytes.iter().all(|byte| *byte));
        prop_assert!(known.0.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }
}
