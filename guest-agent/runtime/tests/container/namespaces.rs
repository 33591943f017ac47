//! User and time namespaces, seen from the inside and from the outside.

use crate::fixture::{
    DEADLINE, OUTSIDE, bind, capabilities, finish, mappings, process, run, shell, skip,
};
use guest_runtime::container::{
    Capability, Clock, ContainerSpec, CreateError, DeviceNode, DeviceRule, DeviceSpec, IdMapping,
    IdMappings, IdentityFiles, LaunchError, NamespaceKind, NamespaceSpec, ProcessSpec, RlimitSpec,
    Step, TimeOffset,
};
use std::fs;
use std::os::unix::fs::MetadataExt;

fn everything() -> Vec<String> {
    Capability::all().map(|one| one.to_string()).collect()
}

/// With every capability there is, in its own namespaces.
fn mighty(mut process: ProcessSpec) -> ProcessSpec {
    let names = everything();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    process.capabilities = capabilities(&names);
    process
}

fn own_namespace(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    link.to_str().unwrap().to_owned()
}

fn join(spec: &mut ContainerSpec, kind: NamespaceKind, path: String) {
    spec.namespaces.retain(|one| one.kind != kind);
    let path = Some(path.into());
    spec.namespaces.push(NamespaceSpec { kind, path });
}

