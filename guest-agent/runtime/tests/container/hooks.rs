//! Hooks, by the files they leave.

use crate::fixture::{DEADLINE, Fixture, run, shell};
use guest_runtime::container::{
    ContainerSpec, CreateError, HookError, HookKind, HookSpec, Hooks, LaunchError, StartError,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// A hook that runs a script of the guest's shell.
fn script(script: &str) -> HookSpec {
    HookSpec {
        path: "/bin/busybox".into(),
        args: ["sh", "-c", script].map(Into::into).into(),
        env: vec!["PATH=/bin:/usr/bin".into(), "NAME=some value".into()],
        timeout: DEADLINE,
    }
}

/// One that adds a line about itself to a file, and keeps its state.
fn note(fixture: &Fixture, name: &str) -> HookSpec {
    let directory = fixture.directory.path().display();
    script(&format!(
        "cat > {directory}/state-{name}; \
         echo {name} $NAME $(readlink /proc/self/ns/uts) >> {directory}/notes"
    ))
}

fn all(fixture: &Fixture, spec: &mut ContainerSpec) {
    spec.hooks.prestart = vec![note(fixture, "prestart")];
    spec.hooks.create_runtime = vec![note(fixture, "one"), note(fixture, "two")];
    spec.hooks.create_container = vec![note(fixture, "createContainer")];
    spec.hooks.start_container = vec![script(
        "cat > /data/state; echo startContainer $NAME $$ > /data/note",
    )];
    spec.hooks.poststart = vec![note(fixture, "poststart")];
    spec.hooks.poststop = vec![note(fixture, "poststop")];
}

#[test]
fn hooks_of_all_kinds_run_in_their_order_and_place_and_know_the_container() {
    run(|fixture| async move {
        let mut spec = fixture.spec(shell("cat /data/note"));
        spec.annotations.insert("key".into(), "value".into());
        all(&fixture, &mut spec);
        let notes = || {
            let path = fixture.directory.path().join("notes");
            fs::read_to_string(path).unwrap_or_default()
        };
        let own = fs::read_link("/proc/self/ns/uts").unwrap();
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        let written = notes();
        let lines: Vec<Vec<&str>> = written
            .lines()
            .map(|line| line.split(' ').collect())
            .collect();
        let names: Vec<&str> = lines.iter().map(|line| line[0]).collect();
        assert_eq!(names, ["prestart", "one", "two", "createContainer"]);
        for line in &lines {
            assert_eq!(line[1..3], ["some", "value"]);
            let is_guests = line[3] == own.to_str().unwrap();
            assert_eq!(is_guests, line[0] != "createContainer", "{line:?}");
        }
        assert!(!fixture.root().join("data/note").exists());
        created.start.start(DEADLINE).await.unwrap();
        let (status, said, stderr) = crate::fixture::finish(&created.process, &created.stdio).await;
        assert_eq!(status, 0, "{stderr}");
        assert!(said.starts_with("startContainer some value "), "{said}");
        let pid = created.process.pid();
        for (kind, pid) in [(HookKind::Poststart, Some(pid)), (HookKind::Poststop, None)] {
            fixture.launcher.run_hooks(&spec, kind, pid).await.unwrap();
        }
        assert_eq!(notes().lines().count(), 6);
        let state = |path: std::path::PathBuf| fs::read_to_string(path).unwrap();
        let of = |name: &str| state(fixture.directory.path().join(format!("state-{name}")));
        let expected = |status: &str, pid: &str| {
            format!(
                "{{\"ociVersion\":\"1.0.2\",\"id\":\"test\",\"status\":\"{status}\",{pid}\
                 \"bundle\":\"/no/bundle\",\"annotations\":{{\"key\":\"value\"}}}}"
            )
        };
        let outside = format!("\"pid\":{pid},");
        assert_eq!(of("prestart"), expected("creating", &outside));
        assert_eq!(of("createContainer"), expected("creating", "\"pid\":1,"));
        assert_eq!(of("poststart"), expected("running", &outside));
        assert_eq!(of("poststop"), expected("stopped", ""));
        let started = state(fixture.root().join("data/state"));
        assert_eq!(started, expected("created", "\"pid\":1,"));
        fixture.remove(&created.cgroup).await;
    });
}

type Place = fn(&mut ContainerSpec) -> &mut Vec<HookSpec>;

const BEFORE_START: [Place; 3] = [
    |spec| &mut spec.hooks.prestart,
    |spec| &mut spec.hooks.create_runtime,
    |spec| &mut spec.hooks.create_container,
];

#[test]
fn a_hook_that_fails_or_hangs_or_is_missing_fails_the_creation_and_nothing_is_left() {
    run(|fixture| async move {
        let before = fixture.traces();
        for place in BEFORE_START {
            let mut slow = script("while true; do sleep 1000; done");
            slow.timeout = Duration::from_millis(200);
            let mut missing = script("");
            missing.path = "/no/such/hook".into();
            for hook in [script("echo complaint >&2; exit 3"), slow, missing] {
                let mut spec = fixture.spec(shell("true"));
                place(&mut spec).push(hook);
                spec.hooks.poststop = vec![note(&fixture, "poststop")];
                let error = fixture.launcher.create(&spec, false).await.unwrap_err();
                let named = matches!(&error, CreateError::Hook(_) | CreateError::Launch(_));
                assert!(named && error.to_string().contains("hook"), "{error}");
                if let CreateError::Hook(HookError::Status {
                    status, complaint, ..
                }) = &error
                {
                    assert_eq!((*status, complaint.as_str()), (3, "complaint"));
                }
                assert_eq!(fixture.traces(), before);
                // The end of the container is told all the same.
                let notes = fixture.directory.path().join("notes");
                assert!(fs::read_to_string(&notes).unwrap().starts_with("poststop"));
                fs::remove_file(notes).unwrap();
            }
        }
    });
}

#[test]
fn a_start_hook_that_fails_keeps_the_program_from_running() {
    run(|fixture| async move {
        let before = fixture.traces();
        let mut spec = fixture.spec(shell("touch /data/ran"));
        spec.hooks.start_container = vec![script("exit 1")];
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        let error = created.start.start(DEADLINE).await.unwrap_err();
        assert!(matches!(error, StartError::Launch(_)), "{error}");
        assert!(error.to_string().contains("startContainer"), "{error}");
        assert_ne!(created.process.wait().await.code(), 0);
        assert!(!fixture.root().join("data/ran").exists());
        fixture.remove(&created.cgroup).await;
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn a_hook_that_is_none_is_refused() {
    run(|fixture| async move {
        let break_it: [fn(&mut HookSpec); 3] = [
            |hook| hook.path = "relative".into(),
            |hook| hook.args.push("a\0b".into()),
            |hook| hook.env.push("=x".into()),
        ];
        for broken in break_it {
            let mut hook = script("true");
            broken(&mut hook);
            let mut spec = fixture.spec(shell("true"));
            spec.hooks.poststop = vec![hook];
            let error = fixture.launcher.create(&spec, false).await.unwrap_err();
            assert!(matches!(error, CreateError::Refused(_)), "{error}");
        }
    });
}

#[test]
fn what_a_hook_has_started_ends_with_it_when_it_is_too_slow() {
    run(|fixture| async move {
        let before = fixture.traces();
        let file = fixture.directory.path().join("pid");
        for timeout in [true, false] {
            let mut hook = script(&format!(
                "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! > {}; {}",
                file.display(),
                if timeout { "sleep 1000" } else { "true" }
            ));
            if timeout {
                hook.timeout = Duration::from_millis(500);
            }
            let mut spec = fixture.spec(shell("true"));
            spec.hooks.poststop = vec![hook];
            let ran = fixture.launcher.run_hooks(&spec, HookKind::Poststop, None);
            assert_eq!(ran.await.is_err(), timeout);
            let pid = fs::read_to_string(&file).unwrap();
            let lives = fs::read_to_string(format!("/proc/{}/cgroup", pid.trim()));
            // What a hook leaves behind on purpose is a process of the guest's.
            assert_eq!(
                lives.is_ok_and(|cgroup| cgroup.contains("guest.d")),
                !timeout
            );
            assert_eq!(fixture.traces(), before);
        }
    });
}

#[test]
fn an_init_that_is_killed_in_its_start_hook_was_not_started() {
    run(|fixture| async move {
        let mut spec = fixture.spec(shell("touch /data/ran"));
        spec.hooks.start_container = vec![script("touch /data/hook; sleep 1000")];
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        let kill = async {
            while !fixture.root().join("data/hook").exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            created.process.signal(9).unwrap();
        };
        let (started, ()) = tokio::join!(created.start.start(DEADLINE), kill);
        let error = started.unwrap_err();
        assert!(
            matches!(error, StartError::Launch(LaunchError::Ended)),
            "{error}"
        );
        assert_eq!(created.process.wait().await.code(), 137);
        assert!(!fixture.root().join("data/ran").exists());
    });
}

#[test]
fn the_hooks_of_an_image_are_run_with_their_names_and_kinds() {
    run(|fixture| async move {
        let place = fixture.directory.path();
        let notes = place.join("notes");
        for kind in ["prestart", "poststart", "poststop"] {
            let hook = place.join("hooks").join(kind).join("note");
            fs::create_dir_all(hook.parent().unwrap()).unwrap();
            let script = format!("#!/bin/busybox sh\necho $1 >> {}\n", notes.display());
            fs::write(&hook, script).unwrap();
            fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut spec = fixture.spec(shell("true"));
        let hooks = Hooks::of_directory(&place.join("hooks")).unwrap();
        assert_eq!(hooks.prestart[0].args, ["note", "prestart"]);
        spec.hooks.extend(&hooks);
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        assert_eq!(fs::read_to_string(&notes).unwrap(), "prestart\n");
        created.start.start(DEADLINE).await.unwrap();
        for kind in [HookKind::Poststart, HookKind::Poststop] {
            fixture.launcher.run_hooks(&spec, kind, None).await.unwrap();
        }
        let all = fs::read_to_string(&notes).unwrap();
        assert_eq!(all, "prestart\npoststart\npoststop\n");
        fixture.remove(&created.cgroup).await;
    });
}
