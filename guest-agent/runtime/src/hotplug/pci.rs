//! Devices behind the first root complex, by the slots that lead to them.

use super::{HotplugError, uevent};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The devices behind the first root complex.
const ROOT_COMPLEX: &str = "/sys/devices/pci0000:00";

/// What a device is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Disk,
    Link,
}

impl Class {
    /// The directory of its name in a device's own, in sysfs.
    fn directory(self) -> &'static str {
        match self {
            Self::Disk => "block",
            Self::Link => "net",
        }
    }
}

/// Waits for the network link behind these slots, each the number of a device
/// on the bus of the one before; the name the kernel gave it.
///
/// # Errors
/// [`HotplugError::Device`] if it does not come within `deadline`.
pub async fn wait_for_link(slots: &[u8], deadline: Duration) -> Result<String, HotplugError> {
    wait_for(Class::Link, slots, deadline).await
}

pub(super) async fn wait_for(
    class: Class,
    slots: &[u8],
    deadline: Duration,
) -> Result<String, HotplugError> {
    let wanted = slots.to_vec();
    let look = move || Ok(find(Path::new(ROOT_COMPLEX), class, &wanted));
    uevent::wait_for(deadline, look).await?.ok_or_else(|| {
        let path: Vec<String> = slots.iter().map(|slot| format!("{slot:02x}")).collect();
        HotplugError::Device {
            class: class.directory(),
            path: path.join("/"),
            after: deadline,
        }
    })
}

/// The name of the device, once the kernel has all of it.
fn find(root: &Path, class: Class, slots: &[u8]) -> Option<String> {
    let mut directory = root.to_owned();
    for slot in slots {
        directory = entry(&directory, |name| is_in_slot(name, *slot))?;
    }
    // A virtio device is one of its own below the slot's; others are it.
    let virtio = entry(&directory, |name| name.starts_with("virtio"));
    let device = entry(&virtio.unwrap_or(directory).join(class.directory()), |_| {
        true
    })?;
    Some(device.file_name()?.to_str()?.to_owned())
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
    fn a_device_is_found_behind_its_slots_as_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for path in [
            "0000:00:02.0/0000:01:1f.0/virtio3/block/vdb",
            "0000:00:02.1/0000:02:1f.0/virtio4/block/vdc",
            "0000:00:03.0/virtio1/net/eth0",
            "0000:00:04.0/net/ens4",
        ] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        let find = |class, slots: &[u8]| find(root, class, slots);
        assert_eq!(find(Class::Disk, &[2, 0x1f]), Some("vdb".into()));
        assert_eq!(find(Class::Link, &[3]), Some("eth0".into()));
        assert_eq!(find(Class::Link, &[4]), Some("ens4".into()));
        for slots in [&[2, 0x1e][..], &[3], &[2], &[5], &[]] {
            assert_eq!(find(Class::Disk, slots), None, "{slots:?}");
        }
        assert_eq!(find(Class::Link, &[2, 0x1f]), None);
    }
}
