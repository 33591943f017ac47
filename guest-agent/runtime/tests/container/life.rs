//! Create, start, wait, remove.

use crate::fixture::{CAPABILITIES, DEADLINE, capabilities, finish, process, run, shell};
use guest_runtime::container::{CreateError, StartError};
use guest_runtime::hostname;

#[test]
fn an_exit_status_can_be_asked_for_twice() {
    run(|fixture| async move {
        let before = fixture.traces();
        let spec = fixture.spec(shell("echo out; echo err >&2; exit 7"));
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        created.start.start(DEADLINE).await.unwrap();
        let ended = finish(&created.process, &created.stdio).await;
        assert_eq!(ended, (7, "out\n".into(), "err\n".into()));
        assert_eq!(created.process.wait().await.code(), 7);
        fixture.remove(&created.cgroup).await;
        assert_eq!(created.process.wait().await.code(), 7);
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn nothing_of_the_workload_runs_before_the_start() {
    run(|fixture| async move {
        let spec = fixture.spec(shell("echo ran > /data/mark"));
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        assert!(!fixture.root().join("data/mark").exists());
        assert!(!created.process.has_ended());
        created.start.start(DEADLINE).await.unwrap();
        created.process.wait().await;
        assert!(fixture.root().join("data/mark").exists());
        fixture.remove(&created.cgroup).await;
    });
}

#[test]
fn a_container_that_is_never_started_is_removed_whole() {
    run(|fixture| async move {
        let before = fixture.traces();
        let spec = fixture.spec(process(&["true"]));
        let created = fixture.launcher.create(&spec, true).await.unwrap();
        fixture.remove(&created.cgroup).await;
        assert_eq!(created.process.wait().await.code(), 137);
        let error = created.start.start(DEADLINE).await;
        // Its end is either seen at the send or as an end of the stream.
        drop(error);
        let created = fixture.launcher.create(&spec, true).await.unwrap();
        drop(created.start);
        assert_eq!(created.process.wait().await.code(), 1);
        fixture.remove(&created.cgroup).await;
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn a_program_that_cannot_be_executed_is_told_at_once() {
    run(|fixture| async move {
        for (program, status) in [
            ("no-such-program", 127),
            ("/missing/program", 127),
            ("not-executable", 126),
            ("/bin/nonsense", 126),
            ("/etc", 126),
        ] {
            let spec = fixture.spec(process(&[program]));
            let created = fixture.launcher.create(&spec, false).await.unwrap();
            let error = created.start.start(DEADLINE).await.unwrap_err();
            assert!(matches!(error, StartError::Execute { .. }), "{error}");
            assert_eq!(error.exit_status(), Some(status), "{program}");
            assert_eq!(created.process.wait().await.code(), status);
            fixture.remove(&created.cgroup).await;
        }
    });
}

#[test]
fn a_second_container_of_a_name_leaves_the_first_alone() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let spec = fixture.spec(process(&["true"]));
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(matches!(error, CreateError::Cgroup(_)), "{error}");
        assert!(!init.has_ended());
        fixture.remove(&cgroup).await;
    });
}

#[test]
fn the_environment_is_passed_on_untouched() {
    run(|fixture| async move {
        let mut process = process(&["env"]);
        process.env = vec![
            "PATH=/bin".into(),
            "SPACES=  a  b  ".into(),
            "EMPTY=".into(),
            "LINES=a b\tc".into(),
        ];
        let env = process.env.join("\n") + "\n";
        let (status, stdout, _) = fixture.output(&fixture.spec(process)).await;
        assert_eq!((status, stdout), (0, env));
    });
}

#[test]
fn namespaces_are_its_own() {
    run(|fixture| async move {
        let script = "hostname; echo $$; cat /proc/self/cgroup | tail -n 1; \
                      for kind in pid mnt ipc uts net cgroup; do readlink /proc/self/ns/$kind; done";
        let said = fixture.say(script).await;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..3], ["inside", "1", "0::/"]);
        for (kind, inside) in ["pid", "mnt", "ipc", "uts", "net", "cgroup"]
            .iter()
            .zip(&lines[3..])
        {
            let outside = std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
            assert_ne!(outside.to_str().unwrap(), *inside);
        }
    });
}

#[test]
fn a_namespace_that_is_not_asked_for_is_shared_unless_it_keeps_the_agent_safe() {
    run(|fixture| async move {
        let mut spec = fixture.spec(shell(
            "for kind in net pid; do readlink /proc/self/ns/$kind; done",
        ));
        spec.namespaces.clear();
        spec.hostname = None;
        let (_, stdout, _) = fixture.output(&spec).await;
        let outside = |kind| std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
        let inside: Vec<&str> = stdout.lines().collect();
        assert_eq!(inside[0], outside("net").to_str().unwrap());
        assert_ne!(inside[1], outside("pid").to_str().unwrap());
    });
}

#[test]
fn a_namespace_can_be_joined() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let path = format!("/proc/{}/ns/net", init.pid());
        let theirs = std::fs::read_link(&path).unwrap();
        let mut spec = fixture.spec(shell("readlink /proc/self/ns/net"));
        spec.cgroup_name = "other".into();
        for namespace in &mut spec.namespaces {
            if namespace.kind == guest_runtime::container::NamespaceKind::Network {
                namespace.path = Some(path.clone().into());
            }
        }
        let (_, stdout, _) = fixture.output(&spec).await;
        assert_eq!(stdout.trim(), theirs.to_str().unwrap());
        fixture.remove(&cgroup).await;
    });
}

