//! Processes added to a container, and outside every container.

use crate::fixture::{finish, process, run, shell};
use guest_runtime::container::{ExecError, ProcessSpec};
use std::fs;

#[test]
fn an_added_process_is_in_all_namespaces_and_in_the_cgroup() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let script = "hostname; cat /proc/self/cgroup | tail -n 1; cat /proc/1/comm; \
                      for kind in pid mnt ipc uts net cgroup; do \
                      test $(readlink /proc/self/ns/$kind) = $(readlink /proc/1/ns/$kind) || exit 9; done";
        let mut spec = shell(script);
        // To read the links of process 1, which has other capabilities.
        spec.capabilities = ProcessSpec::guest_root().capabilities;
        let (status, said, stderr) = fixture.exec(&init, &cgroup, &spec).await;
        assert_eq!((status, stderr.as_str()), (0, ""));
        assert_eq!(said, "inside\n0::/\nsleep\n");
        fixture.remove(&cgroup).await;
        assert_eq!(init.wait().await.code(), 137);
    });
}

#[test]
fn an_added_process_that_cannot_be_executed_is_told_at_once_and_is_gone() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let before = fixture.traces();
        for (program, status) in [("no-such", 127), ("not-executable", 126), ("nonsense", 126)] {
            let exec = fixture
                .launcher
                .exec(&init, &cgroup, &process(&[program]), false)
                .await;
            let error = exec.unwrap_err();
            assert!(matches!(error, ExecError::Execute { .. }), "{error}");
            assert_eq!(error.exit_status(), Some(status), "{program}");
        }
        assert_eq!(fixture.traces(), before);
        fixture.remove(&cgroup).await;
    });
}

#[test]
fn an_added_process_has_its_own_user_and_no_descriptor_of_the_agents() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let mut spec =
            shell("id -u; id -g; id -G; pwd; umask; ls /proc/$$/fd; echo x > /dev/stdout");
        spec.user.uid = 1000;
        spec.user.gid = 1001;
        spec.user.additional_gids = vec![7, 1001];
        spec.cwd = "/tmp".into();
        let (status, said, stderr) = fixture.exec(&init, &cgroup, &spec).await;
        assert_eq!((status, stderr.as_str()), (0, ""));
        assert_eq!(said, "1000\n1001\n1001 7\n/tmp\n0022\n0\n1\n2\nx\n");
        fixture.remove(&cgroup).await;
    });
}

#[test]
fn no_process_is_added_to_a_container_that_has_ended() {
    run(|fixture| async move {
        let before = fixture.traces();
        let (init, cgroup) = fixture.sleeper().await;
        init.signal(9).unwrap();
        init.wait().await;
        let exec = fixture
            .launcher
            .exec(&init, &cgroup, &process(&["true"]), false)
            .await;
        assert!(matches!(exec.unwrap_err(), ExecError::Launch(_)));
        fixture.remove(&cgroup).await;
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn a_process_of_the_guest_is_below_the_workload_all_the_same() {
    run(|fixture| async move {
        let mut spec = ProcessSpec::guest_root();
        spec.args = vec!["cat".into(), "/proc/self/cgroup".into()];
        let exec = fixture.launcher.exec_in_guest(&spec, false).await.unwrap();
        let (status, said, _) = finish(&exec.process, &exec.stdio).await;
        assert_eq!(status, 0);
        let workload = fixture.launcher.workload().path();
        let name = workload.file_name().unwrap().to_str().unwrap();
        let line = said.lines().find(|line| line.starts_with("0::")).unwrap();
        assert!(line.contains(name), "{line}");
        spec.args = vec!["no-such-program".into()];
        let error = fixture.launcher.exec_in_guest(&spec, false).await;
        assert_eq!(error.unwrap_err().exit_status(), Some(127));
    });
}

#[test]
fn many_processes_are_added_at_once() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let spec = shell("echo $((6 * 7))");
        let all = (0..8).map(|_| fixture.exec(&init, &cgroup, &spec));
        for ended in futures::future::join_all(all).await {
            assert_eq!(ended, (0, "42\n".into(), String::new()));
        }
        fixture.remove(&cgroup).await;
    });
}

#[test]
fn the_program_of_the_children_is_not_the_agents_file() {
    run(|fixture| async move {
        let spec = fixture.spec(process(&["true"]));
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        let link = fs::read_link(format!("/proc/{}/exe", created.process.pid())).unwrap();
        let link = link.to_str().unwrap();
        assert!(link.starts_with("/memfd:guest-agent"), "{link}");
        fixture.remove(&created.cgroup).await;
    });
}
