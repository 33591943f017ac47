//! The agent as an ordinary process: where it listens, what it refuses, and
//! how it ends.

use crate::harness::{
    Calls, DEADLINE, Guest, HealthClient, agent_program, assert_refused, context, mortal,
};
use protocols::wire::{agent, types};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

/// An agent in the namespaces of the test; killed when dropped.
struct Ordinary(Child);

impl Ordinary {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (serves, wait) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if line.contains("\"serving\"") {
                    let _ = serves.send(());
                }
            }
        });
        let ordinary = Self(child);
        wait.recv_timeout(DEADLINE).expect("the agent serves");
        ordinary
    }

    /// Its exit code, once it was told to end.
    async fn terminated(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let ended = tokio::task::spawn_blocking(move || self.0.wait().unwrap().code());
        tokio::time::timeout(DEADLINE, ended)
            .await
            .unwrap()
            .unwrap()
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn agent(scratch: &Path) -> Command {
    let mut command = mortal(&agent_program());
    command.env_clear().env("TMPDIR", scratch);
    command
}

async fn is_alive(stream: UnixStream) {
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::UnixStream::from_std(stream).unwrap();
    let health = HealthClient::new(Client::new(Socket::new(stream)));
    let reply = health.check(context(), &agent::CheckRequest::new()).await;
    let serving = agent::health_check_response::ServingStatus::SERVING;
    assert_eq!(reply.unwrap().status.enum_value(), Ok(serving));
}

#[tokio::test]
async fn it_listens_at_an_abstract_name_and_leaves_nothing_when_told_to_end() {
    let scratch = tempfile::tempdir().unwrap();
    let name = format!("tardigrade-wire-{}", std::process::id());
    let mut command = agent(scratch.path());
    command.args(["--server", &format!("unix://@{name}")]);
    let ordinary = Ordinary::start(&mut command);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    is_alive(UnixStream::connect_addr(&address).unwrap()).await;
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    assert_eq!(ordinary.terminated().await, Some(0));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_environment_says_where_it_listens_and_by_which_policy() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("agent.sock");
    let policy = scratch.path().join("policy.rego");
    let rules = "package agent_policy\nListRoutesRequest := true\n";
    std::fs::write(&policy, rules).unwrap();
    let mut command = agent(scratch.path());
    command
        .env(
            "KATA_AGENT_SERVER_ADDR",
            format!("unix://{}", socket.display()),
        )
        .env("KATA_AGENT_LOG_LEVEL", "debug")
        .env("KATA_AGENT_POLICY_FILE", &policy);
    let _ordinary = Ordinary::start(&mut command);
    is_alive(UnixStream::connect(&socket).unwrap()).await;
    let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let client = crate::harness::AgentServiceClient::new(Client::new(Socket::new(stream)));
    let allowed = agent::ListRoutesRequest::new();
    client.list_routes(context(), &allowed).await.unwrap();
    let denied = agent::ListInterfacesRequest::new();
    let denied = client.list_interfaces(context(), &denied).await;
    assert_refused(denied, Code::PERMISSION_DENIED, "is blocked by policy");
}

#[test]
fn what_it_cannot_understand_ends_it_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    for arguments in [
        vec!["--server", "tcp://127.0.0.1:1024"],
        vec!["--log", "loud"],
        vec!["--no-such-argument"],
    ] {
        let status = agent(scratch.path()).args(arguments).status().unwrap();
        assert_eq!(status.code(), Some(2));
    }
}

#[tokio::test]
async fn a_stream_that_names_its_port_is_served_as_well() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let socket = guest.directory.path().join("agent.sock");
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(b"CONNECT 1024\n").await.unwrap();
    let mut word = [0; 8];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"OK 1024\n");
    is_alive(stream.into_std().unwrap()).await;
}

#[tokio::test]
async fn what_changes_the_machine_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("agent.sock");
    let mut command = agent(scratch.path());
    command.args(["--server", &format!("unix://{}", socket.display())]);
    let _ordinary = Ordinary::start(&mut command);
    let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let client = crate::harness::AgentServiceClient::new(Client::new(Socket::new(stream)));
    let mut reseed = agent::ReseedRandomDevRequest::new();
    reseed.data = vec![1; 32];
    let mut clock = agent::SetGuestDateTimeRequest::new();
    clock.Sec = 1;
    let mut interface = agent::UpdateInterfaceRequest::new();
    interface.interface = Some(types::Interface::new()).into();
    let mut routes = agent::UpdateRoutesRequest::new();
    routes.routes = Some(agent::Routes::new()).into();
    let mut neighbors = agent::AddARPNeighborsRequest::new();
    neighbors.neighbors = Some(agent::ARPNeighbors::new()).into();
    let mut sandbox = agent::CreateSandboxRequest::new();
    sandbox.hostname = "changed".into();
    let mut hooks = agent::CreateSandboxRequest::new();
    hooks.guest_hook_path = "/usr/share/hooks".into();
    for answer in [
        client.reseed_random_dev(context(), &reseed).await.map(drop),
        client
            .set_guest_date_time(context(), &clock)
            .await
            .map(drop),
        client
            .update_interface(context(), &interface)
            .await
            .map(drop),
        client.update_routes(context(), &routes).await.map(drop),
        client
            .add_arp_neighbors(context(), &neighbors)
            .await
            .map(drop),
        client.create_sandbox(context(), &sandbox).await.map(drop),
        client.create_sandbox(context(), &hooks).await.map(drop),
    ] {
        let words = "changes the machine and is refused outside a VM";
        assert_refused(answer, Code::FAILED_PRECONDITION, words);
    }
    for path in ["hooks", "/usr/../hooks"] {
        hooks.guest_hook_path = path.into();
        let refused = client.create_sandbox(context(), &hooks).await;
        assert_refused(refused, Code::INVALID_ARGUMENT, "guest_hook_path");
    }
}

