//! Storages, mounted for real in a mount namespace of each test's own.

use super::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Runs `test` on a thread with a mount namespace of its own, in a directory
/// that is a tmpfs.
fn in_own_mounts(test: impl FnOnce(&Path) + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            guest_kernel::namespace::unshare_mount().unwrap();
            let private = rustix::mount::MountPropagationFlags::PRIVATE
                | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            test(directory.path());
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn spec(driver: &str, mount_point: PathBuf, options: &[&str]) -> StorageSpec {
    StorageSpec {
        driver: driver.into(),
        mount_point,
        options: options.iter().map(ToString::to_string).collect(),
        ..StorageSpec::default()
    }
}

#[test]
fn an_unknown_driver_is_refused_in_the_words_clients_know() {
    let error = mount_storage(&spec("9p", "/run/x".into(), &[])).unwrap_err();
    assert_eq!(error.to_string(), "Failed to find the storage handler 9p");
}

#[test]
fn a_mount_point_that_is_the_guests_own_is_refused() {
    for point in ["/", "/usr/bin", "/etc", "/run/../usr", "relative", "/dev/x"] {
        let error = mount_storage(&spec("local", point.into(), &[])).unwrap_err();
        assert!(matches!(error, StorageError::Unsupported { .. }), "{point}");
    }
}

#[test]
fn every_driver_has_a_name_that_is_found() {
    for name in DRIVERS {
        assert!(drivers::find(name).is_ok());
    }
}

#[test]
fn the_options_of_an_ephemeral_storage_count_and_it_leaves_nothing() {
    in_own_mounts(|directory| {
        let point = directory.join("a/b");
        let options = ["size=64k", "mode=700", "noexec", "fsgid=77"];
        let storage = mount_storage(&spec("ephemeral", point.clone(), &options)).unwrap();
        let stat = rustix::fs::statvfs(&point).unwrap();
        assert_eq!(stat.f_blocks * stat.f_frsize, 64 * 1024);
        assert!(stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC));
        let metadata = fs::metadata(&point).unwrap();
        assert_eq!((metadata.gid(), metadata.mode() & 0o7777), (77, 0o2700));
        fs::write(point.join("file"), "x").unwrap();
        storage.unmount().unwrap();
        storage.unmount().unwrap();
        assert!(!directory.join("a").exists());
    });
}

#[test]
fn an_overlay_is_mounted_over_directories_it_makes() {
    in_own_mounts(|directory| {
        fs::write(directory.join("outside"), "x").unwrap();
        let base = directory.join("base");
        let memory = spec("ephemeral", base.clone(), &[]);
        let memory = mount_storage(&memory).unwrap();
        let path = |name: &str| base.join(name).display().to_string();
        fs::create_dir(base.join("lower")).unwrap();
        fs::write(base.join("lower/file"), "lower").unwrap();
        let mut overlay = spec("overlayfs", directory.join("root"), &[]);
        overlay.driver_options = ["upper", "work"]
            .map(|name| {
                format!(
                    "io.katacontainers.volume.overlayfs.create_directory={}",
                    path(name)
                )
            })
            .into();
        // More layers than fsconfig(2) takes in one value.
        let empty = path(&"x".repeat(200));
        fs::create_dir(&empty).unwrap();
        let more = path(&"y".repeat(200));
        fs::create_dir(&more).unwrap();
        overlay.options = vec![
            format!("lowerdir={}:{empty}:{more}", path("lower")),
            format!("upperdir={}", path("upper")),
            format!("workdir={}", path("work")),
        ];
        let storage = mount_storage(&overlay).unwrap();
        let file = directory.join("root/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "lower");
        fs::write(&file, "upper").unwrap();
        assert_eq!(fs::read(base.join("lower/file")).unwrap(), b"lower");
        storage.unmount().unwrap();
        assert!(!directory.join("root").exists());
        memory.unmount().unwrap();
    });
}

#[test]
fn a_failed_storage_leaves_no_directory() {
    in_own_mounts(|directory| {
        let mut bad = spec("overlayfs", directory.join("x/y"), &["lowerdir=/missing"]);
        assert!(mount_storage(&bad).is_err());
        bad.driver_options = vec!["unknown=1".into()];
        assert!(mount_storage(&bad).is_err());
        assert!(mount_storage(&spec("ephemeral", directory.join("x"), &["size=?"])).is_err());
        let mut block = spec("blk", directory.join("x"), &[]);
        block.source = "/dev/null".into();
        block.fstype = "ext4".into();
        assert!(mount_storage(&block).is_err());
        assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    });
}

#[test]
fn a_local_storage_is_a_directory_that_is_kept_while_it_is_used() {
    in_own_mounts(|directory| {
        let point = directory.join("volume");
        let storage = mount_storage(&spec("local", point.clone(), &["mode=0750"])).unwrap();
        assert_eq!(fs::metadata(&point).unwrap().mode() & 0o7777, 0o750);
        fs::write(point.join("file"), "x").unwrap();
        storage.unmount().unwrap();
        assert!(point.join("file").exists());
    });
}

#[test]
fn a_shared_storage_stays() {
    in_own_mounts(|directory| {
        let point = directory.join("shared");
        let mut shared = spec("ephemeral", point.clone(), &[]);
        shared.shared = true;
        let storage = mount_storage(&shared).unwrap();
        fs::write(point.join("file"), "x").unwrap();
        storage.unmount().unwrap();
        assert!(point.join("file").exists());
    });
}

#[test]
fn a_bind_shows_a_directory_at_another_place() {
    in_own_mounts(|directory| {
        let source = directory.join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "x").unwrap();
        let mut bind = spec("bind", directory.join("there"), &["ro"]);
        bind.source = source.display().to_string();
        let storage = mount_storage(&bind).unwrap();
        let there = directory.join("there/file");
        assert_eq!(fs::read(&there).unwrap(), b"x");
        assert!(fs::write(&there, "y").is_err());
        storage.unmount().unwrap();
        assert!(!directory.join("there").exists());
    });
}

