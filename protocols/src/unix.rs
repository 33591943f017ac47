//! Unix sockets by path, however long the path, or by abstract name.
//!
//! `sun_path` holds 108 bytes (unix(7)); a longer path is reached through
//! `/proc/self/fd/N/name`, N being its directory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;

/// `sun_path` without its closing zero byte (unix(7)).
const LONGEST_PATH: usize = 107;

/// Binds and listens at `path`; `@NAME` is the abstract name NAME. The socket
/// blocks, as the standard library's do.
///
/// # Errors
/// What open(2) says of the directory and bind(2) of the name.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let place = Place::of(path)?;
    UnixListener::bind_addr(&place.address)
}

/// Connects to the socket at `path`; `@NAME` is the abstract name NAME.
///
/// # Errors
/// What open(2) says of the directory and connect(2) of the name. A listener
/// whose queue is full answers `WouldBlock` at once.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let place = Place::of(path)?;
    UnixStream::connect_addr(&place.address.clone().into()).await
}

/// A socket address, and the directory that must stay open while it is used.
struct Place {
    address: SocketAddr,
    _directory: Option<OwnedFd>,
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        if let Some(name) = bytes.strip_prefix(b"@") {
            return Ok(Self {
                address: SocketAddr::from_abstract_name(name)?,
                _directory: None,
            });
        }
        if bytes.len() <= LONGEST_PATH {
            return Ok(Self {
                address: SocketAddr::from_pathname(path)?,
                _directory: None,
            });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = rustix::fs::open(
            directory,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Self {
            address: SocketAddr::from_pathname(short)?,
            _directory: Some(directory),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{bind, connect};
    use std::path::Path;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn greets(path: &Path) {
        let listener = bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let mut client = connect(path).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"hello").await.unwrap();
        let mut greeting = [0; 5];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"hello");
    }

    #[tokio::test]
    async fn a_path_longer_than_sun_path_works_at_both_ends() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        greets(&deep.join("agent.sock")).await;
    }

    #[tokio::test]
    async fn a_short_path_and_an_abstract_name_work() {
        let directory = tempfile::tempdir().unwrap();
        greets(&directory.path().join("s")).await;
        let name = directory.path().to_string_lossy().replace('/', "-");
        greets(Path::new(&format!("@tardigrade{name}"))).await;
    }

    #[tokio::test]
    async fn an_absent_socket_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let error = connect(&directory.path().join("none")).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
}
