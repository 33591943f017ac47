//! Links by Unix socket: the agent outside a VM, and the proxy that shares one
//! link among many.

use std::path::Path;
use std::time::Duration;

use crate::rig::{self, ECHO, SOON, echo, expect_echo, expect_working, soon};
use protocols::{
    AgentAddress, GuestAddress, Link, LinkError, Listener, VsockPeers, hybrid, port, unix,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn listen(path: &Path) -> Listener {
    let address = GuestAddress::Unix { path: path.into() };
    Listener::bind(&address, &[port::RPC, ECHO], VsockPeers::Host).unwrap()
}

fn address(path: &Path) -> AgentAddress {
    AgentAddress::Unix { path: path.into() }
}

#[tokio::test]
async fn one_socket_carries_all_ports_and_refuses_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d".repeat(100)).join("agent.sock");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let _agent = echo(listen(&path));
    let link = Link::connect(&address(&path), SOON).await.unwrap();
    expect_working(&link).await;
    assert!(matches!(
        soon(link.open(99, SOON)).await,
        Err(LinkError::Refused { port: 99, .. })
    ));
}

#[tokio::test]
async fn an_agent_that_vanishes_is_noticed_without_asking() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let mut listener = listen(&path);
    let at = address(&path);
    let (link, sentinel) = tokio::join!(Link::connect(&at, SOON), soon(listener.accept()));
    let link = link.unwrap();
    assert!(!link.is_closed());
    drop((listener, sentinel));
    soon(link.closed()).await;
    assert!(matches!(
        link.open(ECHO, SOON).await,
        Err(LinkError::Closed)
    ));
}

#[tokio::test]
async fn a_link_nobody_has_dialled_is_watched_over_from_its_first_grant_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let mut listener = listen(&path);
    let link = Link::undialled(address(&path)).unwrap();
    let (mut stream, opening) = link.open_early(ECHO, SOON).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut asked = soon(listener.accept()).await.unwrap();
    assert_eq!(asked.port, ECHO);
    asked.stream.write_all(b"y").await.unwrap();
    assert_eq!(soon(stream.read_u8()).await.unwrap(), b'y');
    opening.granted(SOON).await.unwrap();
    let watched = soon(listener.accept()).await.unwrap();
    assert_eq!(watched.port, port::RPC);
    assert!(!link.is_closed());
    drop(watched);
    soon(link.closed()).await;

    let serial = AgentAddress::Serial { socket: path };
    assert!(Link::undialled(&serial).is_none());
}

#[tokio::test]
async fn a_peer_that_says_nothing_or_rubbish_is_an_error_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let socket = unix::bind(&path).unwrap();
    let connect = async |deadline| Link::connect(&address(&path), deadline).await;
    let silent = connect(Duration::from_millis(100)).await;
    assert!(matches!(silent, Err(LinkError::Deadline { .. })));
    let rubbish = std::thread::spawn(move || {
        use std::io::Write;
        // The first client in the queue is the one that gave up.
        drop(socket.accept().unwrap());
        let (mut client, _) = socket.accept().unwrap();
        let _ = client.write_all(&[b'x'; 100_000]);
    });
    assert!(matches!(connect(SOON).await, Err(LinkError::Open { .. })));
    rubbish.join().unwrap();
}

#[tokio::test]
async fn the_proxy_shares_one_serial_link_among_many_clients() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let (host, device) = rig::port();
    let _guest = echo(rig::guest(device, &[port::RPC, ECHO]));
    let (publish, current) = tokio::sync::watch::channel(None);
    let listener = unix::bind(&path).unwrap();
    let proxy = tokio::spawn(hybrid::serve(listener, move || current.borrow().clone()));

    let refused = Link::connect(&address(&path), SOON).await;
    assert!(matches!(refused, Err(LinkError::Refused { .. })));

    publish.send_replace(Some(host.link().await));
    let at = AgentAddress::HybridVsock {
        socket: path.clone(),
        port: port::RPC,
    };
    let (first, second) = tokio::join!(Link::connect(&at, SOON), Link::connect(&at, SOON));
    let (first, second) = (first.unwrap(), second.unwrap());
    let mut stream = first.open(ECHO, SOON).await.unwrap();
    expect_working(&second).await;
    expect_echo(&mut stream, b"still there").await;
    // The end of what one side sends passes through.
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert!(matches!(
        soon(second.open(99, SOON)).await,
        Err(LinkError::Refused { port: 99, .. })
    ));

    // When the agent's link ends, so do the links of the clients.
    publish.send_replace(None).unwrap().close();
    soon(first.closed()).await;
    proxy.abort();
}

const DIALLED: &str = "TARDIGRADE_TEST_DIAL";

#[tokio::test]
async fn another_user_is_refused_unread() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return rig::skip("becoming another user needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let name = format!("@tardigrade{}", directory.path().display()).replace('/', "-");
    let mut listener = listen(Path::new(&name));
    let dial = move || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sockets::dials_as_another_user", "--ignored"])
            .env(DIALLED, &name)
            .uid(65534)
            .output()
    };
    let dialler = match tokio::task::spawn_blocking(dial).await.unwrap() {
        Ok(output) => output,
        Err(error) => {
            return rig::skip(&format!("another user cannot run this binary: {error}"));
        }
    };
    let shown = String::from_utf8_lossy(&dialler.stdout).into_owned();
    assert!(dialler.status.success(), "{shown}");
    assert!(shown.contains("1 passed"), "{shown}");
    let accepted = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(accepted.is_err());
}

#[test]
#[ignore = "the other user's half of another_user_is_refused_unread"]
fn dials_as_another_user() {
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let name = std::env::var(DIALLED).unwrap();
    let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
    let mut stream = UnixStream::connect_addr(&address).unwrap();
    // Accepted by the kernel, closed by the agent: nothing is ever answered.
    let _ = stream.write_all(format!("CONNECT {}\n", port::RPC).as_bytes());
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    assert!(!matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock));
    assert_eq!(answer, []);
}
