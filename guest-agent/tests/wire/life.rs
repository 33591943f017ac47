//! Containers and their processes: create, start, exec, streams, signals,
//! wait, remove.

use crate::harness::{Calls, Guest, assert_refused, container, context};
use protocols::wire::agent;
use ttrpc::Code;

const KILL: u32 = 9;

#[tokio::test]
async fn a_container_lives_and_leaves_nothing() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let before = guest.traces();
    let script = "echo out; echo err >&2; cat; exit 7";
    calls.run(&guest, "web", &["sh", "-c", script]).await;
    assert_eq!(calls.read("web", "", 4096).await.unwrap(), b"out\n");
    assert_eq!(calls.read_stderr("web", "web").await.unwrap(), b"err\n");
    assert_eq!(calls.write("web", "", b"in").await.unwrap(), 2);
    // Nothing to write is the end of stdin.
    assert_eq!(calls.write("web", "web", b"").await.unwrap(), 0);
    assert_eq!(calls.output("web", "web").await, ("in".into(), 7));
    // The end of a stream is empty data, however often it is asked for; the
    // status can be asked for again too, by either name of the init process.
    assert_eq!(calls.read("web", "", 10).await.unwrap(), b"");
    assert_eq!(calls.read_stderr("web", "").await.unwrap(), b"");
    assert_eq!(calls.wait("web", "").await.unwrap(), 7);
    calls.remove("web").await.unwrap();
    assert_refused(
        calls.wait("web", "").await,
        Code::INVALID_ARGUMENT,
        "Invalid container id",
    );
    guest.has_left_nothing_since(&before).await;
}

#[tokio::test]
async fn an_exec_is_named_waited_for_and_told_apart() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    calls.run(&guest, "web", &["sleep", "1000"]).await;
    calls
        .exec("web", "one", &["sh", "-c", "echo 1; exit 3"])
        .await
        .unwrap();
    let again = calls.exec("web", "one", &["true"]).await;
    assert_refused(again, Code::ALREADY_EXISTS, "exec_id 'one' already exists");
    // The container's own name is its init process's.
    let init = calls.exec("web", "web", &["true"]).await;
    assert_refused(init, Code::ALREADY_EXISTS, "exec_id 'web' already exists");
    assert_eq!(calls.output("web", "one").await, ("1\n".into(), 3));
    assert_eq!(calls.wait("web", "one").await.unwrap(), 3);
    for missing in ["no-such-program", "/no/such/program"] {
        let missing = calls.exec("web", "two", &[missing]).await;
        assert_refused(missing, Code::INTERNAL, "No such file");
    }
    let unknown = calls.wait("web", "two").await;
    assert_refused(unknown, Code::NOT_FOUND, "process not found");
    let signalled = calls.signal("web", "two", KILL).await;
    assert_refused(signalled, Code::NOT_FOUND, "process not found");
    calls.signal("web", "one", KILL).await.unwrap();
}

#[tokio::test]
async fn sigkill_for_the_unnamed_process_is_for_all_of_them() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    calls.run(&guest, "web", &["sleep", "1000"]).await;
    calls.exec("web", "one", &["sleep", "1000"]).await.unwrap();
    calls.signal("web", "one", 0).await.unwrap();
    let bad = calls.signal("web", "one", 5000).await;
    assert_refused(bad, Code::INTERNAL, "pidfd_send_signal");
    calls.signal("web", "", KILL).await.unwrap();
    assert_eq!(calls.wait("web", "").await.unwrap(), 137);
    assert_eq!(calls.wait("web", "one").await.unwrap(), 137);
    // What has ended already is no error.
    calls.signal("web", "web", KILL).await.unwrap();
    calls.signal("web", "", KILL).await.unwrap();
}