#[test]
fn stdin_is_passed_and_its_end_too() {
    run(|fixture| async move {
        let spec = fixture.spec(process(&["cat"]));
        let created = fixture.launcher.create(&spec, true).await.unwrap();
        created.start.start(DEADLINE).await.unwrap();
        let stdin = created.stdio.stdin.as_ref().unwrap();
        stdin.write_all(b"hello").await.unwrap();
        stdin.close();
        let ended = finish(&created.process, &created.stdio).await;
        assert_eq!(ended, (0, "hello".into(), String::new()));
        fixture.remove(&created.cgroup).await;
    });
}

#[test]
fn no_descriptor_leaks_in() {
    run(|fixture| async move {
        // One that a careless program might leave open to its children.
        let leak = std::fs::File::open("/etc/passwd").unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let said = fixture.say("ls /proc/1/fd; true").await;
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"]);
        drop(leak);
    });
}

#[test]
fn sigterm_ends_an_init_process_that_does_not_handle_it() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        init.signal(15).unwrap();
        assert_eq!(init.wait().await.code(), 137);
        init.signal(15).unwrap();
        fixture.remove(&cgroup).await;
        let handled = shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done");
        let created = fixture.launcher.create(&fixture.spec(handled), false).await;
        let created = created.unwrap();
        created.start.start(DEADLINE).await.unwrap();
        let stdout = created.stdio.stdout.as_ref().unwrap();
        assert_eq!(stdout.read(100).await.unwrap(), b"ready\n");
        created.process.signal(15).unwrap();
        assert_eq!(created.process.wait().await.code(), 3);
        fixture.remove(&created.cgroup).await;
    });
}

#[test]
fn a_thaw_renames_a_container_and_not_the_guest() {
    run(|fixture| async move {
        let outside = rustix::system::uname();
        let (init, cgroup) = fixture.sleeper().await;
        hostname::set_in(&init, "renamed").unwrap();
        let (_, said, _) = fixture.exec(&init, &cgroup, &process(&["hostname"])).await;
        assert_eq!(said, "renamed\n");
        assert_eq!(rustix::system::uname().nodename(), outside.nodename());
        fixture.remove(&cgroup).await;
        init.wait().await;
        hostname::set_in(&init, "late").unwrap();
    });
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    run(|fixture| async move {
        let before = fixture.traces();
        let spec = || {
            let mut spec = fixture.spec(process(&["true"]));
            spec.process.capabilities = capabilities(&CAPABILITIES);
            spec
        };
        let mut cases = Vec::new();
        for (destination, fstype, option) in [
            ("relative", "tmpfs", ""),
            ("/a/../b", "tmpfs", ""),
            ("/", "tmpfs", ""),
            ("/data", "ext4", ""),
            ("/data", "overlay", ""),
            ("/data", "tmpfs", "idmap"),
            ("/dev", "tmpfs", "tmpcopyup"),
            ("/data", "bind", "rbind"),
        ] {
            let mut case = spec();
            case.mounts
                .push(crate::fixture::mount(destination, fstype, &[option]));
            cases.push(case);
        }
        let mut no_uts = spec();
        no_uts.namespaces.clear();
        cases.push(no_uts);
        let mut no_args = spec();
        no_args.process.args.clear();
        cases.push(no_args);
        let mut upward = spec();
        upward.process.cwd = "/data/..".into();
        cases.push(upward);
        let mut nobody = spec();
        nobody.process.user.uid = u32::MAX;
        cases.push(nobody);
        let mut score = spec();
        score.process.oom_score_adj = Some(1001);
        cases.push(score);
        for case in cases {
            let error = fixture.launcher.create(&case, false).await.unwrap_err();
            assert!(matches!(error, CreateError::Refused(_)), "{error}");
            assert!(error.to_string().ends_with("is not supported"), "{error}");
        }
        assert_eq!(fixture.traces(), before);
    });
}
