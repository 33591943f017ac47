//! Finds a virtio-serial port by the name the VMM gave it, waiting for it by
//! event.
//!
//! The device node comes first and the `name` attribute later, with the VMM's
//! control message; only the second is what we look for, and no watch on /dev
//! sees it. The kernel announces both by uevent (`add`, then `change`), so
//! that is what is waited for.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

/// One directory a port, holding its `name`
/// (Documentation/ABI/testing/sysfs-class-virtio-ports in the kernel's tree
/// is silent; drivers/char/virtio_console.c creates it).
const CLASS: &str = "/sys/class/virtio-ports";

/// Longest name looked at, bytes; QEMU's own limit is below it.
const MAX_NAME: usize = 256;

/// The multicast group in which the kernel itself speaks
/// (lib/kobject_uevent.c).
const KERNEL_GROUP: u32 = 1;

/// The device node of the port named `name`. Blocks the thread until the port
/// is there, at most `deadline`: an agent has nothing else to do before.
///
/// # Errors
/// `TimedOut` when the port did not appear in time, else what socket(2) or
/// poll(2) says.
pub fn find_port(name: &str, deadline: Duration) -> io::Result<PathBuf> {
    find_in(Path::new(CLASS), name, deadline)
}

fn find_in(class: &Path, name: &str, deadline: Duration) -> io::Result<PathBuf> {
    if let Some(found) = look(class, name) {
        return Ok(found);
    }
    let end = Instant::now() + deadline;
    let events = subscribe()?;
    loop {
        // After subscribing, so that nothing happens in between unseen.
        if let Some(found) = look(class, name) {
            return Ok(found);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        wait(&events, left)?;
    }
}

fn look(class: &Path, name: &str) -> Option<PathBuf> {
    let ports = std::fs::read_dir(class).ok()?;
    ports.flatten().find_map(|port| {
        let found = std::fs::read(port.path().join("name")).ok()?;
        let found = found.strip_suffix(b"\n").unwrap_or(&found);
        let matches = found.len() <= MAX_NAME && found == name.as_bytes();
        matches.then(|| Path::new("/dev").join(port.file_name()))
    })
}

fn subscribe() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::KOBJECT_UEVENT),
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

/// Waits for an event and takes all that are there; what they say is not read,
/// the directory is looked at again.
fn wait(events: &OwnedFd, left: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut polled = [PollFd::new(events, PollFlags::IN)];
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut message = [0; 64];
    loop {
        match rustix::net::recv(events, &mut message[..], RecvFlags::TRUNC) {
            // ENOBUFS: events were dropped; looking again makes up for it.
            Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::find_in;
    use std::io;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn a_port_is_found_by_its_name() {
        let class = tempfile::tempdir().unwrap();
        for (port, name) in [("vport0p1", "org.other\n"), ("vport0p2", "agent.0\n")] {
            std::fs::create_dir(class.path().join(port)).unwrap();
            std::fs::write(class.path().join(port).join("name"), name).unwrap();
        }
        let found = find_in(class.path(), "agent.0", Duration::ZERO).unwrap();
        assert_eq!(found, Path::new("/dev/vport0p2"));
    }

    #[test]
    fn a_port_that_does_not_come_is_an_error_at_the_deadline() {
        let class = tempfile::tempdir().unwrap();
        // A port whose name has not arrived yet.
        std::fs::create_dir(class.path().join("vport0p1")).unwrap();
        let error = find_in(class.path(), "agent.0", Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
