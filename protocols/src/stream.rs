//! The one shape of a connected byte stream, whatever carries it.

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream in both directions. `Sync` and `'static` because ttrpc asks
/// for them.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static> Duplex for T {}

/// An opened or accepted stream of any transport.
pub type Stream = Box<dyn Duplex>;