#[tokio::test]
async fn destroying_the_sandbox_removes_every_container_and_ends_the_agent() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    for id in ["one", "two"] {
        calls.run(&guest, id, &["sleep", "1000"]).await;
    }
    let waiting = tokio::spawn({
        let calls = calls.clone();
        async move { calls.wait("one", "").await }
    });
    let request = agent::DestroySandboxRequest::new();
    calls.0.destroy_sandbox(context(), &request).await.unwrap();
    // The one who waited is told, or finds the agent gone.
    if let Ok(status) = waiting.await.unwrap() {
        assert_eq!(status, 137);
    }
    let cgroup = guest.cgroup.clone();
    assert_eq!(guest.ended().await, Some(0));
    assert!(!cgroup.exists());
}

#[tokio::test]
async fn the_network_is_told_and_changed_before_there_is_a_sandbox() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let client = guest.client().await;
    let mut interface = types::Interface::new();
    interface.name = "lo".into();
    interface.mtu = 1500;
    let mut update = agent::UpdateInterfaceRequest::new();
    update.interface = Some(interface.clone()).into();
    let echo = client.update_interface(context(), &update).await.unwrap();
    assert_eq!(echo, interface);
    let listed = agent::ListInterfacesRequest::new();
    let listed = client.list_interfaces(context(), &listed).await.unwrap();
    let loopback = listed.Interfaces.iter().find(|one| one.name == "lo");
    let loopback = loopback.unwrap();
    assert_eq!(loopback.mtu, 1500);
    let address = &loopback.IPAddresses[0];
    assert_eq!(
        (address.address.as_str(), address.mask.as_str()),
        ("127.0.0.1", "8")
    );
    assert_eq!(address.family.enum_value(), Ok(types::IPFamily::v4));

    let mut route = types::Route::new();
    (route.dest, route.device) = ("10.9.8.0/24".into(), "lo".into());
    let mut routes = agent::Routes::new();
    routes.Routes = vec![route];
    let mut update = agent::UpdateRoutesRequest::new();
    update.routes = Some(routes).into();
    let table = client.update_routes(context(), &update).await.unwrap();
    assert!(table.Routes.iter().any(|route| route.dest == "10.9.8.0/24"));

    update.routes.as_mut().unwrap().Routes[0].device = "eth7".into();
    let missing = client.update_routes(context(), &update).await;
    assert_refused(missing, Code::NOT_FOUND, "Link not found");
    interface.name = "eth7".into();
    let mut update = agent::UpdateInterfaceRequest::new();
    update.interface = Some(interface).into();
    let missing = client.update_interface(context(), &update).await;
    assert_refused(missing, Code::NOT_FOUND, "Link not found");
    // One that never comes.
    update.interface.as_mut().unwrap().devicePath = "1f/1f".into();
    let missing = client.update_interface(context(), &update).await;
    assert_refused(
        missing,
        Code::INTERNAL,
        "no device of class net at PCI path 1f/1f",
    );
    update.interface.as_mut().unwrap().devicePath = "0.0.1234".into();
    let refused = client.update_interface(context(), &update).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "devicePath");
    let nothing = agent::UpdateInterfaceRequest::new();
    let nothing = client.update_interface(context(), &nothing).await;
    assert_refused(nothing, Code::INVALID_ARGUMENT, "interface");
    let nothing = agent::UpdateRoutesRequest::new();
    let nothing = client.update_routes(context(), &nothing).await;
    assert_refused(nothing, Code::INVALID_ARGUMENT, "routes");
    let nothing = agent::AddARPNeighborsRequest::new();
    let nothing = client.add_arp_neighbors(context(), &nothing).await;
    assert_refused(nothing, Code::INVALID_ARGUMENT, "neighbors");
}

#[test]
fn no_agent_outlives_the_test_that_has_started_it() {
    let started = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let guest = runtime.block_on(Guest::start())?;
        Some((guest.pidfd(), guest))
    });
    let Some((agent, guest)) = started.join().unwrap() else {
        return;
    };
    let mut watched = [PollFd::new(&agent, PollFlags::IN)];
    let deadline = Timespec {
        tv_sec: i64::try_from(DEADLINE.as_secs()).unwrap(),
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut watched, Some(&deadline)).unwrap(), 1);
    drop(guest);
}
