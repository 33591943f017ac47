//! The kernel's word that this machine has become a copy of another, or of an
//! earlier self of its own.
//!
//! A VMM with a VM Generation ID device gives each copy another id and tells the
//! kernel so, whose driver (`CONFIG_VMGENID`) reseeds the random generator. To
//! programs it says that in one place only, a line of its log: the uevent
//! `NEW_VMGENID` was in Linux 6.8 and was taken back in 6.9. The line is told
//! apart from what programs write to the log, for they cannot write as the
//! kernel itself (Documentation/ABI/testing/dev-kmsg).

use guest_kernel::readiness;
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::{Errno, read};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const LOG: &str = "/dev/kmsg";
/// The line, since Linux 5.18 (`add_vmfork_randomness`, drivers/char/random.c).
const LINE: &[u8] = b"random: crng reseeded due to virtual machine fork";
/// Where the driver shows its device: up to Linux 6.9, and since.
const DRIVERS: [&str; 2] = [
    "/sys/bus/acpi/drivers/vmgenid",
    "/sys/bus/platform/drivers/vmgenid",
];
/// The longest record, `CONSOLE_EXT_LOG_MAX`: a shorter buffer is `EINVAL`.
const RECORD_MAX: usize = 8192;

/// Whether this kernel would say it here: it has the driver, and the driver has
/// found a device.
#[must_use]
pub fn is_given() -> bool {
    DRIVERS.iter().any(|driver| has_device(Path::new(driver)))
}

/// A driver's directory has a link to each of its devices, and one to its
/// module, if it is one.
fn has_device(driver: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(driver) else {
        return false;
    };
    entries.any(|entry| {
        entry.is_ok_and(|entry| {
            entry.file_name() != "module" && entry.file_type().is_ok_and(|kind| kind.is_symlink())
        })
    })
}

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// This machine is a copy.
    Copied,
    /// Lines were lost before they were read; that one may have been among them.
    Lost,
}

/// The kernel's log from a moment on.
#[derive(Debug)]
pub struct KernelWord {
    log: AsyncFd<Arc<OwnedFd>>,
    record: Vec<u8>,
}

impl KernelWord {
    /// Listens from now on. To be called in a tokio runtime.
    ///
    /// # Errors
    /// Those of open(2): `EPERM` without CAP_SYSLOG where the log is restricted.
    pub fn listen() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let log = open(LOG, flags, Mode::empty())?;
        seek(&log, SeekFrom::End(0))?;
        Ok(Self {
            log: readiness::watch(Arc::new(log), Interest::READABLE)?,
            record: vec![0; RECORD_MAX],
        })
    }

    /// Waits for the next word. May be dropped at any point.
    ///
    /// # Errors
    /// Those of read(2) that do not pass.
    pub async fn next(&mut self) -> io::Result<Heard> {
        loop {
            let mut ready = self.log.ready(Interest::READABLE).await?;
            match read(self.log.get_ref(), self.record.as_mut_slice()) {
                Ok(length) if says_copied(self.record.get(..length).unwrap_or_default()) => {
                    return Ok(Heard::Copied);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::PIPE) => return Ok(Heard::Lost),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether a record, `PRIORITY,SEQUENCE,TIME,FLAGS[,...];LINE` and further lines,
/// is the kernel's own and says so. Of a priority the lowest three bits are the
/// level, the others the facility: 0, and no program's.
fn says_copied(record: &[u8]) -> bool {
    let Some(head) = record.iter().position(|byte| *byte == b';') else {
        return false;
    };
    let (head, rest) = record.split_at(head);
    let priority = head.split(|byte| *byte == b',').next();
    let priority =
        priority.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
    let line = rest
        .get(1..)
        .and_then(|rest| rest.split(|byte| *byte == b'\n').next());
    priority.is_some_and(|priority| priority >> 3 == 0) && line == Some(LINE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(head: &str, line: &str) -> Vec<u8> {
        format!("{head};{line}\n SUBSYSTEM=x\n").into_bytes()
    }

    const COPIED: &str = "random: crng reseeded due to virtual machine fork";

    #[test]
    fn the_kernels_own_line_is_heard() {
        for head in ["5,339,5140900,-", "5,1,0,c,caller=T1", "0,1,2,-"] {
            assert!(says_copied(&record(head, COPIED)), "{head}");
        }
    }

    #[test]
    fn what_a_program_writes_to_the_log_is_not() {
        // LOG_USER is facility 1, and the least that a program can have.
        for head in [
            "13,339,5140900,-",
            "8,1,0,-",
            "4294967295,1,0,-",
            "x,1,0,-",
            "",
        ] {
            assert!(!says_copied(&record(head, COPIED)), "{head}");
        }
    }

    #[test]
    fn another_line_is_not() {
        for line in [
            "random: crng init done",
            "random: crng reseeded due to virtual machine fork!",
            "said random: crng reseeded due to virtual machine fork",
            "",
        ] {
            assert!(!says_copied(&record("5,1,0,-", line)), "{line}");
        }
        // A further line of a record is not its first.
        let inner = format!("6,1,0,-;usb\n {COPIED}\n");
        assert!(!says_copied(inner.as_bytes()));
    }

    #[test]
    fn a_driver_without_a_device_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let driver = directory.path().join("vmgenid");
        assert!(!has_device(&driver));
        fs::create_dir(&driver).unwrap();
        fs::write(driver.join("uevent"), "").unwrap();
        std::os::unix::fs::symlink("../module", driver.join("module")).unwrap();
        assert!(!has_device(&driver));
        std::os::unix::fs::symlink("../device", driver.join("QEMUVGID:00")).unwrap();
        assert!(has_device(&driver));
    }

    proptest! {
        #[test]
        fn no_record_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = says_copied(&bytes);
        }

        #[test]
        fn the_facility_decides(facility in 0_u32..1 << 20, level in 0_u32..8, sequence in any::<u64>()) {
            let head = format!("{},{sequence},1,-", facility << 3 | level);
            prop_assert_eq!(says_copied(&record(&head, COPIED)), facility == 0);
        }
    }
}
