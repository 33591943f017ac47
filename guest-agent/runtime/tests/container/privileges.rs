//! What a process may do.

use crate::fixture::{CAPABILITIES, capabilities, process, run, shell, skip};
use guest_runtime::container::{
    Capability, ContainerSpec, CreateError, IoPriority, NamespaceKind, RlimitSpec, Scheduler,
};

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim()
}

fn mask(names: &[&str]) -> u64 {
    names
        .iter()
        .map(|name| 1 << name.parse::<Capability>().unwrap().number())
        .sum()
}

#[test]
fn root_has_the_capabilities_of_its_spec_and_no_other() {
    run(|fixture| async move {
        // No shell: that one has signals of its own.
        let spec = fixture.spec(process(&["cat", "/proc/self/status"]));
        let (_, status, _) = fixture.output(&spec).await;
        let set = format!("{:016x}", mask(&CAPABILITIES));
        for name in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(field(&status, name), set, "{name}");
        }
        for name in ["CapInh", "CapAmb"] {
            assert_eq!(field(&status, name), "0000000000000000", "{name}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        // Rust ignores SIGPIPE: the workload must not inherit that.
        assert_eq!(field(&status, "SigIgn"), "0000000000000000");
        assert_eq!(field(&status, "SigBlk"), "0000000000000000");
    });
}

#[test]
fn a_user_has_only_ambient_capabilities() {
    run(|fixture| async move {
        let mut process = shell("cat /proc/self/status");
        process.user.uid = 1000;
        process.user.gid = 1000;
        process.user.additional_gids = vec![20, 30];
        process.capabilities = capabilities(&["CAP_KILL", "CAP_CHOWN"]);
        process.capabilities.inheritable = vec!["CAP_KILL".parse().unwrap()];
        process.capabilities.ambient = vec!["CAP_KILL".parse().unwrap()];
        let (_, status, _) = fixture.output(&fixture.spec(process)).await;
        assert_eq!(field(&status, "Uid"), "1000\t1000\t1000\t1000");
        assert_eq!(field(&status, "Gid"), "1000\t1000\t1000\t1000");
        assert_eq!(field(&status, "Groups"), "20 30");
        let kill = format!("{:016x}", mask(&["CAP_KILL"]));
        for name in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(field(&status, name), kill, "{name}");
        }
        let bounding = format!("{:016x}", mask(&["CAP_KILL", "CAP_CHOWN"]));
        assert_eq!(field(&status, "CapBnd"), bounding);
    });
}

#[test]
fn limits_and_scores_are_those_of_the_spec() {
    run(|fixture| async move {
        let mut process = shell("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj");
        process.oom_score_adj = Some(123);
        process.rlimits = vec![RlimitSpec {
            kind: "RLIMIT_NOFILE".parse().unwrap(),
            soft: 100,
            hard: 200,
        }];
        let (_, said, _) = fixture.output(&fixture.spec(process)).await;
        assert_eq!(said, "100\n200\n123\n");
    });
}

#[test]
fn without_a_score_it_is_not_the_agents() {
    run(|fixture| async move {
        std::fs::write("/proc/self/oom_score_adj", "77").unwrap();
        let said = fixture.say("cat /proc/self/oom_score_adj").await;
        std::fs::write("/proc/self/oom_score_adj", "0").unwrap();
        assert_eq!(said, "0\n");
    });
}

#[test]
fn a_working_directory_is_made_and_its_own_session_is_entered() {
    run(|fixture| async move {
        let mut process = process(&["sh", "-c", "pwd; cat /proc/self/stat"]);
        process.cwd = "/data/deep/er".into();
        let (_, said, _) = fixture.output(&fixture.spec(process)).await;
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("/data/deep/er"));
        // Fields 5 and 6: process group and session, proc(5).
        let stat: Vec<&str> = lines.next().unwrap().split(' ').collect();
        assert_eq!(stat[4..6], ["1", "1"]);
    });
}

#[test]
fn parameters_of_its_own_namespaces_are_set_and_no_other() {
    run(|fixture| async move {
        let own = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap();
        let before = (own("kernel/shmmni"), own("net/ipv4/ip_forward"));
        let script = "cd /proc/sys; cat kernel/shmmni kernel/domainname net/ipv4/ip_forward \
                      net/ipv4/conf/lo/forwarding fs/mqueue/msg_max";
        let mut spec = fixture.spec(shell(script));
        spec.readonly_paths = vec!["/proc/sys".into()];
        for (name, value) in [
            ("kernel.shmmni", "77"),
            ("kernel.domainname", "some.domain"),
            ("net.ipv4.ip_forward", "1"),
            ("net/ipv4/conf/lo/forwarding", "0"),
            ("fs.mqueue.msg_max", "7"),
        ] {
            spec.sysctl.insert(name.into(), value.into());
        }
        let (status, said, stderr) = fixture.output(&spec).await;
        assert_eq!(
            (status, said.as_str()),
            (0, "77\nsome.domain\n1\n0\n7\n"),
            "{stderr}"
        );
        assert_eq!((own("kernel/shmmni"), own("net/ipv4/ip_forward")), before);
        for name in [
            "kernel.hostname",
            "kernel.core_pattern",
            "vm.swappiness",
            "net.../../kernel/core_pattern",
            "net/../kernel/core_pattern",
            "user.max_user_namespaces",
            "",
        ] {
            let mut spec = fixture.spec(shell("true"));
            spec.sysctl.insert(name.into(), "1".into());
            let error = fixture.launcher.create(&spec, false).await.unwrap_err();
            assert!(matches!(error, CreateError::Refused(_)), "{name}: {error}");
        }
        let mut shared = fixture.spec(shell("true"));
        shared
            .namespaces
            .retain(|one| one.kind != NamespaceKind::Ipc);
        shared.sysctl.insert("kernel.shmmni".into(), "77".into());
        let error = fixture.launcher.create(&shared, false).await.unwrap_err();
        assert!(error.to_string().contains("kernel.shmmni"), "{error}");
    });
}

