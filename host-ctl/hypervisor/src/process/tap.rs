//! Tap devices, made before a VM exists and outliving it: whoever made one
//! decides when its frames go anywhere.
#![expect(
    unsafe_code,
    reason = "the ioctls of /dev/net/tun have no safe interface"
)]

use std::ffi::c_ulong;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use rustix::process::geteuid;

use crate::error::Error;

/// Where tap devices are made (Documentation/networking/tuntap.rst).
const DEVICE: &str = "/dev/net/tun";
/// `IFNAMSIZ` - 1, linux/if.h.
const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;

/// Makes a tap device in the network namespace of this thread. It is down, has
/// no address and one queue, frames begin with a virtio-net header, and only
/// this user may attach to it. It stays until it is removed as a link.
///
/// # Errors
/// [`Error::Spec`] for a name that is no interface's; [`Error::Path`] when the
/// kernel has no taps, the name is taken (`EBUSY`), or without `CAP_NET_ADMIN`.
pub fn create_tap(name: &str) -> Result<(), Error> {
    let fits = (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !fits {
        return Err(Error::Spec {
            field: "tap",
            reason: format!("{name:?} is not 1 to {LONGEST_NAME} letters and digits"),
        });
    }
    let device = OpenOptions::new().read(true).write(true).open(DEVICE);
    let device = device.map_err(Error::path("open", DEVICE))?;
    attach_new(&device, name).map_err(Error::path("ioctl TUNSETIFF", name))?;
    set(&device, libc::TUNSETOWNER as _, geteuid().as_raw())
        .map_err(Error::path("ioctl TUNSETOWNER", name))?;
    // The last step: until here closing the descriptor removes it.
    set(&device, libc::TUNSETPERSIST as _, 1).map_err(Error::path("ioctl TUNSETPERSIST", name))
}

fn attach_new(device: &File, name: &str) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut request = libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            // The low half: IFF_TUN_EXCL is its sign bit.
            ifru_flags: (flags & 0xffff) as libc::c_short,
        },
    };
    // SAFETY: TUNSETIFF reads an ifreq, and writes the name back into one; this
    // one outlives the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    outcome(done)
}

fn set(device: &File, request: c_ulong, value: u32) -> io::Result<()> {
    // SAFETY: both requests take a number in place of a pointer.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), request as _, c_ulong::from(value)) };
    outcome(done)
}

fn outcome(done: libc::c_int) -> io::Result<()> {
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_interfaces_is_refused_before_anything_is_opened() {
        for name in ["", "a/b", "..", "0123456789abcdef", "tap 0"] {
            assert!(
                matches!(create_tap(name), Err(Error::Spec { .. })),
                "{name:?}"
            );
        }
    }
}