#[tokio::test]
async fn a_second_container_of_a_name_leaves_the_first_alone() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    calls.run(&guest, "web", &["sleep", "1000"]).await;
    let before = guest.traces();
    let request = container(&guest, "web", &["true"]);
    let second = calls.0.create_container(context(), &request).await;
    assert_refused(second, Code::ALREADY_EXISTS, "container web already exists");
    assert_eq!(guest.traces(), before);
    let again = calls.start("web").await;
    assert_refused(again, Code::FAILED_PRECONDITION, "was started before");
    assert_eq!(calls.say("web", "one", "echo alive").await, "alive\n");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_at_the_start_and_is_a_status() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    for (id, program, status) in [
        ("one", "no-such-program", 127),
        ("two", "not-executable", 126),
    ] {
        calls.create(&guest, id, &[program]).await;
        assert_refused(calls.start(id).await, Code::INTERNAL, program);
        assert_eq!(calls.wait(id, "").await.unwrap(), status);
        calls.remove(id).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_container_is_refused_in_the_known_words() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let before = guest.traces();
    for id in ["", "a", "../up", "-a", "é1"] {
        let request = container(&guest, id, &["true"]);
        let refused = calls.0.create_container(context(), &request).await;
        assert_refused(refused, Code::INVALID_ARGUMENT, "invalid container ID");
    }
    let mut request = container(&guest, "web", &["true"]);
    request.OCI.as_mut().unwrap().Process.take();
    let refused = calls.0.create_container(context(), &request).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "OCI.Process");
    request.OCI.take();
    let refused = calls.0.create_container(context(), &request).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "OCI");
    let unknown = "Invalid container id";
    for refused in [
        calls.start("gone").await,
        calls.remove("gone").await,
        calls.exec("gone", "one", &["true"]).await,
        calls.signal("gone", "", 15).await,
        calls.wait("gone", "").await.map(drop),
        calls.read("gone", "", 1).await.map(drop),
        calls.write("gone", "", b"x").await.map(drop),
    ] {
        assert_refused(refused, Code::INVALID_ARGUMENT, unknown);
    }
    assert_eq!(guest.traces(), before);
}

#[tokio::test]
async fn a_terminal_is_resized_and_what_is_none_is_told() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let mut request = container(&guest, "tty", &["sh", "-c", "read line; stty size"]);
    let spec = request.OCI.as_mut().unwrap();
    spec.Process.as_mut().unwrap().Terminal = true;
    let mut devpts = crate::harness::mount("/dev/pts", "devpts");
    devpts.options = ["newinstance", "ptmxmode=0666", "mode=0620"]
        .map(String::from)
        .into();
    spec.Mounts.push(devpts);
    calls.0.create_container(context(), &request).await.unwrap();
    calls.start("tty").await.unwrap();
    let mut resize = agent::TtyWinResizeRequest::new();
    resize.container_id = "tty".into();
    (resize.row, resize.column) = (33, 99);
    calls.0.tty_win_resize(context(), &resize).await.unwrap();
    calls.write("tty", "", b"go\n").await.unwrap();
    let (said, status) = calls.output("tty", "").await;
    assert_eq!(status, 0);
    assert!(said.contains("33 99"), "{said:?}");
    // Its stderr is its stdout.
    assert_eq!(calls.read_stderr("tty", "").await.unwrap(), b"");
    calls.run(&guest, "pipes", &["sleep", "1000"]).await;
    resize.container_id = "pipes".into();
    let refused = calls.0.tty_win_resize(context(), &resize).await;
    assert_refused(refused, Code::UNAVAILABLE, "no tty");
}

#[tokio::test]
async fn a_container_has_users_of_its_own_and_what_is_added_to_it_too() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let before = guest.traces();
    let mut request = container(&guest, "web", &["sleep", "1000"]);
    let linux = request.OCI.as_mut().unwrap().Linux.as_mut().unwrap();
    let mut namespace = agent::LinuxNamespace::new();
    namespace.Type = "user".into();
    linux.Namespaces.push(namespace);
    let mut mapping = agent::LinuxIDMapping::new();
    (mapping.HostID, mapping.Size) = (100_000, 1000);
    linux.UIDMappings.push(mapping.clone());
    // Both are needed.
    let refused = calls.0.create_container(context(), &request).await;
    assert_refused(refused, Code::INTERNAL, "gid mappings without a line");
    let linux = request.OCI.as_mut().unwrap().Linux.as_mut().unwrap();
    linux.GIDMappings.push(mapping);
    calls.0.create_container(context(), &request).await.unwrap();
    calls.start("web").await.unwrap();
    let said = calls.say("web", "one", "id -u; cat /proc/1/uid_map").await;
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "1000"]);
    calls.remove("web").await.unwrap();
    guest.has_left_nothing_since(&before).await;
}

#[tokio::test]
async fn outside_a_vm_no_parameter_of_a_namespace_of_others_is_set() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let mut request = container(&guest, "web", &["true"]);
    let linux = request.OCI.as_mut().unwrap().Linux.as_mut().unwrap();
    for namespace in &mut linux.Namespaces {
        if namespace.Type == "network" {
            namespace.Path = "/proc/1/ns/net".into();
        }
    }
    let parameter = ("net.ipv4.ip_forward".into(), "1".into());
    linux.Sysctl.extend([parameter]);
    let refused = calls.0.create_container(context(), &request).await;
    assert_refused(refused, Code::FAILED_PRECONDITION, "sysctl");
}
