//! Tap devices: made before a VM exists, opened for its VMM, and outliving it.
//! Whoever made one decides where its frames go.
#![expect(
    unsafe_code,
    reason = "the ioctls of /dev/net/tun have no safe interface"
)]

use std::ffi::{CString, c_ulong};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::process::geteuid;

use crate::error::Error;
use crate::spec::{NicBackend, VmSpec};

/// Where tap devices are made (Documentation/networking/tuntap.rst of Linux).
const DEVICE: &str = "/dev/net/tun";
/// `IFNAMSIZ` - 1, linux/if.h: the kernel reads up to a zero byte.
const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;
/// Ethernet frames behind a virtio-net header, and nothing in front of it.
const FRAMES: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes a tap device in the network namespace of this thread. It is down, has
/// no address and one queue, frames begin with a virtio-net header, and only
/// this user may attach to it. It stays until it is removed as a link.
///
/// # Errors
/// [`Error::Spec`] for a name that is no interface's; [`Error::Path`] when the
/// kernel has no taps, the name is taken (`EBUSY`), or without `CAP_NET_ADMIN`.
pub fn create_tap(name: &str) -> Result<(), Error> {
    let device = new_tap(name)?;
    set(&device, libc::TUNSETOWNER as _, geteuid().as_raw())
        .map_err(Error::path("ioctl TUNSETOWNER", name))?;
    // The last step: until here closing the descriptor removes it.
    set(&device, libc::TUNSETPERSIST as _, 1).map_err(Error::path("ioctl TUNSETPERSIST", name))
}

/// Makes a tap device as [`create_tap`] does, with its queue open: it goes when
/// that is closed, whatever happens to this process.
///
/// # Errors
/// Those of [`create_tap`].
pub fn create_passing_tap(name: &str) -> Result<OwnedFd, Error> {
    new_tap(name).map(OwnedFd::from)
}

/// Opens the queue of a tap device that exists in the network namespace of this
/// thread, without blocking: each read(2) and write(2) is a frame behind a
/// virtio-net header. The device stays what it is after the queue was closed,
/// if it is a persistent one.
///
/// # Errors
/// [`Error::Path`]: ENODEV when there is none of this name; EBUSY when another
/// holds its queue; EINVAL when it is no tap device, or one with several queues.
pub fn open_tap(name: &str) -> Result<OwnedFd, Error> {
    open_existing(name).map_err(Error::path("open tap", name))
}

/// Opens the tap devices of a VM's interfaces, in their order.
pub(crate) fn open_taps(spec: &VmSpec) -> Result<Vec<OwnedFd>, Error> {
    names(spec).map(open_tap).collect()
}

/// Lets the user with this number, and no other without `CAP_NET_ADMIN`, attach
/// to the tap devices of a VM's interfaces by their names. They belong to it for
/// as long as they are there.
pub(super) fn give_taps(spec: &VmSpec, uid: u32) -> Result<(), Error> {
    names(spec).try_for_each(|name| give_tap(name, uid))
}

fn names(spec: &VmSpec) -> impl Iterator<Item = &str> {
    spec.nics.iter().filter_map(|nic| match &nic.backend {
        NicBackend::Tap { name } => Some(name.as_str()),
        NicBackend::None | NicBackend::User => None,
    })
}

fn give_tap(name: &str, uid: u32) -> Result<(), Error> {
    // Only the queue of a device can be told whose it is; closed, it is free.
    let queue = File::from(open_tap(name)?);
    set(&queue, libc::TUNSETOWNER as _, uid).map_err(Error::path("ioctl TUNSETOWNER", name))
}

fn new_tap(name: &str) -> Result<File, Error> {
    let fits = (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !fits {
        return Err(Error::Spec {
            field: "tap",
            reason: format!("{name:?} is not 1 to {LONGEST_NAME} letters and digits"),
        });
    }
    let device = open_device(0).map_err(Error::path("open", DEVICE))?;
    attach(&device, name, FRAMES | libc::IFF_TUN_EXCL)
        .map_err(Error::path("ioctl TUNSETIFF", name))?;
    Ok(device)
}

fn open_existing(name: &str) -> io::Result<OwnedFd> {
    let terminated = CString::new(name)?;
    if name.len() > LONGEST_NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // TUNSETIFF makes what is not there; whoever names a device has made it.
    // SAFETY: the name ends in a zero byte and lives until the call returns.
    if unsafe { libc::if_nametoindex(terminated.as_ptr()) } == 0 {
        return Err(io::Error::last_os_error());
    }
    let queue = open_device(libc::O_NONBLOCK)?;
    attach(&queue, name, FRAMES)?;
    Ok(queue.into())
}

fn open_device(flags: libc::c_int) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options.open(DEVICE)
}

/// Makes a descriptor of the device the queue of a tap of this name, which is
/// at most [`LONGEST_NAME`] bytes long.
fn attach(device: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()).take(LONGEST_NAME) {
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
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    #[test]
    fn a_name_that_is_no_interfaces_is_refused_before_anything_is_opened() {
        for name in ["", "a/b", "..", "0123456789abcdef", "tap 0"] {
            for made in [create_tap(name), create_passing_tap(name).map(drop)] {
                assert!(matches!(made, Err(Error::Spec { .. })), "{name:?}");
            }
        }
    }

    #[test]
    fn a_tap_device_that_is_not_there_is_not_made() {
        let error = open_existing("no-such-tap").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "{error}");
        let error = open_existing("a-name-of-sixteen").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(open_existing("zero\0byte").is_err());
    }

    /// What the kernel says to a user with no capability that opens a tap by its
    /// name, once it has the device.
    fn attach_as(uid: u32, name: &str) -> Result<(), i32> {
        let device = open_device(libc::O_NONBLOCK).unwrap();
        let attached = std::thread::scope(|scope| {
            // Users are each thread's own.
            let asked = scope.spawn(|| {
                let uid = rustix::process::Uid::from_raw(uid);
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                attach(&device, name, FRAMES)
            });
            asked.join().unwrap()
        });
        attached.map_err(|error| error.raw_os_error().unwrap())
    }

    #[test]
    fn a_tap_that_was_given_away_is_its_users_and_no_other_users() {
        const USER: u32 = 0x7e00_0001;
        let tried = std::thread::spawn(|| {
            // SAFETY: this thread gets a network of its own; its descriptors stay.
            let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
            if !geteuid().is_root() || unshared.is_err() || open_device(0).is_err() {
                eprintln!("skipped: it takes root, a network namespace and {DEVICE}");
                return;
            }
            create_tap("given").unwrap();
            assert_eq!(attach_as(USER, "given"), Err(libc::EPERM));
            give_tap("given", USER).unwrap();
            assert_eq!(attach_as(USER + 1, "given"), Err(libc::EPERM));
            assert_eq!(attach_as(USER, "given"), Ok(()));
            // For whom it was made may be gone before it has begun.
            give_tap("given", USER + 1).unwrap();
            assert_eq!(attach_as(USER + 1, "given"), Ok(()));
            let error = give_tap("none", USER).unwrap_err();
            assert!(error.to_string().contains("none"), "{error}");
        });
        tried.join().unwrap();
    }

    #[test]
    fn what_is_no_tap_device_is_not_opened() {
        // Every network namespace has it. Without the device or the permission,
        // that is the error.
        assert!(open_tap("lo").is_err());
    }
}
