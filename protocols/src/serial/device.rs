//! The character device of a virtio-serial port, without blocking and without
//! spinning.
//!
//! With no host connected a read gives 0, a write EAGAIN and poll(2) IN|HUP
//! for ever, and the runtime's own registration never forgets a HUP. So the
//! port is registered, edge-triggered, with an epoll instance of its own, and
//! the runtime watches that instance (epoll(7): an epoll descriptor is itself
//! pollable).

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::event::epoll;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// That many bytes.
    Bytes(usize),
    /// A host is there and has sent nothing more.
    Empty,
    /// Nobody is there, as far as the guest's kernel knows at this moment.
    NoHost,
}

/// The port, for the use of one task.
#[derive(Debug)]
pub(crate) struct Device {
    port: OwnedFd,
    edges: AsyncFd<OwnedFd>,
    /// The writing half waits for an edge; the reading half must not eat it.
    write_waits: bool,
}

impl Device {
    /// Takes over a port, or in tests a socket that plays one. Must be called
    /// inside a runtime.
    pub(crate) fn new(port: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&port)?;
        rustix::fs::fcntl_setfl(&port, flags | OFlags::NONBLOCK)?;
        let instance = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let interest = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&instance, &port, epoll::EventData::new_u64(0), interest)?;
        #[expect(
            deprecated,
            reason = "an OwnedFd keeps the promise that the unsafe successor asks for"
        )]
        let edges = AsyncFd::with_interest(instance, Interest::READABLE)?;
        Ok(Self {
            port,
            edges,
            write_waits: false,
        })
    }

    /// Reads what is there.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Read> {
        match retry(|| rustix::io::read(&self.port, &mut *buffer)) {
            Ok(0) => Ok(Read::NoHost),
            Ok(count) => Ok(Read::Bytes(count)),
            Err(Errno::AGAIN) => Ok(Read::Empty),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits, for the reading half, until something has happened on the port:
    /// data, room, a host that came or went.
    pub(crate) fn poll_edge(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_any_edge(context))?;
        if std::mem::take(&mut self.write_waits) {
            // Both halves live in one task: have it look at the other one too.
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what there is room for.
    pub(crate) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match retry(|| rustix::io::write(&self.port, data)) {
                Ok(count) => {
                    self.write_waits = false;
                    return Poll::Ready(Ok(count));
                }
                Err(Errno::AGAIN) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            self.write_waits = true;
            ready!(self.poll_any_edge(context))?;
            // The edge may have been the reading half's.
            context.waker().wake_by_ref();
        }
    }

    fn poll_any_edge(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.edges.poll_read_ready(context))?;
            let mut events = Vec::with_capacity(1);
            let now = rustix::time::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let count = retry(|| {
                events.clear();
                epoll::wait(
                    self.edges.get_ref(),
                    rustix::buffer::spare_capacity(&mut events),
                    Some(&now),
                )
            })?;
            if count > 0 {
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
        }
    }
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
