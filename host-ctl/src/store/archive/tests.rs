//! Archives between two stores, and archives of somebody who means no good.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::chunks::{Reader, Writer};
use super::contents::{Contents, Entry};
use super::*;
use crate::store::tests::{Home, build, home, requirements};
use crate::store::{Blob, Claim, Hashing, Requirements, SavedImport, Sha256, Store, Template};
use std::time::Duration;

/// More than any template here takes.
const ROOMY: u64 = 1 << 30;

fn secret(byte: u8) -> ArchiveKey {
    ArchiveKey::of([byte; 32])
}

fn protections() -> [(Protection, Trust); 3] {
    [
        (Protection::Encrypted(secret(1)), Trust::Key(secret(1))),
        (Protection::Signed(secret(1)), Trust::Key(secret(1))),
        (Protection::Plain, Trust::Anybody),
    ]
}

/// A store with a template of a machine of 64 MiB.
fn exporter() -> (Home, Template) {
    let home = home();
    let image = image(&home);
    let template = build(&home.store, &small(), &[image]).template;
    (home, template)
}

fn image(home: &Home) -> Blob {
    let path = home.path().join("image");
    fs::write(&path, b"image").unwrap();
    home.store.import(&path).unwrap()
}

fn small() -> Requirements {
    let mut requirements = requirements(1);
    requirements.machine.memory_mib = 64;
    requirements
}

fn is_empty(store: &Store) -> bool {
    let count = |directory: PathBuf| fs::read_dir(directory).unwrap().count();
    count(store.templates()) == 0 && count(store.staging()) == 0
}

#[test]
fn a_template_is_the_same_in_another_store_however_it_was_protected() {
    let (from, template) = exporter();
    for (number, (protection, trust)) in protections().into_iter().enumerate() {
        let archive = from.path().join(format!("archive-{number}"));
        let size = from.store.export(&template, &archive, &protection).unwrap();
        let found = fs::metadata(&archive).unwrap();
        assert_eq!((found.len(), found.mode() & 0o7777), (size, 0o600));
        // 64 MiB with a few pages that are not zero.
        assert!(size < 1 << 20, "{size}");
        // It is not written over.
        assert!(from.store.export(&template, &archive, &protection).is_err());

        let to = home();
        let imported = to
            .store
            .import_template(&archive, &trust, false, ROOMY, |_| false);
        let imported = imported.unwrap();
        assert!(!imported.existing);
        assert_eq!(imported.shared_with, None);
        assert_eq!(imported.template.digest(), template.digest());
        to.store.verify(&imported.template).unwrap();
        for file in ["memory", "state"] {
            let [theirs, ours] = [&template, &imported.template]
                .map(|template| fs::read(template.directory().join(file)).unwrap());
            assert!(theirs == ours, "{file}");
        }
        let blocks = fs::metadata(imported.template.memory()).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "its holes are holes");
        let again = to
            .store
            .import_template(&archive, &trust, false, ROOMY, |_| false);
        assert!(!again.unwrap().existing);
    }
}

#[test]
fn an_encrypted_archive_shows_nothing_and_a_signed_one_is_readable() {
    let (from, template) = exporter();
    let contains = |archive: &Path, text: &[u8]| {
        let bytes = fs::read(archive).unwrap();
        bytes.windows(text.len()).any(|window| window == text)
    };
    for (protection, _) in protections() {
        let archive = from.path().join("archive");
        from.store.export(&template, &archive, &protection).unwrap();
        let readable = !matches!(protection, Protection::Encrypted(_));
        for secret in [&b"redis-server"[..], b"touched", b"devices"] {
            assert_eq!(contains(&archive, secret), readable, "{protection:?}");
        }
        fs::remove_file(&archive).unwrap();
    }
}

#[test]
fn only_who_has_the_key_is_believed() {
    let (from, template) = exporter();
    let to = home();
    let refused = |protection: &Protection, trust: &Trust| {
        let archive = from.path().join("archive");
        from.store.export(&template, &archive, protection).unwrap();
        let refusal = to
            .store
            .import_template(&archive, trust, true, ROOMY, |_| false);
        fs::remove_file(&archive).unwrap();
        assert!(is_empty(&to.store));
        refusal.unwrap_err()
    };
    let [encrypted, signed, plain] = protections().map(|(protection, _)| protection);
    let other = Trust::Key(secret(2));
    assert!(matches!(refused(&encrypted, &other), ArchiveError::Forged));
    assert!(matches!(refused(&signed, &other), ArchiveError::Forged));
    for (protection, trust) in [(&plain, &other), (&encrypted, &Trust::Anybody)] {
        let error = refused(protection, trust);
        assert!(matches!(error, ArchiveError::Untrusted(_)), "{error}");
    }
}

