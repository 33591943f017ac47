//! Kernel modules.

use std::io;
use std::os::fd::BorrowedFd;

/// Loads the module in `file`, without parameters.
///
/// # Errors
/// Those of finit_module(2): `EEXIST` if it is loaded already.
pub fn load(file: BorrowedFd<'_>) -> io::Result<()> {
    rustix::system::finit_module(file, c"", 0).map_err(io::Error::from)
}
