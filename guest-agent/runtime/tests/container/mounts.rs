//! The tree a container sees.

use crate::fixture::{bind, mount, run, shell};
use guest_runtime::container::{ContainerSpec, CreateError, IdentityFiles, LaunchError, Step};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn masked_directories_are_empty_and_masked_files_read_as_empty() {
    run(|fixture| async move {
        fs::create_dir(fixture.root().join("data/secret")).unwrap();
        fs::write(fixture.root().join("data/secret/file"), "x").unwrap();
        fs::write(fixture.root().join("data/file"), "x").unwrap();
        let script = "ls -A /data/secret /proc/irq; cat /data/file /proc/timer_list; \
                      touch /data/secret/new 2>/dev/null || echo refused";
        let mut spec = fixture.spec(shell(script));
        spec.masked_paths = [
            "/data/secret",
            "/data/file",
            "/proc/timer_list",
            "/proc/irq",
            "/no/such",
        ]
        .map(Into::into)
        .into();
        let (_, said, stderr) = fixture.output(&spec).await;
        assert_eq!(said, "/data/secret:\n\n/proc/irq:\nrefused\n", "{stderr}");
        assert!(fixture.root().join("data/secret/file").exists());
    });
}

#[test]
fn a_readonly_path_is_read_only_and_what_is_mounted_below_it_too() {
    run(|fixture| async move {
        let script = "touch /data/a 2>/dev/null || echo a; touch /data/sub/b 2>/dev/null || echo b; \
                      echo 1 > /proc/sys/kernel/hostname 2>/dev/null || echo c; touch /tmp/d && echo d";
        let mut spec = fixture.spec(shell(script));
        spec.mounts.push(mount("/data/sub", "tmpfs", &[]));
        spec.readonly_paths = ["/data", "/proc/sys", "/no/such"].map(Into::into).into();
        let (_, said, _) = fixture.output(&spec).await;
        assert_eq!(said, "a\nb\nc\nd\n");
    });
}

#[test]
fn a_readonly_root_is_read_only() {
    run(|fixture| async move {
        let mut spec = fixture.spec(shell("touch /data/a || echo refused; touch /dev/shm/b"));
        spec.root.readonly = true;
        let (status, said, _) = fixture.output(&spec).await;
        assert_eq!((status, said.as_str()), (0, "refused\n"));
        assert!(!fixture.root().join("data/a").exists());
    });
}

#[test]
fn the_guests_mounts_are_out_of_reach() {
    run(|fixture| async move {
        let said = fixture.say("cat /proc/self/mounts").await;
        let points: Vec<&str> = said
            .lines()
            .map(|line| line.split(' ').nth(1).unwrap())
            .collect();
        let devices = ["null", "zero", "full", "random", "urandom", "tty"];
        let mut expected: Vec<String> = [
            "/",
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
        ]
        .map(Into::into)
        .into();
        expected.extend(devices.map(|name| format!("/dev/{name}")));
        expected.sort();
        let mut points: Vec<String> = points.into_iter().map(Into::into).collect();
        points.sort();
        assert_eq!(points, expected);
    });
}

#[test]
fn no_container_writes_its_cgroup() {
    run(|fixture| async move {
        let script = "test -e /sys/fs/cgroup/cgroup.procs && echo there; \
                      echo 0 2>/dev/null > /sys/fs/cgroup/cgroup.freeze || echo refused; \
                      mkdir /sys/fs/cgroup/x 2>/dev/null || echo refused";
        assert_eq!(fixture.say(script).await, "there\nrefused\nrefused\n");
    });
}