#[test]
fn a_signed_archive_that_is_called_plain_or_encrypted_is_not_believed() {
    let (from, template) = exporter();
    let to = home();
    let archive = from.path().join("archive");
    let signed = Protection::Signed(secret(1));
    from.store.export(&template, &archive, &signed).unwrap();
    for letter in [b'p', b'e', b'x'] {
        let file = File::options().write(true).open(&archive).unwrap();
        file.write_all_at(&[letter], MAGIC.len() as u64).unwrap();
        let trust = Trust::Key(secret(1));
        let refused = to
            .store
            .import_template(&archive, &trust, false, ROOMY, |_| false);
        assert!(refused.is_err(), "{letter}");
    }
    assert!(is_empty(&to.store));
}

/// What an archive of [`small`] says of itself, and the bytes of its files.
fn honest() -> (Contents, Vec<Vec<u8>>) {
    let mut memory = vec![0; 64 << 20];
    memory[5000..5007].copy_from_slice(b"touched");
    let bytes = vec![memory, b"devices".to_vec(), b"image".to_vec()];
    let pages = {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes[0], 0).unwrap();
        crate::store::check::hash_file(&file, Hashing::Pages)
            .unwrap()
            .0
    };
    let entry = |name: &str, bytes: &[u8]| Entry {
        name: name.to_owned(),
        size: bytes.len() as u64,
        hashing: Hashing::Whole,
        sha256: Sha256::of(bytes),
    };
    let mut own = entry("memory", &bytes[0]);
    (own.hashing, own.sha256) = (Hashing::Pages, pages);
    let image = Sha256::of(b"image");
    let contents = Contents {
        requirements: small(),
        agent_version: "0.1.0".to_owned(),
        quiesce_id: "07".repeat(16),
        memory_opened_for_writing: false,
        files: vec![own, entry("state", &bytes[1])],
        blobs: vec![entry(image.as_str(), &bytes[2])],
    };
    (contents, bytes)
}

/// A plain archive.
fn archive(contents: &Contents, files: &[Vec<u8>], rest: &[u8]) -> tempfile::NamedTempFile {
    let archive = tempfile::NamedTempFile::new().unwrap();
    let mut out = Writer::begin(archive.reopen().unwrap(), &Protection::Plain).unwrap();
    let text = serde_json::to_vec(contents).unwrap();
    let length = u32::try_from(text.len()).unwrap();
    out.write_all(&length.to_be_bytes()).unwrap();
    out.write_all(&text).unwrap();
    for bytes in files {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        runs::write(&file, bytes.len() as u64, &mut out).unwrap();
    }
    out.write_all(rest).unwrap();
    out.finish().unwrap();
    archive
}

fn import(archive: &tempfile::NamedTempFile, share: bool) -> Result<Imported, ArchiveError> {
    let to = home();
    let imported = to
        .store
        .import_template(archive.path(), &Trust::Anybody, share, ROOMY, |_| false);
    assert_eq!(imported.is_err(), is_empty(&to.store));
    assert_eq!(
        fs::read_dir(to.path()).unwrap().count(),
        1,
        "only its state"
    );
    imported
}

#[test]
fn another_owners_template_is_taken_only_to_be_shared_and_is_ours_then() {
    let (mut contents, files) = honest();
    import(&archive(&contents, &files, b""), false).unwrap();
    let user = contents.requirements.owner;
    contents.requirements.owner = user + 1;
    let archive = archive(&contents, &files, b"");
    let refused = import(&archive, false).unwrap_err();
    assert!(matches!(refused, ArchiveError::Owner { .. }));
    let told = refused.to_string();
    for leak in ["cache", "addresses", "canaries", "tcp sequence", "--share"] {
        assert!(told.contains(leak), "{leak}: {told}");
    }
    let imported = import(&archive, true).unwrap();
    assert_eq!(imported.shared_with, Some(user + 1));
    assert_eq!(imported.template.manifest().requirements.owner, user);
}

