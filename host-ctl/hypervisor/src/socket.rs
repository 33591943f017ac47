//! Unix sockets of a VM: bound here and inherited by the VMM, so that a client
//! can connect before the VMM has even started, and never has to retry.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, open, statat, unlinkat};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use tokio::net::UnixStream;

use crate::error::Error;

/// Connections that may wait: the VMM takes one at a time.
const BACKLOG: i32 = 4;

/// A listening socket. Its file is removed when this is dropped, unless it was
/// kept; the VMM has the socket itself.
pub(crate) struct Listener {
    pub(crate) descriptor: OwnedFd,
    path: Option<PathBuf>,
}

impl Listener {
    /// Binds at `path`, mode 0600 from its first moment. A socket nobody
    /// listens on any more is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, Error> {
        let descriptor = bind_at(path).map_err(Error::path("bind", path))?;
        Ok(Self {
            descriptor,
            path: Some(path.to_owned()),
        })
    }

    /// Leaves the socket's file for the VM's clients.
    pub(crate) fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes room for a socket that a VMM binds itself: one nobody listens on any
/// more is removed.
///
/// # Errors
/// When there is a file, or a socket with a listener.
pub(crate) fn vacate(path: &Path) -> Result<(), Error> {
    let vacated = || {
        let place = Place::of(path)?;
        match place.is_abandoned() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(true) => Ok(unlinkat(&place.directory, place.name, AtFlags::empty())?),
            Ok(false) => Err(rustix::io::Errno::ADDRINUSE.into()),
            Err(error) => Err(error),
        }
    };
    vacated().map_err(Error::path("bind", path))
}

fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

fn bind_at(path: &Path) -> io::Result<OwnedFd> {
    let place = Place::of(path)?;
    let socket = new_socket(SocketFlags::empty())?;
    // The file that bind(2) makes has the mode of the socket, less the umask.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    match bind(&socket, &place.address) {
        Err(rustix::io::Errno::ADDRINUSE) if place.is_abandoned()? => {
            unlinkat(&place.directory, place.name, AtFlags::empty())?;
            bind(&socket, &place.address)?;
        }
        result => result?,
    }
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects without waiting: a listener of ours has room, or is busy.
pub(crate) fn connect_at(path: &Path) -> Result<UnixStream, Error> {
    let connected = || {
        let place = Place::of(path)?;
        let socket = new_socket(SocketFlags::NONBLOCK)?;
        connect(&socket, &place.address)?;
        UnixStream::from_std(socket.into())
    };
    connected().map_err(Error::path("connect", path))
}

/// Where a socket is: `sun_path` holds 108 bytes only (unix(7)), so it is named
/// through its directory, which must stay open meanwhile.
struct Place<'a> {
    directory: OwnedFd,
    name: &'a OsStr,
    address: SocketAddrUnix,
}

impl<'a> Place<'a> {
    fn of(path: &'a Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(parent, flags, Mode::empty())?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
        let address = SocketAddrUnix::new(short.join(name))?;
        Ok(Self {
            directory,
            name,
            address,
        })
    }

    /// Whether what is there is a socket without a listener.
    fn is_abandoned(&self) -> io::Result<bool> {
        let found = statat(&self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
            return Ok(false);
        }
        let probe = new_socket(SocketFlags::NONBLOCK)?;
        Ok(connect(&probe, &self.address) == Err(rustix::io::Errno::CONNREFUSED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_an_abandoned_socket_makes_room() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        vacate(&path).unwrap();
        let listener = Listener::bind(&path).unwrap();
        vacate(&path).unwrap_err();
        listener.keep();
        vacate(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, b"file").unwrap();
        vacate(&path).unwrap_err();
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_socket_with_a_long_path_is_bound_private_and_connected_before_anyone_accepts() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("d".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let path = long.join("socket");
        let listener = Listener::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        connect_at(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_abandoned_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = Listener::bind(&path).unwrap();
        assert!(Listener::bind(&path).is_err(), "it has a listener");
        first.keep();
        let second = Listener::bind(&path).unwrap();
        second.keep();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"file").unwrap();
        assert!(Listener::bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"file");
    }
}
