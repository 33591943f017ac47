//! What is asked of the kernel for a VMM that has no safe interface: a tap
//! device's queue, and how much of Landlock there is.
#![expect(
    unsafe_code,
    reason = "TUNSETIFF and landlock_create_ruleset have no safe interface"
)]

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::error::Error;
use crate::spec::{NicBackend, VmSpec};

/// What makes tap devices (Documentation/networking/tuntap.rst of Linux).
const TUN_DEVICE: &str = "/dev/net/tun";

/// Opens the tap devices of a VM's interfaces, in their order.
pub(crate) fn open_taps(spec: &VmSpec) -> Result<Vec<OwnedFd>, Error> {
    let names = spec.nics.iter().filter_map(|nic| match &nic.backend {
        NicBackend::Tap { name } => Some(name),
        NicBackend::None | NicBackend::User => None,
    });
    names
        .map(|name| open_tap(name).map_err(Error::path("open tap", name)))
        .collect()
}

/// Opens the queue of a tap device that exists in our network namespace: frames
/// with virtio-net headers, nothing in front of them. It stays what it is after
/// the queue was closed, if it is a persistent one.
///
/// # Errors
/// ENODEV when there is none of this name; EBUSY when another holds its queue;
/// EINVAL when it is no tap device, or one with several queues.
fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let bytes = name.as_bytes();
    // SAFETY: an ifreq is a plain structure, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the kernel reads up to it.
    if bytes.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    // TUNSETIFF makes what is not there; whoever names a device has made it.
    // SAFETY: the name ends in a zero byte and lives until the call returns.
    if unsafe { libc::if_nametoindex(name.as_ptr()) } == 0 {
        return Err(io::Error::last_os_error());
    }
    let queue = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_DEVICE)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives meanwhile.
    let attached = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if attached == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(queue.into())
}

/// The version of Landlock's interface (landlock_create_ruleset(2)); 0 where the
/// kernel has none, or has it turned off.
pub(crate) fn landlock_version() -> u32 {
    // LANDLOCK_CREATE_RULESET_VERSION, linux/landlock.h.
    const ASK_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag and no attributes the call only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            ASK_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_device_that_is_not_there_is_not_made() {
        let error = open_tap("no-such-tap").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "{error}");
        let error = open_tap("a-name-of-sixteen").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(open_tap("zero\0byte").is_err());
    }

    #[test]
    fn what_is_no_tap_device_is_not_opened() {
        // Every network namespace has it. Without the device or the permission,
        // that is the error.
        assert!(open_tap("lo").is_err());
    }
}