#[test]
fn what_an_archive_has_brought_is_never_taken_for_what_was_built_here() {
    let (contents, files) = honest();
    let to = home();
    let archive = archive(&contents, &files, b"");
    let import = || {
        to.store
            .import_template(archive.path(), &Trust::Anybody, false, ROOMY, |_| false)
    };
    let first = import().unwrap();
    let manifest = first.template.manifest();
    let owner = contents.requirements.owner;
    assert_eq!(manifest.imported, Some(SavedImport { owner }));
    // A build of just this makes its own, and another archive replaces it.
    let claimed = to.store.claim(&contents.requirements, Duration::ZERO);
    assert!(matches!(claimed.unwrap(), Claim::Build(_)));
    assert!(!import().unwrap().existing);
    // It can be woken by who asks for it.
    to.store
        .check(&to.store.load(first.template.digest()).unwrap())
        .unwrap();
}

#[test]
fn what_cannot_be_a_templates_is_refused_before_a_file_is_made() {
    type Change = fn(&mut Contents);
    let changes: [(&str, Change); 16] = [
        ("a path", |contents| {
            contents.files[1].name = "../../x".into();
        }),
        ("another", |contents| contents.files[1].name = "a/b".into()),
        ("absolute", |contents| {
            contents.files[1].name = "/etc/x".into();
        }),
        ("dots", |contents| contents.files[1].name = "..".into()),
        ("hidden", |contents| contents.files[1].name = ".x".into()),
        ("no name", |contents| contents.files[1].name = String::new()),
        ("a zero", |contents| contents.files[1].name = "a\0".into()),
        ("the manifest", |contents| {
            contents.files[1].name = "manifest.json".into();
        }),
        ("twice", |contents| {
            contents.files[1] = contents.files[0].clone();
        }),
        ("no state", |contents| {
            contents.files.pop();
        }),
        ("long memory", |contents| contents.files[0].size += 1),
        ("endless", |contents| contents.files[1].size = u64::MAX),
        ("a blob's name", |contents| {
            contents.blobs[0].name = "../../key".into();
        }),
        ("a blob too many", |contents| {
            let mut other = contents.blobs[0].clone();
            other.sha256 = Sha256::of(b"other");
            other.name = other.sha256.to_string();
            contents.blobs.push(other);
        }),
        ("no disk", |contents| {
            contents.requirements.containers[0].disk = 1;
        }),
        ("another format", |contents| {
            contents.requirements.format += 1;
        }),
    ];
    for (what, change) in changes {
        let (mut contents, files) = honest();
        change(&mut contents);
        let refused = import(&archive(&contents, &files, b""), false).unwrap_err();
        assert!(
            matches!(refused, ArchiveError::Contents(_)),
            "{what}: {refused}"
        );
    }
}

#[test]
fn a_file_that_is_not_what_it_says_or_something_after_it_leaves_nothing() {
    let (contents, files) = honest();
    for changed in 0..files.len() {
        let mut files = files.clone();
        files[changed][0] ^= 1;
        let refused = import(&archive(&contents, &files, b""), false).unwrap_err();
        assert!(matches!(refused, ArchiveError::Damaged(_)), "{refused}");
    }
    let refused = import(&archive(&contents, &files, b"more"), false).unwrap_err();
    assert!(matches!(refused, ArchiveError::Contents(_)), "{refused}");
    let cut = &files[..2];
    let refused = import(&archive(&contents, cut, b""), false).unwrap_err();
    assert!(matches!(refused, ArchiveError::Stream(..)), "{refused}");
}

#[test]
fn no_more_disk_is_taken_than_was_allowed() {
    let (contents, files) = honest();
    let archive = archive(&contents, &files, b"");
    let to = home();
    let declared = contents.check().unwrap();
    for (limit, fits) in [(declared - 1, false), (declared, true)] {
        let imported =
            to.store
                .import_template(archive.path(), &Trust::Anybody, false, limit, |_| false);
        assert_eq!(imported.is_ok(), fits);
        assert_eq!(is_empty(&to.store), !fits);
    }
}

#[test]
fn a_key_is_64_digits_in_a_file_that_no_other_may_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let key = |text: &str, mode| {
        let _ = fs::remove_file(&path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        ArchiveKey::read(&path)
    };
    let digits = "0a".repeat(32);
    assert!(key(&digits, 0o600).is_ok());
    assert!(key(&format!("{digits}\n"), 0o400).is_ok());
    for (text, mode) in [
        (digits.as_str(), 0o640),
        (&digits, 0o604),
        (&digits[1..], 0o600),
        (&format!("{digits}00"), 0o600),
        ("secret", 0o600),
        ("", 0o600),
    ] {
        let refused = key(text, mode).unwrap_err();
        assert!(matches!(refused, ArchiveError::Key { .. }), "{refused}");
        assert!(!refused.to_string().contains(&digits[1..]), "{refused}");
    }
}

