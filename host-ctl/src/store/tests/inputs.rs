//! What is kept of a template's images, and what sweeps remove.

use super::*;

#[test]
fn an_unchanged_input_is_kept_once_and_hashed_once() {
    let home = home();
    let source = home.path().join("vmlinuz");
    fs::write(&source, "kernel").unwrap();
    let settled = std::time::SystemTime::now() - Duration::from_secs(3600);
    let times = fs::FileTimes::new().set_modified(settled);
    fs::File::open(&source).unwrap().set_times(times).unwrap();
    let first = home.store.import(&source).unwrap();
    let second = home.store.import(&source).unwrap();
    assert_eq!(first.path(), second.path());
    assert_eq!(first.sha256(), &Sha256::of(b"kernel"));
    assert_eq!(fs::read(first.path()).unwrap(), b"kernel");
    assert_eq!(count(&home.store.blobs()), 1);
    fs::write(&source, "kernel 2").unwrap();
    let third = home.store.import(&source).unwrap();
    assert_eq!(third.sha256(), &Sha256::of(b"kernel 2"));
}

#[test]
fn a_damaged_blob_is_replaced_by_the_next_import() {
    let home = home();
    let source = home.path().join("vmlinuz");
    fs::write(&source, "kernel").unwrap();
    let path = home.store.import(&source).unwrap().path().to_owned();
    overwrite(&path, 0, b"x");
    let again = home.store.import(&source).unwrap();
    assert_eq!(fs::read(again.path()).unwrap(), b"kernel");
}

#[test]
fn only_regular_files_are_kept() {
    let home = home();
    let refused = home.store.import(Path::new("/dev/null"));
    assert!(matches!(refused, Err(StoreError::NotRegular(_))));
    let refused = home.store.import(&home.path().join("absent"));
    assert!(matches!(refused, Err(StoreError::Call(_))));
}

#[test]
fn gc_removes_blobs_that_nobody_names_or_uses_and_no_other() {
    let home = home();
    let blob = |name: &str| {
        let source = home.path().join(name);
        fs::write(&source, name).unwrap();
        home.store.import(&source).unwrap()
    };
    let named = [blob("named")];
    let template = build(&home.store, &requirements(1), &named).template;
    let in_use = blob("in use");
    drop(blob("forgotten"));
    drop(named);
    assert_eq!(removed(&home.store.sweep().unwrap()), 1);
    assert_eq!(count(&home.store.blobs()), 2);
    home.store.verify(&template).unwrap();
    drop(in_use);
    home.store.remove(template.digest()).unwrap();
    assert_eq!(removed(&home.store.sweep().unwrap()), 2);
    assert_eq!(count(&home.store.blobs()), 0);
    assert_eq!(count(&home.store.hashes()), 0);
}

#[test]
fn gc_removes_what_a_dead_build_left_and_nothing_of_a_live_one() {
    let home = home();
    let live = saved(&home.store);
    let dead = home.store.staging().join("0123");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("memory"), "half").unwrap();
    assert_eq!(removed(&home.store.sweep().unwrap()), 1);
    assert!(live.memory().exists() && !dead.exists());
    live.discard().unwrap();
    assert_eq!(count(&home.store.staging()), 0);
}

#[test]
fn builds_and_removals_live_beside_sweeps_in_a_loop() {
    let home = home();
    let (store, directory) = (&home.store, home.path());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                store.sweep().unwrap();
            }
        });
        let builders: Vec<_> = (1..=2)
            .map(|vcpus| {
                scope.spawn(move || {
                    let source = directory.join(format!("kernel-{vcpus}"));
                    fs::write(&source, [vcpus]).unwrap();
                    for _ in 0..8 {
                        let blob = store.import(&source).unwrap();
                        let template = build(store, &requirements(vcpus), &[blob]).template;
                        store.verify(&template).unwrap();
                        store.remove(template.digest()).unwrap();
                    }
                })
            })
            .collect();
        let outcomes: Vec<_> = builders
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        sweeper.join().unwrap();
        assert!(outcomes.iter().all(Result::is_ok));
    });
}