#[test]
fn what_is_mounted_already_is_left_alone_and_another_type_is_an_error() {
    in_own_mounts(|directory| {
        let point = directory.join("point");
        let first = mount_storage(&spec("ephemeral", point.clone(), &[])).unwrap();
        fs::write(point.join("file"), "x").unwrap();
        let second = mount_storage(&spec("ephemeral", point.clone(), &[])).unwrap();
        second.unmount().unwrap();
        assert!(point.join("file").exists());
        let error = mount_storage(&spec("overlayfs", point.clone(), &[])).unwrap_err();
        assert!(matches!(error, StorageError::Busy(_)));
        first.unmount().unwrap();
        assert!(!point.exists());
    });
}

fn size_of(point: &Path) -> u64 {
    let room = rustix::fs::statvfs(point).unwrap();
    room.f_blocks * room.f_frsize
}

#[test]
fn memory_is_resized_where_it_is_and_keeps_its_files_and_attributes() {
    in_own_mounts(|directory| {
        let point = directory.join("shm");
        let mut update = spec(
            "ephemeral",
            point.clone(),
            &["size=1m", "noexec", "mode=1777"],
        );
        update.fstype = "tmpfs".into();
        update_ephemeral(&update).unwrap();
        assert_eq!(size_of(&point), 1 << 20);
        fs::write(point.join("file"), "kept").unwrap();
        // Without the word it is left alone.
        update.options = vec!["size=2m".into()];
        update_ephemeral(&update).unwrap();
        assert_eq!(size_of(&point), 1 << 20);
        update.options = vec!["remount,size=2m".into(), "fsgid=7".into()];
        update_ephemeral(&update).unwrap();
        assert_eq!(size_of(&point), 2 << 20);
        assert_eq!(fs::read(point.join("file")).unwrap(), b"kept");
        assert_eq!(fs::metadata(&point).unwrap().mode() & 0o7777, 0o1777);
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = mounts
            .lines()
            .find(|line| line.contains(point.to_str().unwrap()));
        assert!(line.unwrap().contains("noexec"));
        update.options = vec!["remount".into(), "size=nonsense".into()];
        assert!(update_ephemeral(&update).is_err());
        assert_eq!(size_of(&point), 2 << 20);
    });
}

#[test]
fn an_update_is_of_memory_alone_and_without_options_makes_a_directory() {
    in_own_mounts(|directory| {
        let point = directory.join("plain");
        update_ephemeral(&spec("ephemeral", point.clone(), &[])).unwrap();
        assert!(point.is_dir());
        assert_eq!(tree::mounted_on(&point).unwrap(), None);
        let other = spec("local", point, &["mode=755"]);
        let error = update_ephemeral(&other).unwrap_err();
        assert!(matches!(error, StorageError::Unsupported { .. }));
    });
}

#[test]
fn what_is_not_stale_stays_mounted() {
    in_own_mounts(|directory| {
        let point = directory.join("memory");
        mount_storage(&spec("ephemeral", point.clone(), &[])).unwrap();
        detach_stale(directory).unwrap();
        assert_eq!(tree::mounts_below(directory).unwrap(), [point]);
    });
}
