//! The one socket between the agent and a child: messages in JSON, each after
//! four bytes of length, with file descriptors beside them (unix(7),
//! SCM_RIGHTS).
//!
//! Reads and writes block, up to a deadline where one is set: children have
//! nothing else to do, and the agent uses it on threads of its own.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest message, in bytes: a spec comes in a ttrpc message of at most
/// 4 MiB, and grows a little as JSON.
const LENGTH_MAX: usize = 16 << 20;
/// The most descriptors of a message.
const DESCRIPTORS_MAX: usize = 4;

/// Why a message was not passed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("{call} on the child's socket")]
    Socket {
        /// What was tried.
        call: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It cannot be encoded or decoded, or is too long.
    #[error("message of the child's socket")]
    Message(#[source] serde_json::Error),
    /// It is longer than any may be.
    #[error("message of {0} bytes on the child's socket")]
    TooLong(usize),
    /// Nothing came, or nothing was taken, in time.
    #[error("the child did not answer in time")]
    Deadline,
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> ChannelError {
    move |source| match source.kind() {
        // What a socket's timeout gives, socket(7) SO_RCVTIMEO.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ChannelError::Deadline,
        _ => ChannelError::Socket { call, source },
    }
}

/// One end of the socket.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
    deadline: Option<Instant>,
}

/// A message and the descriptors that came with it.
pub(super) type Received<T> = (T, Vec<OwnedFd>);

impl Channel {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            deadline: None,
        }
    }

    /// From now on every call ends by then.
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    pub(super) fn send<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let body = serde_json::to_vec(message).map_err(ChannelError::Message)?;
        let length = u32::try_from(body.len())
            .ok()
            .filter(|_| body.len() <= LENGTH_MAX)
            .ok_or(ChannelError::TooLong(body.len()))?;
        self.arm()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(ChannelError::TooLong(descriptors.len()));
        }
        // The four bytes carry the descriptors. They always fit: the socket's
        // buffer is empty, or the peer is being waited for.
        let head = length.to_be_bytes();
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(
                &self.socket,
                &[IoSlice::new(&head)],
                &mut beside,
                SendFlags::NOSIGNAL,
            )
        });
        let sent = sent.map_err(|error| failed("sendmsg")(error.into()))?;
        let rest = head.get(sent..).unwrap_or_default();
        self.socket.write_all(rest).map_err(failed("write"))?;
        self.socket.write_all(&body).map_err(failed("write"))
    }

    /// The next message; none once the peer has closed its end, whole or in
    /// the middle of a message.
    pub(super) fn receive<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<Received<T>>, ChannelError> {
        let mut head = [0; 4];
        let Some(descriptors) = self.receive_head(&mut head)? else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
        if length > LENGTH_MAX {
            return Err(ChannelError::TooLong(length));
        }
        self.arm()?;
        let mut body = vec![0; length];
        match self.socket.read_exact(&mut body) {
            Err(error) if is_end(&error) => return Ok(None),
            outcome => outcome.map_err(failed("read"))?,
        }
        let message = serde_json::from_slice(&body).map_err(ChannelError::Message)?;
        Ok(Some((message, descriptors)))
    }

    fn receive_head(&mut self, head: &mut [u8; 4]) -> Result<Option<Vec<OwnedFd>>, ChannelError> {
        self.arm()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(head)],
                &mut beside,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let bytes = match received.map_err(io::Error::from) {
            Err(error) if is_end(&error) => return Ok(None),
            outcome => outcome.map_err(failed("recvmsg"))?.bytes,
        };
        let descriptors = beside
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        if bytes == 0 {
            return Ok(None);
        }
        let rest = head.get_mut(bytes..).unwrap_or_default();
        match self.socket.read_exact(rest) {
            Err(error) if is_end(&error) => Ok(None),
            outcome => outcome.map(|()| Some(descriptors)).map_err(failed("read")),
        }
    }

    /// Has the socket's own timeouts end with the deadline.
    fn arm(&self) -> Result<(), ChannelError> {
        let Some(deadline) = self.deadline else {
            return Ok(());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(ChannelError::Deadline);
        }
        self.socket
            .set_read_timeout(Some(left))
            .and_then(|()| self.socket.set_write_timeout(Some(left)))
            .map_err(failed("setsockopt"))
    }
}

/// A peer that ends with bytes unread resets the connection.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn pair() -> (Channel, Channel) {
        let (one, two) = UnixStream::pair().unwrap();
        (Channel::new(one), Channel::new(two))
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (mut one, mut two) = pair();
        let (reader, writer) = std::io::pipe().unwrap();
        one.send(&"hello", &[writer.as_fd()]).unwrap();
        one.send(&7, &[]).unwrap();
        drop(writer);
        let (text, descriptors): Received<String> = two.receive().unwrap().unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("hello", 1));
        let (number, none): Received<u32> = two.receive().unwrap().unwrap();
        assert_eq!((number, none.len()), (7, 0));
        rustix::io::write(&descriptors[0], b"x").unwrap();
        drop(descriptors);
        assert_eq!(std::io::read_to_string(reader).unwrap(), "x");
    }

    #[test]
    fn a_message_longer_than_the_socket_buffer_arrives_whole() {
        let (mut one, mut two) = pair();
        let text = "x".repeat(3 << 20);
        let sent = text.clone();
        let sender = std::thread::spawn(move || one.send(&sent, &[]).unwrap());
        let (received, _): Received<String> = two.receive().unwrap().unwrap();
        sender.join().unwrap();
        assert!(received == text);
    }

    #[test]
    fn a_closed_peer_is_the_end_and_a_silent_one_a_deadline() {
        let (mut one, two) = pair();
        one.set_deadline(Instant::now() + Duration::from_millis(20));
        assert!(matches!(one.receive::<u32>(), Err(ChannelError::Deadline)));
        let (mut one, mut two) = (Channel::new(one.socket), two);
        two.socket.write_all(&[0, 0]).unwrap();
        drop(two);
        one.set_deadline(Instant::now() + Duration::from_secs(10));
        assert!(one.receive::<u32>().unwrap().is_none());
    }

    #[test]
    fn an_absurd_length_is_refused_before_it_is_allocated() {
        let (mut one, mut two) = pair();
        two.socket.write_all(&[0xff; 4]).unwrap();
        let error = one.receive::<u32>().unwrap_err();
        assert!(matches!(error, ChannelError::TooLong(_)));
    }
}
