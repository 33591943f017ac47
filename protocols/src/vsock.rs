//! AF_VSOCK: how the host dials, and which of its processes a guest takes.
//!
//! Every local process of a host can dial every guest of vhost-vsock. What only
//! a privileged one can do is dial from a port below 1024 (vsock(7),
//! `CAP_NET_BIND_SERVICE`): a guest that was told so takes no other peer.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, connect, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockStream};

/// `LAST_RESERVED_PORT`, net/vmw_vsock/af_vsock.c.
const LAST_PRIVILEGED_PORT: u32 = 1023;

/// Which peers a guest's vsock ports take. Only the host's ever are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VsockPeers {
    /// Every process of the host: where the VMM itself is the one that dials,
    /// and its own socket says who may.
    #[default]
    Host,
    /// The host's privileged processes.
    PrivilegedHost,
}

impl VsockPeers {
    /// Whether this peer is taken.
    #[must_use]
    pub fn take(self, cid: u32, port: u32) -> bool {
        let privileged = (1..=LAST_PRIVILEGED_PORT).contains(&port);
        cid == VMADDR_CID_HOST && (privileged || self == Self::Host)
    }
}

/// Text that names no [`VsockPeers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected host or privileged-host")]
pub struct UnknownPeers;

impl FromStr for VsockPeers {
    type Err = UnknownPeers;

    fn from_str(text: &str) -> Result<Self, UnknownPeers> {
        match text {
            "host" => Ok(Self::Host),
            "privileged-host" => Ok(Self::PrivilegedHost),
            _ => Err(UnknownPeers),
        }
    }
}

impl fmt::Display for VsockPeers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Host => "host",
            Self::PrivilegedHost => "privileged-host",
        })
    }
}

/// Whether this process dials from a privileged port, so that a guest may be
/// told to take no other peer.
#[must_use]
pub fn dials_privileged() -> bool {
    // The root of a container or of a user namespace may lack the capability.
    rustix::process::geteuid().is_root()
        && !new_socket()
            .and_then(|socket| bind_privileged(&socket))
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Vsock, SockType::Stream, flags, None)?)
}

/// Connects, from a privileged port if this process may: there are 1023 of
/// them for all connections of a host together.
pub(crate) async fn dial(cid: u32, port: u32) -> io::Result<VsockStream> {
    let to = VsockAddr::new(cid, port);
    if !rustix::process::geteuid().is_root() {
        return VsockStream::connect(to).await;
    }
    let socket = new_socket()?;
    match bind_privileged(&socket) {
        // It is root in name only, and dials from where it may.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        bound => bound?,
    }
    match connect(socket.as_raw_fd(), &to) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    #[expect(
        deprecated,
        reason = "an OwnedFd keeps the promise that the unsafe successor asks for"
    )]
    let connecting = AsyncFd::with_interest(socket, Interest::WRITABLE)?;
    connecting.writable().await?.retain_ready();
    let socket = connecting.into_inner();
    rustix::net::sockopt::socket_error(&socket)??;
    VsockStream::new(socket.into())
}

/// Binds to some privileged port that is free.
fn bind_privileged(socket: &OwnedFd) -> io::Result<()> {
    let mut number = [0; 4];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
    for port in privileged_ports(u32::from_ne_bytes(number)) {
        match bind(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, port)) {
            Err(Errno::EADDRINUSE) => {}
            outcome => return Ok(outcome?),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        "all privileged vsock ports are in use",
    ))
}

/// Every privileged port once, beginning somewhere.
fn privileged_ports(begin: u32) -> impl Iterator<Item = u32> {
    let begin = begin % LAST_PRIVILEGED_PORT;
    (0..LAST_PRIVILEGED_PORT).map(move |step| 1 + (begin + step) % LAST_PRIVILEGED_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn every_privileged_port_is_tried_once(begin: u32) {
            let ports: Vec<u32> = privileged_ports(begin).collect();
            prop_assert_eq!(ports.len(), 1023);
            let ports: BTreeSet<u32> = ports.into_iter().collect();
            prop_assert_eq!(ports.len(), 1023);
            prop_assert!(ports.iter().all(|port| (1..1024).contains(port)));
        }

        #[test]
        fn no_guest_takes_a_peer_that_is_not_the_host(cid: u32, port: u32) {
            let host = cid == VMADDR_CID_HOST;
            prop_assert_eq!(VsockPeers::Host.take(cid, port), host);
            let privileged = host && (1..1024).contains(&port);
            prop_assert_eq!(VsockPeers::PrivilegedHost.take(cid, port), privileged);
        }
    }

    #[test]
    fn an_ordinary_process_of_the_host_is_refused_where_privilege_is_asked_for() {
        assert!(VsockPeers::PrivilegedHost.take(VMADDR_CID_HOST, 1023));
        assert!(!VsockPeers::PrivilegedHost.take(VMADDR_CID_HOST, 1024));
        assert!(!VsockPeers::PrivilegedHost.take(VMADDR_CID_HOST, 0));
    }

    #[test]
    fn peers_read_back_as_written() {
        for peers in [VsockPeers::Host, VsockPeers::PrivilegedHost] {
            assert_eq!(peers.to_string().parse(), Ok(peers));
        }
        assert_eq!("".parse::<VsockPeers>(), Err(UnknownPeers));
    }
}