#[test]
fn identity_files_are_shown_follow_a_thaw_and_cannot_be_written() {
    run(|fixture| async move {
        let file = |name: &str, text: &str| {
            let path = fixture.directory.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        };
        let files = IdentityFiles {
            machine_id: file("machine-id", "machine one\n"),
            boot_id: file("boot-id", "boot one\n"),
            generation: file("generation", "generation one\n"),
        };
        let script = "cat /etc/machine-id /proc/sys/kernel/random/boot_id /run/tardigrade/generation; \
                      for file in /etc/machine-id /run/tardigrade/generation; do \
                      echo x 2>/dev/null > $file || echo refused; done; \
                      echo next; read line; cat /run/tardigrade/generation";
        let mut spec = fixture.spec(shell(script));
        spec.identity_files = files.clone();
        spec.readonly_paths = vec!["/proc/sys".into()];
        let created = fixture.launcher.create(&spec, true).await.unwrap();
        created.start.start(crate::fixture::DEADLINE).await.unwrap();
        let mut said = String::new();
        while !said.ends_with("next\n") {
            let data = created.stdio.stdout.as_ref().unwrap().read(1000).await;
            said += std::str::from_utf8(&data.unwrap()).unwrap();
        }
        assert_eq!(
            said,
            "machine one\nboot one\ngeneration one\nrefused\nrefused\nnext\n"
        );
        fs::write(files.generation.unwrap(), "generation two\n").unwrap();
        let stdin = created.stdio.stdin.as_ref().unwrap();
        stdin.write_all(b"go\n").await.unwrap();
        let (status, said, _) = crate::fixture::finish(&created.process, &created.stdio).await;
        assert_eq!((status, said.as_str()), (0, "generation two\n"));
        // In the image the place is an empty file.
        assert_eq!(
            fs::read(fixture.root().join("etc/machine-id")).unwrap(),
            b""
        );
        fixture.remove(&created.cgroup).await;
    });
}

#[test]
fn binds_show_directories_and_files_and_truncate_nothing() {
    run(|fixture| async move {
        let outside = fixture.directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "outside").unwrap();
        fs::write(fixture.root().join("etc/covered"), "kept").unwrap();
        let script = "cat /volume/file /etc/covered /new/file; \
                      touch /volume/x 2>/dev/null || echo refused";
        let mut spec = fixture.spec(shell(script));
        spec.mounts
            .push(bind(&outside, "/volume", &["rbind", "ro"]));
        let file = outside.join("file");
        spec.mounts.push(bind(&file, "/etc/covered", &["bind"]));
        spec.mounts.push(bind(&file, "/new/file", &["bind"]));
        let (_, said, stderr) = fixture.output(&spec).await;
        assert_eq!(said, "outsideoutsideoutsiderefused\n", "{stderr}");
        let covered = fs::read_to_string(fixture.root().join("etc/covered"));
        assert_eq!(covered.unwrap(), "kept");
    });
}

