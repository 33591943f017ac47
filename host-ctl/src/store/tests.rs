//! The store against real files: publishing, damage, races and a full disk.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::{TemplateDigest, TemplateName};
use crate::host::{Action, Finding, LockError};
use crate::timeline::Timeline;

mod inputs;
mod manifests;

const DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Home {
    directory: tempfile::TempDir,
    pub(super) store: Store,
}

impl Home {
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

pub(super) fn home() -> Home {
    let directory = tempfile::tempdir().unwrap();
    let paths = Paths::below(&directory.path().join("state")).unwrap();
    let store = Store::open(&paths).unwrap();
    Home { directory, store }
}

pub(super) fn requirements(vcpus: u8) -> Requirements {
    let image = Sha256::of(b"image");
    Requirements {
        format: FORMAT,
        owner: rustix::process::geteuid().as_raw(),
        vmm: SavedVmm {
            kind: "qemu".into(),
            version: "7.2.0".into(),
            program: image.clone(),
            accelerator: "tcg".into(),
            machine_type: "pc-q35-7.2".into(),
            cpu_model: "max".into(),
            cpu: None,
            tsc_khz: None,
        },
        machine: SavedMachine {
            vcpus,
            memory_mib: 256,
            kernel: image.clone(),
            initrd: image.clone(),
            cmdline: "quiet".into(),
            disks: vec![SavedDisk {
                id: "disk0".into(),
                image: Some(image),
                readonly: true,
            }],
            agent: SavedAgentDevice::Serial {
                port_name: "agent".into(),
            },
            nics: Vec::new(),
        },
        policy: "allow-all".into(),
        containers: vec![SavedContainer {
            id: "main".into(),
            disk: 0,
            args: vec!["redis-server".into()],
            env: Vec::new(),
            cwd: "/".into(),
        }],
        warm_up: SavedWarmUp::default(),
        origin: None,
    }
}

/// A staging directory as a VMM leaves it.
fn saved(store: &Store) -> Staging {
    let staging = store.stage().unwrap();
    let memory = fs::File::create(staging.memory()).unwrap();
    memory.set_len(64 << 20).unwrap();
    memory.write_all_at(b"touched", 5 << 20).unwrap();
    memory.write_all_at(&[7; 8192], 9 << 20).unwrap();
    fs::write(staging.path().join("state"), "devices").unwrap();
    staging
}

pub(super) fn build(store: &Store, requirements: &Requirements, blobs: &[Blob]) -> Published {
    let Claim::Build(lock) = store.claim(requirements, DEADLINE).unwrap() else {
        panic!("there is one already");
    };
    let draft = Draft {
        imported: None,
        agent_version: "0.1.0".into(),
        quiesce_id: [7; 16],
        blobs,
        memory_opened_for_writing: false,
    };
    store
        .publish(saved(store), &lock, &draft, &Timeline::new())
        .unwrap()
}

/// Changes bytes of a read-only file in place.
fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn removed(findings: &[Finding]) -> usize {
    let removed = |finding: &&Finding| finding.action == Action::Removed;
    findings.iter().filter(removed).count()
}

#[test]
fn a_published_template_is_found_checked_verified_and_read_only() {
    let home = home();
    let published = build(&home.store, &requirements(1), &[]);
    assert_eq!(published.touched_bytes, 3 * 4096);
    let digest = published.template.digest().clone();
    let name: TemplateName = "redis".parse().unwrap();
    home.store.set_name(&name, &digest).unwrap();
    for reference in ["redis", digest.as_str(), &digest.as_str()[..6]] {
        let template = home.store.find(reference).unwrap();
        assert_eq!(home.store.check(&template).unwrap(), Checked::default());
        let hashed = home.store.verify(&template).unwrap().hashed;
        assert_eq!(hashed, ["memory", "state"]);
    }
    // A VMM with a user of its own is given a descriptor, and opens that.
    let is_root = rustix::process::geteuid().is_root();
    let memory_mode = if is_root { 0o440 } else { 0o400 };
    for (file, mode) in [
        ("memory", memory_mode),
        ("state", 0o400),
        ("manifest.json", 0o400),
    ] {
        let found = fs::metadata(published.template.directory().join(file)).unwrap();
        assert_eq!(found.mode() & 0o7777, mode, "{file}");
    }
    assert_eq!(count(&home.store.staging()), 0);
    let [summary] = home.store.list().unwrap().try_into().unwrap();
    assert_eq!((summary.names, summary.refusal), (vec![name], None));
    assert!(summary.disk_bytes < 1 << 20, "{}", summary.disk_bytes);
}

#[test]
fn a_flipped_byte_is_found_even_when_the_times_are_set_back() {
    let home = home();
    let template = build(&home.store, &requirements(1), &[]).template;
    for file in ["memory", "state"] {
        let path = template.directory().join(file);
        let before = fs::metadata(&path).unwrap();
        let mut byte = [0];
        let offset = if file == "memory" { 9 << 20 } else { 3 };
        fs::File::open(&path)
            .unwrap()
            .read_exact_at(&mut byte, offset)
            .unwrap();
        for flipped in [byte[0] ^ 1, byte[0]] {
            overwrite(&path, offset, &[flipped]);
            let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
            fs::File::open(&path).unwrap().set_times(times).unwrap();
            let checked = home.store.check(&template);
            if flipped == byte[0] {
                // As it was again: hashed, and found whole.
                assert!(checked.unwrap().hashed.contains(&file.to_owned()));
            } else {
                let refusal = checked.unwrap_err();
                assert!(refusal.reason().contains("sha256"), "{}", refusal.reason());
                assert!(refusal.reason().contains(file), "{}", refusal.reason());
                assert!(home.store.verify(&template).is_err());
            }
        }
    }
}

#[test]
fn a_truncated_or_missing_file_is_found_by_the_cheap_check() {
    let home = home();
    let template = build(&home.store, &requirements(1), &[]).template;
    let memory = template.memory();
    fs::set_permissions(&memory, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&memory).unwrap();
    file.set_len(1 << 20).unwrap();
    assert!(matches!(
        home.store.check(&template),
        Err(CloneRefusal::Damaged {
            property: Property::Size,
            ..
        })
    ));
    fs::remove_file(&memory).unwrap();
    assert!(matches!(
        home.store.check(&template),
        Err(CloneRefusal::Missing(file)) if file == "memory"
    ));
}

#[test]
fn a_damaged_template_is_built_anew_in_its_place() {
    let home = home();
    let template = build(&home.store, &requirements(1), &[]).template;
    overwrite(&template.directory().join("state"), 0, b"x");
    let again = build(&home.store, &requirements(1), &[]).template;
    assert_eq!(again.digest(), template.digest());
    home.store.verify(&again).unwrap();
    assert_eq!(count(&home.store.staging()), 0);
}

#[test]
fn bytes_and_digests_rewritten_together_are_found_out() {
    let home = home();
    let template = build(&home.store, &requirements(1), &[]).template;
    let state = template.directory().join("state");
    overwrite(&state, 0, b"evil");
    let path = template.directory().join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let old = Sha256::of(b"devices").to_string();
    let new = Sha256::of(b"evilces").to_string();
    assert!(text.contains(&old));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, text.replace(&old, &new)).unwrap();
    assert!(matches!(
        home.store.load(template.digest()),
        Err(CloneRefusal::Forged)
    ));
}

