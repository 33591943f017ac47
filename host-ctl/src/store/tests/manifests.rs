//! What tells templates apart, and what is counted of them.

use super::*;
use proptest::prelude::*;

#[test]
fn compare_names_the_field_and_both_values() {
    let mut wanted = requirements(1);
    assert_eq!(compare(&wanted, &requirements(1)).unwrap(), None);
    wanted.machine.disks[0].image = Some(Sha256::of(b"other"));
    let difference = compare(&wanted, &requirements(1)).unwrap().unwrap();
    assert_eq!(difference.field, "machine.disks[0].image");
    assert!(difference.wanted.contains(Sha256::of(b"other").as_str()));
    let text = CloneRefusal::from(difference).reason();
    assert!(text.starts_with("machine.disks[0].image differs"), "{text}");
}

fn any_requirements() -> impl Strategy<Value = Requirements> {
    (
        0u8..3,
        0u32..3,
        "[ab]{1,2}",
        proptest::collection::vec("[ab]", 0..3),
        any::<bool>(),
    )
        .prop_map(|(vcpus, memory_mib, version, args, readonly)| {
            let mut some = requirements(vcpus);
            some.machine.memory_mib = memory_mib;
            some.vmm.version = version;
            some.containers[0].args = args;
            some.machine.disks[0].readonly = readonly;
            some
        })
}

#[test]
fn cold_boots_are_counted_with_the_last_reason_until_the_template_is_gone() {
    let home = home();
    let template = build(&home.store, &requirements(1), &[]).template;
    let digest = template.digest();
    assert_eq!(home.store.cold_boots(digest).unwrap(), ColdBoots::default());
    home.store.count_cold_boot(digest, "first").unwrap();
    home.store
        .count_cold_boot(digest, &"x".repeat(1 << 20))
        .unwrap();
    let counted = home.store.cold_boots(digest).unwrap();
    assert_eq!(counted.count, 2);
    assert!(counted.last > 0 && counted.reason.len() < 1000);

    // What a power loss leaves of the record is begun anew.
    let record = home.directory.path().join("state/store/cold-boots");
    let record = record.join(digest.as_str());
    fs::write(&record, "").unwrap();
    home.store.count_cold_boot(digest, "again").unwrap();
    assert_eq!(home.store.cold_boots(digest).unwrap().count, 1);

    home.store.sweep().unwrap();
    assert!(record.exists());
    home.store.remove(digest).unwrap();
    assert!(!record.exists());
}

proptest! {
    #[test]
    fn requirements_differ_in_a_field_exactly_when_their_digests_differ(
        wanted in any_requirements(), have in any_requirements()
    ) {
        let difference = compare(&wanted, &have).unwrap();
        prop_assert_eq!(difference.is_none(), wanted == have);
        let same: bool = wanted.digest().unwrap() == have.digest().unwrap();
        prop_assert_eq!(difference.is_none(), same);
    }

    #[test]
    fn a_manifest_survives_its_file(some in any_requirements()) {
        let text = serde_json::to_vec(&some).unwrap();
        let back: Requirements = serde_json::from_slice(&text).unwrap();
        prop_assert_eq!(back.digest().unwrap(), some.digest().unwrap());
        prop_assert_eq!(back, some);
        let _: TemplateDigest = Sha256::of(&text).as_str().parse().unwrap();
    }
}