#[test]
fn a_link_of_the_image_leads_no_mount_out_of_it() {
    run(|fixture| async move {
        let outside = fixture.directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let volume = fixture.directory.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "x").unwrap();
        symlink("../../outside", fixture.root().join("up")).unwrap();
        let mut spec = fixture.spec(shell("cat /up/file /outside/file"));
        fs::create_dir(fixture.root().join("outside")).unwrap();
        spec.mounts.push(bind(&volume, "/up", &["rbind"]));
        let (_, said, stderr) = fixture.output(&spec).await;
        assert_eq!(said, "xx", "{stderr}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    });
}

#[test]
fn no_mount_covers_the_kernels_interface() {
    run(|fixture| async move {
        let before = fixture.traces();
        symlink("/proc", fixture.root().join("link")).unwrap();
        symlink("/data", fixture.root().join("procfs")).unwrap();
        let fake = fixture.directory.path().join("fake");
        fs::write(&fake, "x").unwrap();
        for mount in [
            bind(&fake, "/proc/sys/kernel/core_pattern", &["bind"]),
            bind(&fake, "/link/self/attr/current", &["bind"]),
            mount("/link/sys", "tmpfs", &[]),
            mount("/procfs", "proc", &[]),
        ] {
            let mut spec = fixture.spec(shell("true"));
            spec.mounts.push(mount);
            let error = fixture.launcher.create(&spec, false).await.unwrap_err();
            let CreateError::Launch(LaunchError::Child(failure)) = &error else {
                panic!("{error}");
            };
            assert_eq!(failure.step, Step::Mount, "{error}");
        }
        assert_eq!(fixture.traces(), before);
        let mut spec = fixture.spec(shell("cat /proc/uptime"));
        spec.mounts.push(bind(&fake, "/proc/uptime", &["bind"]));
        assert_eq!(fixture.output(&spec).await.1, "x");
    });
}

#[test]
fn a_bind_follows_no_link_that_a_container_may_have_made() {
    run(|fixture| async move {
        let volume = fixture.directory.path().join("volume");
        symlink("/etc", &volume).unwrap();
        let mut spec = fixture.spec(shell("true"));
        spec.mounts.push(bind(&volume, "/volume", &["rbind"]));
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        let CreateError::Launch(LaunchError::Child(failure)) = error else {
            panic!("{error}");
        };
        assert_eq!(failure.errno, nix::libc::ELOOP);
    });
}

/// A tmpfs of the guest with one more in it, unmounted when dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(path: std::path::PathBuf) -> Self {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount_change};
        fs::create_dir(&path).unwrap();
        rustix::mount::mount("test", &path, "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(&path, MountPropagationFlags::SHARED).unwrap();
        let below = path.join("below");
        fs::create_dir(&below).unwrap();
        rustix::mount::mount("test", &below, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let detach = rustix::mount::UnmountFlags::DETACH;
        // The directory goes with the test's.
        let _ = rustix::mount::unmount(&self.0, detach);
    }
}

#[test]
fn recursive_options_reach_the_mounts_below() {
    run(|fixture| async move {
        let mounted = Mounted::new(fixture.directory.path().join("volume"));
        let script = "touch /a/x 2>/dev/null || echo a; touch /a/below/x 2>/dev/null || echo below a; \
                      touch /b/x 2>/dev/null || echo b; touch /b/below/x && echo below b; \
                      grep -c '/a.* .*nosuid' /proc/self/mounts";
        let mut spec = fixture.spec(shell(script));
        let options = ["rbind", "rro", "rnosuid"];
        spec.mounts.push(bind(&mounted.0, "/a", &options));
        spec.mounts.push(bind(&mounted.0, "/b", &["rbind", "ro"]));
        let (_, said, stderr) = fixture.output(&spec).await;
        assert_eq!(said, "a\nbelow a\nb\nbelow b\n2\n", "{stderr}");
    });
}

#[test]
fn mounts_pass_between_guest_and_container_as_their_options_say() {
    run(|fixture| async move {
        let script = "mount -t tmpfs inside /shared/in; mount -t tmpfs inside /slave/in; \
                      echo ready; read line; \
                      for place in private slave shared; do \
                      grep -q \" /$place/late \" /proc/self/mounts && echo $place; done; echo";
        let volumes: Vec<Mounted> = ["private", "slave", "shared"]
            .map(|name| {
                let mounted = Mounted::new(fixture.directory.path().join(name));
                for directory in ["in", "late"] {
                    fs::create_dir(mounted.0.join(directory)).unwrap();
                }
                mounted
            })
            .into();
        let mut spec = fixture.spec(shell(script));
        spec.process.capabilities =
            guest_runtime::container::ProcessSpec::guest_root().capabilities;
        spec.mounts
            .push(bind(&volumes[0].0, "/private", &["rbind"]));
        spec.mounts
            .push(bind(&volumes[1].0, "/slave", &["rbind", "rslave"]));
        spec.mounts
            .push(bind(&volumes[2].0, "/shared", &["rbind", "rshared"]));
        let created = fixture.launcher.create(&spec, true).await.unwrap();
        created.start.start(crate::fixture::DEADLINE).await.unwrap();
        let stdout = created.stdio.stdout.as_ref().unwrap();
        assert_eq!(stdout.read(100).await.unwrap(), b"ready\n");
        for volume in &volumes {
            let late = volume.0.join("late");
            let none = rustix::mount::MountFlags::empty();
            rustix::mount::mount("late", &late, "tmpfs", none, None).unwrap();
        }
        // What was mounted in the container is in the guest where it is
        // shared, and only there.
        let own = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        for (volume, shared) in [(&volumes[1], false), (&volumes[2], true)] {
            let point = format!("inside {} ", volume.0.join("in").display());
            assert_eq!(own.contains(&point), shared, "{point}");
        }
        let stdin = created.stdio.stdin.as_ref().unwrap();
        stdin.write_all(b"go\n").await.unwrap();
        let (status, said, stderr) = crate::fixture::finish(&created.process, &created.stdio).await;
        assert_eq!(
            (status, said.as_str()),
            (0, "slave\nshared\n\n"),
            "{stderr}"
        );
        fixture.remove(&created.cgroup).await;
    });
}

#[test]
fn the_root_passes_mounts_on_as_the_spec_says() {
    run(|fixture| async move {
        let script = "grep ' / / \\| /[^ ]*root / ' /proc/self/mountinfo";
        for (word, field) in [
            (None, None),
            (Some("private"), None),
            (Some("rshared"), Some("shared:")),
            (Some("unbindable"), Some("unbindable")),
        ] {
            let mut spec = fixture.spec(shell(script));
            spec.root.propagation = word.map(Into::into);
            let (_, said, stderr) = fixture.output(&spec).await;
            assert!(said.contains(" / "), "{said}{stderr}");
            for one in ["shared:", "master:", "unbindable"] {
                assert_eq!(said.contains(one), field == Some(one), "{word:?}: {said}");
            }
        }
        let mut spec = fixture.spec(shell("true"));
        spec.root.propagation = Some("sideways".into());
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(matches!(error, CreateError::Refused(_)), "{error}");
    });
}

#[test]
fn options_of_a_tmpfs_are_kept() {
    run(|fixture| async move {
        let mut spec = fixture.spec(shell(
            "stat -c '%a %u %g' /data; grep ' /data ' /proc/mounts",
        ));
        let options = [
            "size=64k",
            "nr_inodes=20",
            "mode=2750",
            "uid=7",
            "gid=8",
            "noatime",
        ];
        spec.mounts.push(mount("/data", "tmpfs", &options));
        let (_, said, _) = fixture.output(&spec).await;
        assert!(said.starts_with("2750 7 8\n"), "{said}");
        for kept in ["size=64k", "nr_inodes=20", "noatime", "nodev"] {
            assert!(said.contains(kept), "{said}");
        }
    });
}

#[test]
fn a_tmpfs_can_begin_with_what_it_covers() {
    run(|fixture| async move {
        let data = fixture.root().join("data");
        fs::create_dir(data.join("sub")).unwrap();
        fs::write(data.join("sub/file"), "content").unwrap();
        std::os::unix::fs::chown(data.join("sub/file"), Some(7), Some(8)).unwrap();
        symlink("/etc/passwd", data.join("link")).unwrap();
        let mode = fs::Permissions::from_mode(0o1750);
        fs::set_permissions(&data, mode).unwrap();
        let script = "cat /data/sub/file; echo; readlink /data/link; stat -c '%a %u %g' /data; \
                      stat -c '%a %u %g' /data/sub/file; echo x > /data/new && echo made";
        let mut spec = fixture.spec(shell(script));
        spec.mounts
            .push(mount("/data", "tmpfs", &["tmpcopyup", "size=64k"]));
        let (_, said, stderr) = fixture.output(&spec).await;
        let expected = "content\n/etc/passwd\n1750 0 0\n644 7 8\nmade\n";
        assert_eq!(said, expected, "{stderr}");
        assert!(!data.join("new").exists());
        // What does not fit is an error, and no half of it.
        fs::write(data.join("large"), vec![b'x'; 100_000]).unwrap();
        let before = fixture.traces();
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn a_device_that_cannot_be_copied_into_a_tmpfs_is_named() {
    run(|fixture| async move {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let data = fixture.root().join("data");
        fs::create_dir(data.join("sub")).unwrap();
        let node = |name: &str, kind, number| {
            mknodat(CWD, data.join(name), kind, Mode::RUSR, number).unwrap();
        };
        node("sub/zero", FileType::CharacterDevice, makedev(1, 5));
        let copying = |mut spec: ContainerSpec| {
            let copied = mount("/data", "tmpfs", &["tmpcopyup"]);
            spec.mounts.push(copied);
            spec
        };
        let before = fixture.traces();
        // Root of the guest may make one.
        let plain = copying(fixture.spec(shell("stat -c '%F %t' /data/sub/zero")));
        let said = fixture.output(&plain).await;
        assert_eq!(
            said,
            (0, "character special file 1\n".into(), String::new())
        );
        let mapped = copying(fixture.mapped_spec(shell("true")));
        let error = fixture.launcher.create(&mapped, false).await.unwrap_err();
        let text = "on /data, tmpcopyup of device sub/zero: Operation not permitted";
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(fixture.traces(), before);
    });
}