#[test]
fn mask_scheduling_and_place_before_disks_are_those_of_the_spec() {
    run(|fixture| async move {
        let mut process = shell("umask; read stat < /proc/$$/stat; echo $stat; ionice -p $$");
        process.umask = Some(0o027);
        process.user.uid = 1000;
        process.scheduler = Some(Scheduler {
            policy: "SCHED_BATCH".parse().unwrap(),
            nice: 0,
            priority: 0,
            flags: vec!["SCHED_FLAG_RESET_ON_FORK".parse().unwrap()],
            runtime: 0,
            deadline: 0,
            period: 0,
        });
        let class = "IOPRIO_CLASS_BE".parse().unwrap();
        process.io_priority = Some(IoPriority::new(class, 6).unwrap());
        let (status, said, stderr) = fixture.output(&fixture.spec(process)).await;
        assert_eq!(status, 0, "{stderr}");
        assert!(said.starts_with("0027\n"), "{said}");
        // Field 41 is the policy, proc(5), and 3 is SCHED_BATCH.
        let policy = said.lines().nth(1).and_then(|stat| stat.split(' ').nth(40));
        assert_eq!(policy, Some("3"), "{said}");
        assert!(said.contains("best-effort: prio 6"), "{said}");
        // A place in time that there is not.
        let mut process = shell("true");
        process.scheduler = Some(Scheduler {
            policy: "SCHED_FIFO".parse().unwrap(),
            nice: 0,
            priority: 1000,
            flags: Vec::new(),
            runtime: 0,
            deadline: 0,
            period: 0,
        });
        let spec = fixture.spec(process);
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(error.to_string().contains("scheduling"), "{error}");
    });
}

#[test]
fn a_limit_that_is_said_twice_is_refused() {
    run(|fixture| async move {
        let mut process = shell("true");
        let limit = RlimitSpec::open_files();
        process.rlimits = vec![limit.clone(), limit];
        let spec = fixture.spec(process);
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(matches!(error, CreateError::Refused(_)), "{error}");
    });
}

#[test]
fn a_parameter_of_a_namespace_that_others_are_in_is_told_apart() {
    run(|fixture| async move {
        let parameters = [
            ("net.ipv4.ip_forward", NamespaceKind::Network),
            ("kernel.shmmni", NamespaceKind::Ipc),
            ("kernel.domainname", NamespaceKind::Uts),
        ];
        for (name, kind) in parameters {
            let mut spec = fixture.spec(shell("true"));
            spec.sysctl.insert(name.into(), "1".into());
            assert!(!spec.changes_shared_namespaces(), "{name}");
            for namespace in &mut spec.namespaces {
                if namespace.kind == kind {
                    namespace.path = Some("/proc/1/ns/x".into());
                }
            }
            assert!(spec.changes_shared_namespaces(), "{name}");
            spec.namespaces.retain(|one| one.kind != kind);
            assert!(spec.changes_shared_namespaces(), "{name}");
        }
    });
}

type Held = fn(&mut ContainerSpec);

#[test]
fn a_module_that_the_kernel_has_not_is_asked_of_no_process() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let held: [(&str, Held); 3] = [
            ("AppArmor", |spec| {
                spec.process.apparmor_profile = Some("some".into());
            }),
            ("SELinux", |spec| {
                spec.process.selinux_label = Some("a:b:c:s0".into());
            }),
            ("SELinux", |spec| spec.mount_label = Some("a:b:c:s0".into())),
        ];
        let before = fixture.traces();
        for (name, hold) in held {
            let list = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
            let files = ["/sys/module/apparmor", "/sys/fs/selinux/enforce"];
            let there = files.iter().any(|file| std::path::Path::new(file).exists());
            if there || list.contains(&name.to_lowercase()) {
                skip(&format!("the kernel has {name}, or the beginnings of it"));
                continue;
            }
            let mut spec = fixture.spec(shell("true"));
            spec.cgroup_name = "other".into();
            hold(&mut spec);
            let error = fixture.launcher.create(&spec, false).await.unwrap_err();
            assert!(matches!(error, CreateError::Refused(_)), "{error}");
            assert!(error.to_string().contains(name), "{error}");
            if spec.process.apparmor_profile.is_some() {
                let added = fixture.launcher.exec(&init, &cgroup, &spec.process, false);
                let error = added.await.unwrap_err();
                assert!(error.to_string().contains(name), "{error}");
            }
        }
        assert_eq!(fixture.traces(), before);
        fixture.remove(&cgroup).await;
    });
}

#[test]
fn an_added_process_is_held_as_the_container_is_if_it_says_nothing_else() {
    let mut init = shell("true");
    init.apparmor_profile = Some("profile".into());
    init.selinux_label = Some("label".into());
    let mut added = shell("true");
    added.selinux_label = Some("other".into());
    added.follow(&init);
    assert_eq!(added.apparmor_profile.as_deref(), Some("profile"));
    assert_eq!(added.selinux_label.as_deref(), Some("other"));
}