#[test]
fn a_manifest_half_written_of_another_format_or_another_template_is_refused() {
    let home = home();
    let template = build(&home.store, &requirements(1), &[]).template;
    let other = build(&home.store, &requirements(2), &[]).template;
    let path = template.directory().join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let refusal = |text: &str| {
        fs::write(&path, text).unwrap();
        home.store.load(template.digest()).unwrap_err()
    };
    assert!(matches!(refusal(&text[..100]), CloneRefusal::Manifest(_)));
    let next = FORMAT + 1;
    let own = format!("\"format\": {FORMAT}");
    let later = text.replace(&own, &format!("\"format\": {next}, \"more\": true"));
    assert!(matches!(
        refusal(&later),
        CloneRefusal::Format { found, .. } if found == next
    ));
    let foreign = fs::read_to_string(other.directory().join("manifest.json")).unwrap();
    assert!(matches!(refusal(&foreign), CloneRefusal::Misplaced(_)));
}

#[test]
fn a_reference_to_nothing_is_not_found_and_a_short_one_may_be_ambiguous() {
    let home = home();
    for reference in ["nobody", "", "abc", "../../etc", "A"] {
        assert!(matches!(
            home.store.find(reference),
            Err(CloneRefusal::NotFound(_))
        ));
    }
    for last in ["0", "1"] {
        let digest = format!("abcd{}{last}", "0".repeat(59));
        fs::create_dir(home.store.templates().join(digest)).unwrap();
    }
    assert!(matches!(
        home.store.find("abcd"),
        Err(CloneRefusal::Ambiguous(_))
    ));
}

