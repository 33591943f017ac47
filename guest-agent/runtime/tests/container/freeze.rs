//! Freezing, killing and limiting the workload.

use crate::fixture::{DEADLINE, Fixture, process, run, shell};
use guest_runtime::cgroup::CgroupError;
use guest_runtime::container::{CreateError, CreatedContainer};
use std::time::Duration;

/// A container that says a line whenever it is told one.
async fn echo(fixture: &Fixture) -> CreatedContainer {
    let spec = fixture.spec(shell("while read line; do echo $line; done"));
    fixture.launcher.create(&spec, true).await.unwrap()
}

#[test]
fn a_frozen_workload_does_nothing_and_goes_on_where_it_was() {
    run(|fixture| async move {
        let CreatedContainer {
            process,
            stdio,
            start,
            cgroup,
        } = echo(&fixture).await;
        start.start(DEADLINE).await.unwrap();
        let (stdin, stdout) = (stdio.stdin.unwrap(), stdio.stdout.unwrap());
        let workload = fixture.launcher.workload();
        for round in 0..3 {
            workload.freeze(DEADLINE).await.unwrap();
            // Again: it is frozen already.
            workload.freeze(DEADLINE).await.unwrap();
            stdin.write_all(b"hello\n").await.unwrap();
            let silent = tokio::time::timeout(Duration::from_millis(50), stdout.read(100)).await;
            assert!(silent.is_err(), "round {round}");
            workload.unfreeze().unwrap();
            assert_eq!(stdout.read(100).await.unwrap(), b"hello\n");
        }
        assert!(!process.has_ended());
        fixture.remove(&cgroup).await;
    });
}

#[test]
fn what_a_containers_own_cgroup_is_told_ends_no_pause() {
    run(|fixture| async move {
        let created = echo(&fixture).await;
        created.start.start(DEADLINE).await.unwrap();
        let (stdin, stdout) = (created.stdio.stdin.unwrap(), created.stdio.stdout.unwrap());
        let workload = fixture.launcher.workload();
        let own: &std::path::Path = created.cgroup.as_ref();
        workload
            .freeze_container(&created.cgroup, DEADLINE)
            .await
            .unwrap();
        std::fs::write(own.join("cgroup.freeze"), "0").unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(200), stdout.read(100)).await;
        assert!(silent.is_err(), "{silent:?}");
        // Nor does it keep a container from going on.
        std::fs::write(own.join("cgroup.freeze"), "0").unwrap();
        workload.unfreeze_container(&created.cgroup).unwrap();
        assert_eq!(stdout.read(100).await.unwrap(), b"hello\n");
        fixture.remove(&created.cgroup).await;
    });
}

#[test]
fn an_empty_workload_freezes_at_once() {
    run(|fixture| async move {
        let workload = fixture.launcher.workload();
        workload.freeze(DEADLINE).await.unwrap();
        workload.unfreeze().unwrap();
    });
}

#[test]
fn a_frozen_container_can_be_killed_and_removed() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let workload = fixture.launcher.workload();
        workload.freeze(DEADLINE).await.unwrap();
        fixture.remove(&cgroup).await;
        assert_eq!(init.wait().await.code(), 137);
        workload.unfreeze().unwrap();
    });
}

#[test]
fn descendants_die_with_the_container() {
    run(|fixture| async move {
        let spec = fixture.spec(shell(
            "setsid sleep 1000 & setsid sleep 1000 & echo ready; wait",
        ));
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        created.start.start(DEADLINE).await.unwrap();
        let stdout = created.stdio.stdout.as_ref().unwrap();
        assert_eq!(stdout.read(100).await.unwrap(), b"ready\n");
        let workload = fixture.launcher.workload();
        workload.kill_container(&created.cgroup).unwrap();
        assert_eq!(created.process.wait().await.code(), 137);
        fixture.remove(&created.cgroup).await;
        workload.kill_container(&created.cgroup).unwrap();
    });
}

#[test]
fn a_limit_is_kept_or_refused_for_want_of_its_controller() {
    run(|fixture| async move {
        let before = fixture.traces();
        let mut spec = fixture.spec(shell("for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done"));
        spec.resources.pids_limit = Some(5);
        let controllers = fixture
            .launcher
            .workload()
            .path()
            .join("cgroup.controllers");
        let controllers = std::fs::read_to_string(controllers).unwrap();
        let outcome = fixture.launcher.create(&spec, false).await;
        if controllers.split_whitespace().any(|one| one == "pids") {
            let created = outcome.unwrap();
            created.start.start(DEADLINE).await.unwrap();
            assert_ne!(created.process.wait().await.code(), 0);
            fixture.remove(&created.cgroup).await;
        } else {
            eprintln!("skipped in part: no controller pids in this hierarchy");
            let CreateError::Cgroup(CgroupError::NoController { controller, .. }) =
                outcome.unwrap_err()
            else {
                panic!("another error");
            };
            assert_eq!(controller, "pids");
        }
        assert_eq!(fixture.traces(), before);
        // No limit at all can be had everywhere.
        let mut spec = fixture.spec(process(&["true"]));
        spec.resources.memory_limit = Some(-1);
        assert_eq!(fixture.output(&spec).await.0, 0);
    });
}
