//! Devices and files to swap to.

use super::{HotplugError, failed, uevent};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The devices behind the first root complex.
const ROOT_COMPLEX: &str = "/sys/devices/pci0000:00";

/// Swaps to the block device or regular file at `path`. It may block.
///
/// # Errors
/// Those of openat2(2) and swapon(2); `EINVAL` for what is neither.
pub fn add_swap(path: &Path) -> Result<(), HotplugError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .map_err(|errno| failed("open", path)(errno.into()))?;
    let kind = fstat(&file).map_err(|errno| failed("stat", path)(errno.into()))?;
    let kind = FileType::from_raw_mode(kind.st_mode);
    if !matches!(kind, FileType::BlockDevice | FileType::RegularFile) {
        return Err(failed("swap to", path)(Errno::INVAL.into()));
    }
    // What was looked at is what is swapped to. Digits have no zero byte.
    let own = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    guest_kernel::swap::on(&own).map_err(failed("swapon", path))
}

/// Waits for the block device behind these slots, each the number of a device
/// on the bus of the one before, and swaps to it.
///
/// # Errors
/// [`HotplugError::Device`] if it does not come within `deadline`, otherwise
/// those of [`add_swap`].
pub async fn add_swap_device(slots: &[u8], deadline: Duration) -> Result<(), HotplugError> {
    let look = || Ok(block_device(Path::new(ROOT_COMPLEX), slots));
    let Some(name) = uevent::wait_for(deadline, look).await? else {
        let path: Vec<String> = slots.iter().map(|slot| format!("{slot:02x}")).collect();
        return Err(HotplugError::Device {
            path: path.join("/"),
            after: deadline,
        });
    };
    let path = Path::new("/dev").join(name);
    let shown = path.clone();
    tokio::task::spawn_blocking(move || add_swap(&path))
        .await
        .map_err(|error| failed("swapon", shown)(std::io::Error::other(error)))?
}

/// The name of the disk, once the kernel has all of it.
fn block_device(root: &Path, slots: &[u8]) -> Option<PathBuf> {
    let mut directory = root.to_owned();
    for slot in slots {
        directory = entry(&directory, |name| is_in_slot(name, *slot))?;
    }
    let virtio = entry(&directory, |name| name.starts_with("virtio"))?;
    let disk = entry(&virtio.join("block"), |_| true)?;
    disk.file_name().map(PathBuf::from)
}

/// `0000:BUS:SLOT.FUNCTION`, in hexadecimal; the function is 0.
fn is_in_slot(name: &str, slot: u8) -> bool {
    let mut parts = name.split(':');
    let (Some(_), Some(_), Some(place), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    place.split_once('.').is_some_and(|(found, function)| {
        function == "0" && u8::from_str_radix(found, 16) == Ok(slot)
    })
}

fn entry(directory: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?.flatten();
    let found = entries.find(|entry| entry.file_name().to_str().is_some_and(&wanted))?;
    Some(found.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_behind_its_slots() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for path in [
            "0000:00:02.0/0000:01:1f.0/virtio3/block/vdb",
            "0000:00:02.1/0000:02:1f.0/virtio4/block/vdc",
            "0000:00:03.0/virtio1/net/eth0",
        ] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        assert_eq!(block_device(root, &[2, 0x1f]), Some("vdb".into()));
        for slots in [&[2, 0x1e][..], &[3], &[2], &[4], &[]] {
            assert_eq!(block_device(root, slots), None, "{slots:?}");
        }
    }

    #[test]
    fn only_a_block_device_or_a_regular_file_is_swapped_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "no swap").unwrap();
        // Refused by the kernel, which looks for the mark of mkswap(8).
        assert!(add_swap(&path).is_err());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for other in [directory.path(), Path::new("/dev/null"), &link] {
            let error = add_swap(other).unwrap_err();
            assert!(error.to_string().starts_with("swap to"), "{error}");
        }
        assert!(add_swap(&directory.path().join("missing")).is_err());
    }
}