#[test]
fn of_two_builds_at_once_one_builds_and_the_other_uses_it() {
    let home = home();
    let store = &home.store;
    let outcomes: Vec<bool> = std::thread::scope(|scope| {
        let builds: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| match store.claim(&requirements(1), DEADLINE).unwrap() {
                    Claim::Existing(template) => {
                        store.verify(&template).unwrap();
                        false
                    }
                    Claim::Build(lock) => {
                        let draft = Draft {
                            imported: None,
                            agent_version: "0.1.0".into(),
                            quiesce_id: [1; 16],
                            blobs: &[],
                            memory_opened_for_writing: false,
                        };
                        let staging = saved(store);
                        store
                            .publish(staging, &lock, &draft, &Timeline::new())
                            .unwrap();
                        true
                    }
                })
            })
            .collect();
        builds
            .into_iter()
            .map(|build| build.join().unwrap())
            .collect()
    });
    assert_eq!(outcomes.iter().filter(|built| **built).count(), 1);
    assert_eq!(count(&store.templates()), 1);
}

#[test]
fn removing_leaves_no_name_and_no_file_but_what_is_open_stays() {
    let home = home();
    let template = build(&home.store, &requirements(1), &[]).template;
    let name: TemplateName = "redis".parse().unwrap();
    home.store.set_name(&name, template.digest()).unwrap();
    let open = fs::File::open(template.memory()).unwrap();
    home.store.remove(template.digest()).unwrap();
    let mut bytes = [0; 7];
    open.read_exact_at(&mut bytes, 5 << 20).unwrap();
    assert_eq!(&bytes, b"touched");
    assert!(home.store.named(&name).unwrap().is_none());
    assert_eq!(count(&home.store.templates()), 0);
    assert_eq!(count(&home.store.staging()), 0);
    assert!(matches!(
        home.store.remove(template.digest()),
        Err(StoreError::NotFound(_))
    ));
}

#[test]
fn a_template_that_is_being_built_is_not_removed() {
    let home = home();
    let Claim::Build(_lock) = home.store.claim(&requirements(1), DEADLINE).unwrap() else {
        panic!("there is one already");
    };
    let digest = requirements(1).digest().unwrap();
    assert!(matches!(
        home.store.remove(&digest),
        Err(StoreError::Lock(LockError::Held { .. }))
    ));
}

#[test]
fn an_empty_staging_directory_is_not_published() {
    let home = home();
    let Claim::Build(lock) = home.store.claim(&requirements(1), DEADLINE).unwrap() else {
        panic!("there is one already");
    };
    let draft = Draft {
        imported: None,
        agent_version: String::new(),
        quiesce_id: [0; 16],
        blobs: &[],
        memory_opened_for_writing: false,
    };
    let staging = home.store.stage().unwrap();
    let refused = home.store.publish(staging, &lock, &draft, &Timeline::new());
    assert!(matches!(refused, Err(StoreError::Empty(_))));
    assert_eq!(
        count(&home.store.staging()) + count(&home.store.templates()),
        0
    );
}

/// On a filesystem of 1 MiB: an import and a publication that do not fit.
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let test = "a_full_disk_is_an_error_and_leaves_nothing";
    let Some(small) = crate::own_root::small_disk(module_path!(), test) else {
        return;
    };
    let store = Store::open(&Paths::below(&small.join("state")).unwrap()).unwrap();
    let large = tempfile::NamedTempFile::new().unwrap();
    fs::write(large.path(), vec![1u8; 3 << 20]).unwrap();
    let full = store.import(large.path()).unwrap_err();
    assert!(
        crate::host::explain(&full).contains("No space left"),
        "{full:?}"
    );
    assert_eq!(count(&store.blobs()) + count(&store.staging()), 0);

    let Claim::Build(lock) = store.claim(&requirements(1), DEADLINE).unwrap() else {
        panic!("there is one already");
    };
    let staging = saved(&store);
    let filler = small.join("filler");
    // Whatever is left; the write that fails is the point.
    let _ = fs::write(&filler, vec![1u8; 2 << 20]);
    let draft = Draft {
        imported: None,
        agent_version: String::new(),
        quiesce_id: [0; 16],
        blobs: &[],
        memory_opened_for_writing: false,
    };
    assert!(
        store
            .publish(staging, &lock, &draft, &Timeline::new())
            .is_err()
    );
    assert_eq!(count(&store.templates()) + count(&store.staging()), 0);
    fs::remove_file(filler).unwrap();
    store
        .publish(saved(&store), &lock, &draft, &Timeline::new())
        .unwrap();
}
