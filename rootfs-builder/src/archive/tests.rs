//! The writer and the reader against each other, and the reader against
//! everything.

use super::*;
use proptest::prelude::*;

fn path(text: &str) -> EntryPath {
    text.parse().unwrap()
}

fn file(bytes: &[u8]) -> Entry {
    Entry {
        permissions: 0o644,
        content: Content::File(bytes.to_vec()),
    }
}

/// What the writer was given, as far as a member shows it.
fn to_entry(member: &Member<'_>) -> Entry {
    let content = match member.kind() {
        Kind::Directory => Content::Directory,
        Kind::File => Content::File(member.data.to_vec()),
        Kind::Symlink => Content::Symlink(String::from_utf8(member.data.to_vec()).unwrap()),
        Kind::CharacterDevice => Content::CharacterDevice {
            major: member.device.0,
            minor: member.device.1,
        },
        other => panic!("the writer never writes {other:?}"),
    };
    Entry {
        permissions: member.mode & 0o7777,
        content,
    }
}

fn any_content() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::Directory),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Content::File),
        "[^\0]{1,30}".prop_map(Content::Symlink),
        (any::<u32>(), any::<u32>())
            .prop_map(|(major, minor)| Content::CharacterDevice { major, minor }),
    ]
}

fn any_archive() -> impl Strategy<Value = Archive> {
    let entry = (
        "[a-c]{1,2}(/[a-cäß]{1,3}){0,3}",
        0u32..=0o7777,
        any_content(),
    );
    prop::collection::vec(entry, 0..20).prop_map(|entries| {
        let mut archive = Archive::default();
        for (path, permissions, content) in entries {
            // Duplicates and files used as directories are refused; so be it.
            let _ = archive.add(
                path.parse().unwrap(),
                Entry {
                    permissions,
                    content,
                },
            );
        }
        archive
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read(archive in any_archive(), modified: u32) {
        let bytes = archive.to_bytes(modified);
        prop_assert_eq!(bytes.len() % 4, 0);
        let read: Vec<_> = members(&bytes).collect::<Result<_, _>>().unwrap();
        let written: Vec<_> = archive.entries().collect();
        prop_assert_eq!(read.len(), written.len());
        for (member, (path, entry)) in read.iter().zip(written) {
            prop_assert_eq!(member.path, path.as_str().as_bytes());
            prop_assert_eq!(&to_entry(member), entry);
            prop_assert_eq!((member.user, member.group, member.modified), (0, 0, modified));
        }
    }

    #[test]
    fn a_directory_comes_before_what_lies_in_it(archive in any_archive()) {
        let mut seen = std::collections::BTreeSet::new();
        for (path, _) in archive.entries() {
            prop_assert!(path.parent().is_none_or(|parent| seen.contains(&parent)));
            seen.insert(path.clone());
        }
    }

    #[test]
    fn garbage_never_panics_and_ends(bytes: Vec<u8>) {
        let _ = members(&bytes).count();
    }

    #[test]
    fn a_damaged_archive_never_panics_and_ends(
        archive in any_archive(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut: prop::sample::Index,
    ) {
        let mut bytes = archive.to_bytes(0);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let members = members(&bytes).take(1 + bytes.len()).count();
        prop_assert!(members <= bytes.len() / HEADER_LENGTH + 1);
    }

    #[test]
    fn an_archive_cut_anywhere_is_an_error(archive in any_archive(), cut: prop::sample::Index) {
        let bytes = archive.to_bytes(0);
        let trailer_end = bytes.len() - padding(HEADER_LENGTH + TRAILER.len() + 1);
        let cut = &bytes[..cut.index(trailer_end)];
        let last = members(cut).last();
        prop_assert!(matches!(last, Some(Err(ReadError::Truncated(_)))), "{last:?}");
    }

    #[test]
    fn a_normal_path_has_no_way_out(text in "(/|\\.|a|\0){0,8}") {
        if let Ok(path) = text.parse::<EntryPath>() {
            let bad = path.as_str().split('/').any(|part| matches!(part, "" | "." | ".."));
            prop_assert!(!bad && !path.as_str().contains('\0'));
        }
    }
}

#[test]
fn the_same_entries_in_any_order_are_the_same_bytes() {
    let mut forth = Archive::default();
    forth.add(path("a/b"), file(b"1")).unwrap();
    forth.add(path("c"), file(b"2")).unwrap();
    let mut back = Archive::default();
    back.add(path("/c"), file(b"2")).unwrap();
    back.add(path("a/b"), file(b"1")).unwrap();
    assert_eq!(forth.to_bytes(7), back.to_bytes(7));
}

#[test]
fn a_refused_entry_leaves_the_archive_unchanged() {
    let mut archive = Archive::default();
    archive.add(path("a"), file(b"")).unwrap();
    let before = archive.clone();
    let below = archive.add(path("a/b/c"), file(b"")).unwrap_err();
    assert_eq!(below.to_string(), "add a/b/c: a is not a directory");
    archive.add(path("a"), file(b"")).unwrap_err();
    let mut loud = file(b"");
    loud.permissions = 0o10_000;
    archive.add(path("b"), loud).unwrap_err();
    let link = Entry {
        permissions: 0o777,
        content: Content::Symlink(String::new()),
    };
    archive.add(path("d/e"), link).unwrap_err();
    assert_eq!(archive, before);
}

#[test]
fn two_archives_in_a_row_are_one() {
    let mut first = Archive::default();
    first.add(path("a"), file(b"1")).unwrap();
    let mut second = Archive::default();
    second.add(path("b"), file(b"2")).unwrap();
    let mut bytes = first.to_bytes(0);
    bytes.extend_from_slice(&[0; 512]);
    bytes.extend(second.to_bytes(0));
    let paths: Vec<_> = members(&bytes).map(|member| member.unwrap().path).collect();
    assert_eq!(paths, [b"a", b"b"]);
    bytes.extend_from_slice(b"junk");
    let end = bytes.len() - 4;
    assert_eq!(members(&bytes).last(), Some(Err(ReadError::NoHeader(end))));
}

#[test]
fn a_size_beyond_the_archive_is_refused_without_allocation() {
    let mut archive = Archive::default();
    archive.add(path("a"), file(b"1")).unwrap();
    let mut bytes = archive.to_bytes(0);
    bytes[6 + 6 * 8..6 + 7 * 8].copy_from_slice(b"ffffffff");
    assert_eq!(members(&bytes).next(), Some(Err(ReadError::Truncated(0))));
    bytes[6 + 6 * 8..6 + 7 * 8].copy_from_slice(b"+0000001");
    assert_eq!(members(&bytes).next(), Some(Err(ReadError::Field(0))));
}
