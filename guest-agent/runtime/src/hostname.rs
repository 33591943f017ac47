//! The step of a thaw that gives the guest and its containers a new hostname.

use crate::process::Process;
use rustix::io::Errno;
use rustix::system::sethostname;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use std::io;
use std::thread;

/// Sets the hostname of the caller's own UTS namespace.
///
/// # Errors
/// Those of sethostname(2): `EPERM` without CAP_SYS_ADMIN.
pub fn set(name: &str) -> io::Result<()> {
    Ok(sethostname(name.as_bytes())?)
}

/// Sets the hostname of the UTS namespace `process` is in. A process that has
/// ended needs none, which is no error.
///
/// # Errors
/// Those of setns(2) and sethostname(2).
pub fn set_in(process: &Process, name: &str) -> io::Result<()> {
    // A namespace is a thread's: this one is made for it and ends with it.
    let outcome = thread::scope(|scope| {
        let setter = scope.spawn(|| {
            move_into_thread_name_spaces(
                process.pidfd(),
                ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            )?;
            sethostname(name.as_bytes())
        });
        setter.join()
    });
    match outcome {
        Ok(Ok(()) | Err(Errno::SRCH)) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(io::Error::other(
            "the thread that sets the hostname panicked",
        )),
    }
}
