//! Where an agent is dialled, and who has to listen there.

use std::io;
use std::path::Path;

use tokio::net::UnixStream;

use crate::address::AgentAddress;
use crate::unix;

/// Where an agent is dialled, and who has to listen there if that matters.
///
/// A VMM that makes the socket of its guest's vsock itself can put something
/// else in its place, once it is in the wrong hands: a link to the socket of
/// another VM, whose agent would then be told what this one's is to do. The
/// kernel keeps who began to listen at a socket, by the process that it is and
/// in the words of whoever asks (SO_PEERCRED, unix(7); pid_namespaces(7)), so
/// that neither a path nor a namespace deceives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    address: AgentAddress,
    listener: Option<i32>,
}

impl Destination {
    /// An address at which this process, and no other, has to listen. It is not
    /// looked for where an address is no socket.
    #[must_use]
    pub fn listened_by(address: AgentAddress, process: i32) -> Self {
        Self {
            address,
            listener: Some(process),
        }
    }

    /// Where.
    #[must_use]
    pub fn address(&self) -> &AgentAddress {
        &self.address
    }

    /// Connects to a socket of it. Nothing was said when it is another's.
    pub(crate) async fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        let stream = unix::connect(path).await?;
        self.check(&stream)?;
        Ok(stream)
    }

    fn check(&self, stream: &UnixStream) -> io::Result<()> {
        let Some(wanted) = self.listener else {
            return Ok(());
        };
        // None for a process that this one's pid namespace does not have.
        let found = stream.peer_cred()?.pid().unwrap_or_default();
        if found != 0 && found == wanted {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("process {found} listens there, and not process {wanted}"),
        ))
    }
}

impl From<AgentAddress> for Destination {
    fn from(address: AgentAddress) -> Self {
        Self {
            address,
            listener: None,
        }
    }
}

impl From<&AgentAddress> for Destination {
    fn from(address: &AgentAddress) -> Self {
        address.clone().into()
    }
}

impl From<&Self> for Destination {
    fn from(destination: &Self) -> Self {
        destination.clone()
    }
}