#[test]
fn root_of_a_user_namespace_is_someone_else_outside() {
    run(|fixture| async move {
        let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; \
                      stat -c '%u %g' / /proc/1 /dev /dev/null; echo x > /data/made; \
                      readlink /proc/self/ns/user; hostname";
        let mut spec = fixture.mapped_spec(shell(script));
        spec.process.capabilities = capabilities(&["CAP_CHOWN"]);
        let (status, said, stderr) = fixture.output(&spec).await;
        assert_eq!((status, stderr.as_str()), (0, ""), "{said}");
        let lines: Vec<Vec<&str>> = said
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[..2], [["0"], ["0"]]);
        assert_eq!(
            lines[2..4],
            [["0", "100000", "65536"], ["0", "100000", "65536"]]
        );
        // Of the guest's node nobody in there is the owner.
        assert_eq!(
            lines[4..8],
            [["0", "0"], ["0", "0"], ["0", "0"], ["65534", "65534"]]
        );
        assert_ne!(lines[8], [own_namespace("user")]);
        assert_eq!(lines[9], ["inside"]);
        let made = fs::metadata(fixture.root().join("data/made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (OUTSIDE, OUTSIDE));
    });
}

#[test]
fn all_capabilities_of_a_user_namespace_are_none_over_the_guest() {
    run(|fixture| async move {
        let hostname = rustix::system::uname().nodename().to_owned();
        let before = fixture.traces();
        let script = "date -s @$(date +%s) 2>&1 | grep -q permitted && echo no clock; \
                      mknod /data/null c 1 3 2>/dev/null || echo no node; \
                      mount -t tmpfs inside /data && echo mounted; \
                      echo 1 2>/dev/null > /proc/sys/kernel/panic || echo no parameter; \
                      echo 1 2>/dev/null > /sys/fs/cgroup/cgroup.freeze || echo no freeze; \
                      kill -0 1 && hostname renamed; hostname; \
                      mount -t proc more /tmp && echo proc; grep Cap /proc/self/status";
        let spec = fixture.mapped_spec(mighty(shell(script)));
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        created.start.start(DEADLINE).await.unwrap();
        let (status, said, stderr) = finish(&created.process, &created.stdio).await;
        assert_eq!(status, 0, "{stderr}");
        let expected = "no clock\nno node\nmounted\nno parameter\nno freeze\nrenamed\nproc\n";
        assert!(said.starts_with(expected), "{said}{stderr}");
        assert_eq!(rustix::system::uname().nodename(), hostname.as_c_str());
        fixture.remove(&created.cgroup).await;
        assert_eq!(fixture.traces(), before);
        assert!(
            fs::read_dir(fixture.root().join("data"))
                .unwrap()
                .next()
                .is_none()
        );
    });
}

#[test]
fn devices_binds_identity_and_limits_are_there_in_a_user_namespace() {
    run(|fixture| async move {
        let file = fixture.directory.path().join("file");
        fs::write(&file, "outside\n").unwrap();
        let script = "cat /data/file /etc/machine-id; stat -c '%a %u %g %t %T' /dev/log /opt/log; \
                      head -c 1 /dev/log >/dev/null 2>&1 && echo read; \
                      echo x > /dev/null; ulimit -n; stat -c %F /dev/pipe; \
                      echo x > /dev/shm/x && echo shm; touch /dev/x && echo dev; \
                      ls -d /dev/pts/ptmx /dev/mqueue /sys/class; echo out > /dev/stdout; \
                      cat /proc/sys/kernel/shmmni /proc/sys/kernel/domainname";
        let mut spec = fixture.mapped_spec(shell(script));
        spec.process.capabilities = capabilities(&["CAP_SYSLOG"]);
        // More than this process has, if it may have more.
        let own = RlimitSpec::open_files().hard;
        let may = ProcessSpec::guest_root().capabilities.permitted;
        let hard = if may.contains(&"CAP_SYS_RESOURCE".parse().unwrap()) {
            own + 1
        } else {
            own
        };
        spec.process.rlimits = vec![RlimitSpec {
            kind: "RLIMIT_NOFILE".parse().unwrap(),
            soft: hard,
            hard,
        }];
        spec.mounts.push(bind(&file, "/data/file", &["bind", "ro"]));
        spec.identity_files = IdentityFiles {
            machine_id: Some(file.clone()),
            ..IdentityFiles::default()
        };
        let node = |path: &str, node| DeviceSpec {
            path: path.into(),
            node,
            mode: 0o640,
            uid: 0,
            gid: 8,
        };
        let log = DeviceNode::Character(1, 11);
        spec.devices = vec![
            node("/dev/log", log),
            node("/opt/log", log),
            node("/dev/pipe", DeviceNode::Fifo),
        ];
        spec.device_rules = vec![DeviceRule::parse(true, "c", (1, 11), "rw").unwrap()];
        spec.sysctl.insert("kernel.shmmni".into(), "77".into());
        spec.sysctl
            .insert("kernel.domainname".into(), "some.domain".into());
        let (status, said, stderr) = fixture.output(&spec).await;
        let lines: Vec<&str> = said.lines().collect();
        let expected = [
            "outside",
            "outside",
            "640 0 8 1 b",
            "640 0 8 1 b",
            &hard.to_string(),
            "fifo",
            "shm",
            "dev",
            "/dev/mqueue",
            "/dev/pts/ptmx",
            "/sys/class",
            "out",
            "77",
            "some.domain",
        ];
        // Whether it may be read is up to CAP_SYSLOG over the guest.
        let lines: Vec<&str> = lines.into_iter().filter(|line| *line != "read").collect();
        assert_eq!((status, lines.as_slice()), (0, &expected[..]), "{stderr}");
        spec.devices = vec![node("/bin/busybox", log)];
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(error.to_string().contains("/bin/busybox"), "{error}");
    });
}

#[test]
fn a_process_that_is_added_is_in_the_user_namespace_too() {
    run(|fixture| async move {
        let before = fixture.traces();
        let spec = fixture.mapped_spec(process(&["sleep", "1000"]));
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        created.start.start(DEADLINE).await.unwrap();
        let init = &created.process;
        let outside = fs::metadata(format!("/proc/{}", init.pid())).unwrap().uid();
        assert_eq!(outside, OUTSIDE);
        let mut added = mighty(shell(
            "id -u; cat /proc/self/uid_map; date -s @$(date +%s) 2>&1 | grep -q permitted && echo no clock; \
             for kind in user pid mnt ipc uts net cgroup; do \
             test $(readlink /proc/self/ns/$kind) = $(readlink /proc/1/ns/$kind) || exit 9; done; \
             echo x > /data/added; echo out > /dev/stdout; hostname",
        ));
        let ended = fixture.exec(init, &created.cgroup, &added).await;
        let said = "0\n         0     100000      65536\nno clock\nout\ninside\n";
        assert_eq!(ended, (0, said.into(), String::new()));
        let made = fs::metadata(fixture.root().join("data/added")).unwrap();
        assert_eq!(made.uid(), OUTSIDE);
        // Another user, and a terminal.
        added.user.uid = 1000;
        added.args = ["sh", "-c", "id -u; echo out > /dev/stdout"]
            .map(Into::into)
            .into();
        let ended = fixture.exec(init, &created.cgroup, &added).await;
        assert_eq!(ended, (0, "1000\nout\n".into(), String::new()));
        added.terminal = true;
        let ended = fixture.exec(init, &created.cgroup, &added).await;
        assert_eq!((ended.0, ended.1.as_str()), (0, "1000\r\nout\r\n"));
        // Who has no id in there is nobody's to become.
        added.user.uid = 70_000;
        let exec = fixture.launcher.exec(init, &created.cgroup, &added, false);
        let error = exec.await.unwrap_err();
        assert!(error.to_string().contains("70000"), "{error}");
        fixture.remove(&created.cgroup).await;
        assert_eq!(init.wait().await.code(), 137);
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn a_terminal_is_its_users_in_a_user_namespace() {
    run(|fixture| async move {
        let mut spec = fixture.mapped_spec(shell("stat -c %u $(readlink /proc/self/fd/0); tty"));
        spec.process.terminal = true;
        spec.process.user.uid = 1000;
        let (status, said, _) = fixture.output(&spec).await;
        assert_eq!((status, said.as_str()), (0, "1000\r\n/dev/pts/0\r\n"));
    });
}

#[test]
fn a_user_namespace_is_joined_with_what_the_pod_shares() {
    run(|fixture| async move {
        let spec = fixture.mapped_spec(process(&["sleep", "1000"]));
        let pod = fixture.launcher.create(&spec, false).await.unwrap();
        pod.start.start(DEADLINE).await.unwrap();
        let at = |kind: &str| format!("/proc/{}/ns/{kind}", pod.process.pid());
        let theirs = |kind: &str| fs::read_link(at(kind)).unwrap();
        let script = "for kind in user net ipc; do readlink /proc/self/ns/$kind; done; \
                      ls -d /sys/class/net/lo /dev/mqueue; stat -c %u / /proc/1";
        let expected = format!(
            "{}\n{}\n{}\n/dev/mqueue\n/sys/class/net/lo\n0\n0\n",
            theirs("user").display(),
            theirs("net").display(),
            theirs("ipc").display(),
        );
        let joining = |with: IdMappings| {
            let mut spec = fixture.mapped_spec(shell(script));
            spec.cgroup_name = "other".into();
            spec.id_mappings = with;
            join(&mut spec, NamespaceKind::User, at("user"));
            join(&mut spec, NamespaceKind::Network, at("net"));
            join(&mut spec, NamespaceKind::Ipc, at("ipc"));
            spec
        };
        for with in [IdMappings::default(), mappings()] {
            let ended = fixture.output(&joining(with)).await;
            assert_eq!(ended, (0, expected.clone(), String::new()));
        }
        let mut others = mappings();
        others.users[0].size = 5;
        let error = fixture.launcher.create(&joining(others), false).await;
        let error = error.unwrap_err();
        assert!(error.to_string().contains("mappings"), "{error}");
        fixture.remove(&pod.cgroup).await;
    });
}

#[test]
fn a_user_namespace_shares_the_guests_network_and_sees_no_more_of_it() {
    run(|fixture| async move {
        let script = "readlink /proc/self/ns/net; ls -d /sys/class/net/lo /dev/mqueue; \
                      touch /sys/kernel/x 2>/dev/null || echo refused; \
                      test -e /sys/fs/cgroup/cgroup.procs && echo cgroup";
        let mut spec = fixture.mapped_spec(mighty(shell(script)));
        spec.namespaces.retain(|one| {
            ![
                NamespaceKind::Network,
                NamespaceKind::Ipc,
                NamespaceKind::Uts,
            ]
            .contains(&one.kind)
        });
        spec.hostname = None;
        let (status, said, stderr) = fixture.output(&spec).await;
        let expected = format!(
            "{}\n/dev/mqueue\n/sys/class/net/lo\nrefused\ncgroup\n",
            own_namespace("net")
        );
        assert_eq!((status, said), (0, expected), "{stderr}");
    });
}

type Damage = fn(&mut ContainerSpec);

#[test]
fn mappings_that_mean_nothing_are_refused_by_name() {
    run(|fixture| async move {
        let before = fixture.traces();
        let break_it: [(&str, Damage); 9] = [
            ("uid mappings", |spec| spec.id_mappings.users.clear()),
            ("gid mappings", |spec| spec.id_mappings.groups.clear()),
            ("overlap", |spec| {
                let first = spec.id_mappings.users[0];
                spec.id_mappings.users.push(first);
            }),
            ("more lines", |spec| {
                let line = |id| IdMapping {
                    inside: id,
                    outside: id,
                    size: 1,
                };
                spec.id_mappings.groups = (0..341).map(line).collect();
            }),
            ("user or group 0", |spec| {
                spec.id_mappings.users[0].inside = 1;
            }),
            ("70000", |spec| {
                spec.process.user.additional_gids = vec![70_000];
            }),
            ("without a user namespace", |spec| {
                spec.namespaces
                    .retain(|one| one.kind != NamespaceKind::User);
            }),
            ("second", |spec| {
                let kind = NamespaceKind::User;
                spec.namespaces.push(NamespaceSpec { kind, path: None });
            }),
            ("without a new time namespace", |spec| {
                spec.time_offsets
                    .insert(Clock::Boottime, TimeOffset::default());
            }),
        ];
        for (name, damage) in break_it {
            let mut spec = fixture.mapped_spec(shell("true"));
            damage(&mut spec);
            let error = fixture.launcher.create(&spec, false).await.unwrap_err();
            assert!(matches!(error, CreateError::Refused(_)), "{error}");
            assert!(error.to_string().contains(name), "{name}: {error}");
        }
        // The user namespace one is in is none to join.
        let mut spec = fixture.spec(shell("true"));
        join(&mut spec, NamespaceKind::User, "/proc/self/ns/user".into());
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        let CreateError::Launch(LaunchError::Child(failure)) = &error else {
            panic!("{error}");
        };
        assert_eq!(failure.step, Step::JoinNamespace);
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn the_owners_of_a_volume_are_mapped_where_it_is_asked_for() {
    run(|fixture| async move {
        let volume = fixture.directory.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "x").unwrap();
        std::os::unix::fs::chown(volume.join("file"), Some(7), Some(8)).unwrap();
        let script = "stat -c '%u %g' /volume /volume/file; \
                      { echo x > /volume/made; } 2>/dev/null && echo made";
        let mut spec = fixture.mapped_spec(shell(script));
        for (options, expected) in [
            (&["rbind"][..], "65534 65534\n65534 65534\n"),
            (&["rbind", "idmap"], "0 0\n7 8\nmade\n"),
            (&["bind", "ridmap"], "0 0\n7 8\nmade\n"),
        ] {
            let mut spec = spec.clone();
            spec.mounts.push(bind(&volume, "/volume", options));
            let created = fixture.launcher.create(&spec, false).await;
            if let Err(error) = &created
                && error.to_string().contains("idmap on file system")
            {
                return skip(&error.to_string());
            }
            let created = created.unwrap();
            created.start.start(DEADLINE).await.unwrap();
            let (_, said, stderr) = finish(&created.process, &created.stdio).await;
            assert_eq!(said, expected, "{options:?}: {stderr}");
            fixture.remove(&created.cgroup).await;
        }
        let made = fs::metadata(volume.join("made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0));
        // By mappings of its own, in a container without a user namespace too.
        let map = |inside, outside| {
            vec![IdMapping {
                inside,
                outside,
                size: 1,
            }]
        };
        let mut own = bind(&volume, "/volume", &["rbind", "ro"]);
        own.id_mappings = Some(IdMappings {
            users: map(7, 1007),
            groups: map(8, 1008),
        });
        spec = fixture.spec(shell(script));
        spec.mounts.push(own);
        let (_, said, stderr) = fixture.output(&spec).await;
        assert_eq!(said, "65534 65534\n1007 1008\n", "{stderr}");
        // And in the processes' namespace of a pod.
        let pod = fixture.spec(process(&["sleep", "1000"]));
        let pod = fixture.launcher.create(&pod, false).await.unwrap();
        pod.start.start(DEADLINE).await.unwrap();
        spec.cgroup_name = "other".into();
        let path = format!("/proc/{}/ns/pid", pod.process.pid());
        join(&mut spec, NamespaceKind::Pid, path);
        let (_, said, stderr) = fixture.output(&spec).await;
        assert_eq!(said, "65534 65534\n1007 1008\n", "{stderr}");
        fixture.remove(&pod.cgroup).await;
    });
}

/// A process in a user namespace where nobody is user or group 0.
fn nobody_is_root() -> std::process::Child {
    use std::process::{Command, Stdio};
    let mut child = Command::new("unshare")
        .args(["--user", "--map-user=1", "--map-group=1"])
        .args(["sh", "-c", "echo there; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let said = child.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).unwrap();
    assert_eq!(line, "there\n");
    child
}

#[test]
fn a_joined_user_namespace_without_a_root_is_refused_by_name() {
    run(|fixture| async move {
        let mut child = nobody_is_root();
        let before = fixture.traces();
        let mut spec = fixture.spec(shell("true"));
        let path = format!("/proc/{}/ns/user", child.id());
        join(&mut spec, NamespaceKind::User, path);
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        let text = "nobody in it is user and group 0";
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(fixture.traces(), before);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn owners_that_cannot_be_mapped_are_an_error_that_says_why() {
    run(|fixture| async move {
        let before = fixture.traces();
        let mut spec = fixture.mapped_spec(shell("true"));
        let source = std::path::Path::new("/proc/sys");
        spec.mounts.push(bind(source, "/data", &["rbind", "idmap"]));
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(
            error.to_string().contains("idmap on file system proc"),
            "{error}"
        );
        let break_it: [Damage; 3] = [
            |spec| {
                spec.mounts
                    .push(crate::fixture::mount("/data", "tmpfs", &["idmap"]));
            },
            |spec| {
                let source = std::path::Path::new("/usr");
                spec.mounts.push(bind(source, "/data", &["rbind", "idmap"]));
            },
            |spec| {
                let mut mount = bind(std::path::Path::new("/usr"), "/data", &["rbind"]);
                mount.id_mappings = Some(IdMappings::default());
                spec.mounts.push(mount);
            },
        ];
        for damage in break_it {
            let mut spec = fixture.spec(shell("true"));
            damage(&mut spec);
            let error = fixture.launcher.create(&spec, false).await.unwrap_err();
            assert!(matches!(error, CreateError::Refused(_)), "{error}");
        }
        assert_eq!(fixture.traces(), before);
    });
}

fn boottime(text: &str) -> f64 {
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_time_namespace_has_clocks_of_its_own_and_its_processes_share_them() {
    run(|fixture| async move {
        if !std::path::Path::new("/proc/self/ns/time").exists() {
            return skip("the kernel has no time namespaces");
        }
        const AHEAD: i64 = 1_000_000;
        let script = "cat /proc/uptime; readlink /proc/self/ns/time";
        let mut spec = fixture.spec(shell(&format!("{script}; exec sleep 1000")));
        let kind = NamespaceKind::Time;
        spec.namespaces.push(NamespaceSpec { kind, path: None });
        for (clock, nanosecs) in [(Clock::Boottime, 5), (Clock::Monotonic, 999_999_999)] {
            let secs = AHEAD;
            spec.time_offsets
                .insert(clock, TimeOffset { secs, nanosecs });
        }
        let own = || boottime(&fs::read_to_string("/proc/uptime").unwrap());
        let is_ahead = |said: &str| {
            let ahead = boottime(said) - own();
            assert!((ahead - 1e6).abs() < 60.0, "{said}");
        };
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        created.start.start(DEADLINE).await.unwrap();
        let mut said = String::new();
        while said.lines().count() < 2 {
            let data = created.stdio.stdout.as_ref().unwrap().read(1000).await;
            said += std::str::from_utf8(&data.unwrap()).unwrap();
        }
        is_ahead(&said);
        let namespace = said.lines().last().unwrap().to_owned();
        assert_ne!(namespace, own_namespace("time"));
        let added = fixture
            .exec(&created.process, &created.cgroup, &shell(script))
            .await;
        is_ahead(&added.1);
        assert!(added.1.contains(&namespace), "{}", added.1);
        // And one that joins it, in a user namespace too.
        let mut other = fixture.mapped_spec(shell(script));
        other.cgroup_name = "other".into();
        let path = format!("/proc/{}/ns/time", created.process.pid());
        join(&mut other, kind, path);
        let joined = fixture.output(&other).await;
        is_ahead(&joined.1);
        assert!(joined.1.contains(&namespace), "{}", joined.1);
        fixture.remove(&created.cgroup).await;
        // Before the clocks began.
        spec.time_offsets.insert(
            Clock::Boottime,
            TimeOffset {
                secs: -AHEAD * 1000,
                nanosecs: 0,
            },
        );
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(error.to_string().contains("boottime"), "{error}");
    });
}

#[test]
fn to_join_mounts_or_cgroups_of_others_is_refused_by_name() {
    run(|fixture| async move {
        let before = fixture.traces();
        for (kind, file) in [
            (NamespaceKind::Mount, "mnt"),
            (NamespaceKind::Cgroup, "cgroup"),
        ] {
            let mut spec = fixture.spec(shell("true"));
            join(&mut spec, kind, format!("/proc/self/ns/{file}"));
            let error = fixture.launcher.create(&spec, false).await.unwrap_err();
            let text = format!("joining a namespace of kind {kind:?} is not supported");
            assert_eq!(error.to_string(), text);
        }
        assert_eq!(fixture.traces(), before);
    });
}
