//! Devices and files to swap to.

use super::pci::{self, Class};
use super::{HotplugError, failed};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

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
    let name = pci::wait_for(Class::Disk, slots, deadline).await?;
    let path = Path::new("/dev").join(name);
    let shown = path.clone();
    let added = crate::blocking(move || add_swap(&path)).await;
    added.map_err(failed("swapon", shown))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
