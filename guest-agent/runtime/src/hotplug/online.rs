//! Processors and memory that are there and not yet used
//! (Documentation/ABI/testing/sysfs-devices-system-cpu, -memory).

use super::{HotplugError, failed, uevent};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const PROCESSORS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// Takes processors into use until `wanted` of them are, and waits for those
/// that are still to come.
///
/// # Errors
/// [`HotplugError::Processors`] if there are fewer after `deadline`.
pub async fn online_processors(wanted: usize, deadline: Duration) -> Result<(), HotplugError> {
    let last = Arc::new(AtomicUsize::new(0));
    let online = Arc::clone(&last);
    let enough = uevent::wait_for(deadline, move || {
        let taken = take_processors(Path::new(PROCESSORS), wanted)?;
        online.store(taken, Ordering::Relaxed);
        Ok((taken >= wanted).then_some(()))
    });
    match enough.await? {
        Some(()) => Ok(()),
        None => Err(HotplugError::Processors {
            online: last.load(Ordering::Relaxed),
            wanted,
            after: deadline,
        }),
    }
}

/// How many are in use, after as many as are there and wanted were taken. One
/// that refuses is tried again with the next event.
fn take_processors(directory: &Path, wanted: usize) -> Result<usize, HotplugError> {
    let mut offline = Vec::new();
    let mut online = 0;
    for path in numbered(directory, "cpu")? {
        let file = path.join("online");
        match fs::read_to_string(&file) {
            Ok(text) if text.trim() == "0" => offline.push(file),
            Ok(_) => online += 1,
            // One that cannot be taken out of use has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => online += 1,
            Err(error) => return Err(failed("read", file)(error)),
        }
    }
    for file in offline {
        if online >= wanted {
            break;
        }
        if fs::write(&file, "1").is_ok() {
            online += 1;
        }
    }
    Ok(online)
}

/// Takes all memory into use that is there, as far as the kernel lets it.
///
/// # Errors
/// None that matter: a block that refuses is left as it is, and so is a kernel
/// without hotplug of memory.
pub fn online_memory() -> Result<(), HotplugError> {
    take_memory(Path::new(MEMORY))
}

fn take_memory(directory: &Path) -> Result<(), HotplugError> {
    if !directory.exists() {
        return Ok(());
    }
    for path in numbered(directory, "memory")? {
        let file = path.join("state");
        if fs::read_to_string(&file).is_ok_and(|state| state.trim() == "offline") {
            // As said above.
            let _ = fs::write(&file, "online");
        }
    }
    Ok(())
}

/// Has the kernel look for memory at physical addresses.
///
/// # Errors
/// Those of the file, which is not there where the firmware tells the kernel.
pub fn probe_memory(addresses: &[u64]) -> Result<(), HotplugError> {
    let file = Path::new(MEMORY).join("probe");
    addresses.iter().try_for_each(|address| {
        let file = &file;
        // Not fs::write: it would try to make the file.
        let opened = fs::OpenOptions::new().write(true).open(file);
        opened
            .and_then(|mut probe| {
                io::Write::write_all(&mut probe, address_text(*address).as_bytes())
            })
            .map_err(failed("write", file))
    })
}

fn address_text(address: u64) -> String {
    format!("0x{address:X}")
}

/// The entries of that name with a number behind it, in the numbers' order.
fn numbered(directory: &Path, name: &str) -> Result<Vec<PathBuf>, HotplugError> {
    let entries = fs::read_dir(directory).map_err(failed("list", directory))?;
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let file_name = entry.file_name();
            let number = file_name.to_str()?.strip_prefix(name)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, path: &str, text: &str) {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn as_many_processors_are_taken_as_are_wanted_the_first_ones_first() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        fs::create_dir_all(directory.join("cpu0")).unwrap();
        for number in 1..12 {
            write(directory, &format!("cpu{number}/online"), "0\n");
        }
        write(directory, "cpufreq/online", "0\n");
        let is_online = |number: u32| {
            let file = directory.join(format!("cpu{number}/online"));
            fs::read_to_string(file).unwrap() == "1"
        };
        assert_eq!(take_processors(directory, 1).unwrap(), 1);
        assert_eq!(take_processors(directory, 3).unwrap(), 3);
        assert_eq!([1, 2, 3, 10].map(is_online), [true, true, false, false]);
        // More than there are.
        assert_eq!(take_processors(directory, 99).unwrap(), 12);
        assert_eq!(take_processors(directory, 2).unwrap(), 12);
    }

    #[test]
    fn only_memory_that_is_offline_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        for (block, state) in [(0, "online"), (1, "offline"), (2, "going-offline")] {
            write(
                directory,
                &format!("memory{block}/state"),
                &format!("{state}\n"),
            );
        }
        take_memory(directory).unwrap();
        let state = |block| fs::read_to_string(directory.join(format!("memory{block}/state")));
        assert_eq!(state(0).unwrap(), "online\n");
        assert_eq!(state(1).unwrap(), "online");
        assert_eq!(state(2).unwrap(), "going-offline\n");
        take_memory(&directory.join("missing")).unwrap();
    }

    #[test]
    fn an_address_is_written_as_the_kernel_reads_it() {
        assert_eq!(address_text(0x1_0800_00ab), "0x1080000AB");
    }

    #[tokio::test]
    async fn processors_that_do_not_come_are_counted() {
        let brief = Duration::from_millis(20);
        let error = online_processors(100_000, brief).await.unwrap_err();
        assert!(
            matches!(
                error,
                HotplugError::Processors {
                    wanted: 100_000,
                    ..
                }
            ),
            "{error}"
        );
    }
}