fn sealed(bytes: &[u8], protection: &Protection) -> Vec<u8> {
    let mut out = Writer::begin(Vec::new(), protection).unwrap();
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn opened(archive: &[u8]) -> Option<Vec<u8>> {
    let (_, mut reader) = Reader::begin(archive, Some(&secret(1))).ok()?;
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn any_protection() -> impl Strategy<Value = Protection> {
    prop_oneof![
        Just(Protection::Encrypted(secret(1))),
        Just(Protection::Signed(secret(1))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_survive_their_chunks(
        length in prop_oneof![0_usize..10, 65_530_usize..65_545, 131_060_usize..131_080],
        protection in any_protection(),
    ) {
        let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        prop_assert_eq!(opened(&sealed(&bytes, &protection)), Some(bytes));
    }

    #[test]
    fn no_byte_can_be_changed_and_no_end_cut_off(
        length in prop_oneof![1_usize..10, 65_536_usize..65_538, 131_072_usize..131_074],
        at in any::<prop::sample::Index>(),
        flip in 1_u8..,
        protection in any_protection(),
    ) {
        let archive = sealed(&vec![7; length], &protection);
        let mut changed = archive.clone();
        changed[at.index(archive.len())] ^= flip;
        prop_assert_eq!(opened(&changed), None);
        prop_assert_eq!(opened(&archive[..at.index(archive.len())]), None);
    }

    #[test]
    fn chunks_cannot_change_places(protection in any_protection()) {
        let bytes: Vec<u8> = (0..3 * (64 << 10)).map(|at: usize| (at >> 16) as u8).collect();
        let archive = sealed(&bytes, &protection);
        let head = MAGIC.len() + 1 + SALT;
        let chunk = (archive.len() - head) / 3;
        let mut changed = archive[..head].to_vec();
        for number in [1, 0, 2] {
            changed.extend(&archive[head + number * chunk..][..chunk]);
        }
        prop_assert_eq!(opened(&changed), None);
        let without: Vec<u8> = [&archive[..head + chunk], &archive[head + 2 * chunk..]].concat();
        prop_assert_eq!(opened(&without), None);
    }

    #[test]
    fn no_bytes_make_an_import_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut archive = tempfile::NamedTempFile::new().unwrap();
        for head in [&b""[..], MAGIC, b"tardigrade template 1\np"] {
            archive.as_file().set_len(0).unwrap();
            archive.as_file().write_all_at(head, 0).unwrap();
            archive.as_file().write_all_at(&bytes, head.len() as u64).unwrap();
            prop_assert!(import(&archive, true).is_err());
        }
        archive.flush().unwrap();
    }

    #[test]
    fn a_file_survives_its_runs(
        pieces in prop::collection::vec((any::<bool>(), 1_usize..100_000), 0..6),
    ) {
        let mut bytes = Vec::new();
        for (zero, length) in pieces {
            bytes.resize(bytes.len() + length, if zero { 0 } else { 9 });
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let size = bytes.len() as u64;
        let mut runs = Vec::new();
        runs::write(&file, size, &mut runs).unwrap();
        let copy = tempfile::tempfile().unwrap();
        runs::read(&mut runs.as_slice(), size, &copy).unwrap().unwrap();
        let mut found = vec![1; bytes.len()];
        copy.read_exact_at(&mut found, 0).unwrap();
        prop_assert_eq!(copy.metadata().unwrap().len(), size);
        prop_assert!(found == bytes);
    }

    #[test]
    fn no_runs_write_beyond_the_file(runs in prop::collection::vec(any::<u8>(), 0..100)) {
        let file = tempfile::tempfile().unwrap();
        let _ = runs::read(&mut runs.as_slice(), 64, &file);
        prop_assert_eq!(file.metadata().unwrap().len(), 64);
    }
}

#[test]
fn whether_the_memory_is_written_to_is_a_matter_of_the_vmm_here() {
    for (theirs, ours) in [(true, false), (false, true)] {
        let (mut contents, files) = honest();
        contents.memory_opened_for_writing = theirs;
        let archive = archive(&contents, &files, b"");
        let home = home();
        let imported =
            home.store
                .import_template(archive.path(), &Trust::Anybody, false, ROOMY, |kind| {
                    assert_eq!(kind, "qemu");
                    ours
                });
        let memory = imported.unwrap().template.memory();
        let mode = std::fs::metadata(memory).unwrap().permissions().mode();
        assert_eq!(mode & 0o200 != 0, ours, "{mode:o}");
    }
}
