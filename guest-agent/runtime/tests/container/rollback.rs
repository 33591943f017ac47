//! A container that cannot be made leaves nothing: each step is made to fail
//! by a spec that it cannot do.

use crate::fixture::{Fixture, mount, process, run};
use guest_runtime::container::{
    ContainerSpec, CreateError, LaunchError, NamespaceKind, NamespaceSpec, RlimitSpec, Step,
};
use std::os::unix::fs::symlink;

type Break = fn(&Fixture, &mut ContainerSpec);

/// Each step that a spec can make fail, in their order.
const STEPS: [(Step, Break); 13] = [
    (Step::JoinNamespace, |_, spec| {
        spec.namespaces.retain(|one| one.kind != NamespaceKind::Ipc);
        spec.namespaces.push(NamespaceSpec {
            kind: NamespaceKind::Ipc,
            path: Some("/no/such/namespace".into()),
        });
    }),
    (Step::JoinNamespace, |_, spec| {
        spec.namespaces.retain(|one| one.kind != NamespaceKind::Ipc);
        spec.namespaces.push(NamespaceSpec {
            kind: NamespaceKind::Ipc,
            path: Some("/proc/self/ns/net".into()),
        });
    }),
    (Step::Root, |_, spec| {
        spec.root.path = "/no/such/root".into();
    }),
    (Step::Mount, |_, spec| {
        spec.mounts
            .push(mount("/data", "tmpfs", &["no-such-option"]));
    }),
    (Step::Mount, |fixture, spec| {
        symlink("nowhere", fixture.root().join("dangling")).unwrap();
        spec.mounts.push(mount("/dangling", "tmpfs", &[]));
    }),
    (Step::Identity, |_, spec| {
        spec.identity_files.machine_id = Some("/no/such/file".into());
    }),
    (Step::Terminal, |_, spec| {
        spec.process.terminal = true;
        spec.mounts.retain(|one| !one.destination.ends_with("pts"));
    }),
    (Step::WorkingDirectory, |_, spec| {
        spec.process.cwd = "/bin/busybox".into();
    }),
    (Step::MaskedPath, |fixture, spec| {
        symlink("loop", fixture.root().join("loop")).unwrap();
        spec.masked_paths.push("/loop".into());
    }),
    (Step::ReadonlyPath, |fixture, spec| {
        symlink("ring", fixture.root().join("ring")).unwrap();
        spec.readonly_paths.push("/ring".into());
    }),
    (Step::Rlimit, |_, spec| {
        spec.process.rlimits.push(RlimitSpec {
            kind: "RLIMIT_NOFILE".parse().unwrap(),
            soft: 2,
            hard: 1,
        });
    }),
    (Step::User, |_, spec| {
        // NGROUPS_MAX is 65536, limits.h.
        spec.process.user.additional_gids = vec![7; 65537];
    }),
    (Step::Capabilities, |_, spec| {
        // Effective without being permitted.
        spec.process.capabilities.permitted.clear();
    }),
];

#[test]
fn a_failure_at_each_step_leaves_nothing() {
    run(|fixture| async move {
        let before = fixture.traces();
        for (step, damage) in STEPS {
            let mut spec = fixture.spec(process(&["true"]));
            damage(&fixture, &mut spec);
            let error = fixture.launcher.create(&spec, true).await.unwrap_err();
            let CreateError::Launch(LaunchError::Child(failure)) = &error else {
                panic!("{step:?}: {error}");
            };
            assert_eq!(failure.step, step, "{error}");
            assert_eq!(fixture.traces(), before, "{step:?}");
        }
        // All of it works without the damage.
        let spec = fixture.spec(process(&["true"]));
        assert_eq!(fixture.output(&spec).await.0, 0);
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn a_program_that_is_no_stage_is_an_error_and_leaves_nothing() {
    run(|fixture| async move {
        let before = fixture.traces();
        let program = std::fs::File::open("/bin/busybox").unwrap();
        let workload = fixture.launcher.workload().path();
        let workload = guest_runtime::cgroup::WorkloadCgroup::create(workload).unwrap();
        let launcher = guest_runtime::container::Launcher::with_program(workload, program);
        let spec = fixture.spec(process(&["true"]));
        let error = launcher.create(&spec, false).await.unwrap_err();
        assert!(matches!(error, CreateError::Launch(_)), "{error}");
        let text = std::fs::File::open("/etc/passwd").unwrap();
        let workload = fixture.launcher.workload().path();
        let workload = guest_runtime::cgroup::WorkloadCgroup::create(workload).unwrap();
        let launcher = guest_runtime::container::Launcher::with_program(workload, text);
        let error = launcher.create(&spec, false).await.unwrap_err();
        assert!(matches!(error, CreateError::Launch(_)), "{error}");
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn a_cgroup_that_cannot_be_made_is_an_error_and_leaves_nothing() {
    run(|fixture| async move {
        let before = fixture.traces();
        for name in ["", "a/b", "..\n"] {
            let mut spec = fixture.spec(process(&["true"]));
            spec.cgroup_name = name.into();
            let error = fixture.launcher.create(&spec, false).await.unwrap_err();
            assert!(matches!(error, CreateError::Cgroup(_)), "{error}");
        }
        let mut spec = fixture.spec(process(&["true"]));
        spec.resources.cpu_quota = Some(-2);
        assert!(fixture.launcher.create(&spec, false).await.is_err());
        assert_eq!(fixture.traces(), before);
    });
}
