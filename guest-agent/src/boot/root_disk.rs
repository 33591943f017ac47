//! The root disk, where the command line names one: found, mounted, and entered
//! from the initrd by executing its init.
//!
//! The words are the kernel's own (`root=`, `rootfstype=`, `rootflags=`, `ro`,
//! `rw`, `init=`), so that one command line does with an initrd and, where all
//! drivers are built in, without.

use super::command_line::{last_value, words};
use super::mapping::{Mapping, MappingError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::mount::{MountFlags, mount};
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the kernel executes of a root file system first.
const INIT: &str = "/sbin/init";
/// Without `rootfstype=` these are tried, in this order.
const FILE_SYSTEMS: &str = "erofs,ext4";
/// Where device nodes appear.
const DEVICES: &str = "/dev";
/// How long a disk may take to appear: it is there, mostly, when its driver is.
const DISK_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    #[error(transparent)]
    Mapping(#[from] MappingError),
    #[error("root={0}: only a device's path is understood")]
    Device(String),
    #[error("rootflags={0}: no such text can be mount options")]
    Flags(String),
    #[error("wait for {path}")]
    Wait { path: PathBuf, source: io::Error },
    #[error("{0} did not appear within {DISK_DEADLINE:?}")]
    Absent(PathBuf),
    #[error(
        "the root disk is corrupted: dm-verity found {0} not to be what its root hash stands for"
    )]
    Corrupted(PathBuf),
    #[error("mount root disk {device} as {fstype}")]
    Mount {
        device: PathBuf,
        fstype: String,
        source: io::Error,
    },
}

/// A root disk, and how it is entered.
#[derive(Debug)]
pub(super) struct RootDisk {
    device: PathBuf,
    file_systems: String,
    options: CString,
    read_only: bool,
    /// The program to be executed.
    pub(super) init: PathBuf,
    mappings: Vec<Mapping>,
}

impl RootDisk {
    /// The disk that `line` names. None without `root=`, and for a RAM disk,
    /// which is what an initrd is called by some.
    pub(super) fn from_command_line(line: &str) -> Result<Option<Self>, RootError> {
        let mappings = Mapping::from_command_line(line)?;
        let device = match last_value(line, "root") {
            None => return Ok(None),
            Some(device) if device.starts_with("/dev/ram") => return Ok(None),
            Some(device) if device.starts_with("/dev/") => device,
            Some(device) => return Err(RootError::Device(device)),
        };
        let options = last_value(line, "rootflags").unwrap_or_default();
        let options = CString::new(options.as_str()).map_err(|_| RootError::Flags(options))?;
        let mode = words(line)
            .filter(|word| word == "ro" || word == "rw")
            .last();
        Ok(Some(Self {
            device: device.into(),
            file_systems: last_value(line, "rootfstype").unwrap_or(FILE_SYSTEMS.into()),
            options,
            read_only: mode.is_none_or(|mode| mode == "ro"),
            init: last_value(line, "init").map_or(INIT.into(), PathBuf::from),
            mappings,
        }))
    }

    /// Makes what has to be made and mounts the disk on `target`.
    pub(super) fn mount(&self, target: &str) -> Result<(), RootError> {
        for mapping in &self.mappings {
            mapping.devices().try_for_each(wait_for)?;
            mapping.make()?;
        }
        wait_for(&self.device)?;
        let flags = if self.read_only {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        let options = (!self.options.is_empty()).then_some(self.options.as_c_str());
        let mut failure = None;
        for fstype in self.file_systems.split(',') {
            match mount(&self.device, target, fstype, flags, options) {
                Ok(()) => return Ok(()),
                Err(source) => {
                    failure = Some(RootError::Mount {
                        device: self.device.clone(),
                        fstype: fstype.into(),
                        source: source.into(),
                    });
                }
            }
        }
        Err(self.blame().or(failure).unwrap_or_else(|| {
            let nothing = self.file_systems.clone();
            RootError::Mount {
                device: self.device.clone(),
                fstype: nothing,
                source: io::ErrorKind::InvalidInput.into(),
            }
        }))
    }

    /// The reason behind a failed read, if it is that the disk was tampered with.
    pub(super) fn blame(&self) -> Option<RootError> {
        let corrupted = self.mappings.iter().any(Mapping::is_corrupted);
        corrupted.then(|| RootError::Corrupted(self.device.clone()))
    }
}

/// Waits for a device node. The watch is there before it is looked for, so that
/// none is missed in between.
fn wait_for(path: &Path) -> Result<(), RootError> {
    let failed = |source: rustix::io::Errno| RootError::Wait {
        path: path.into(),
        source: source.into(),
    };
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags).map_err(failed)?;
    inotify::add_watch(&watch, DEVICES, inotify::WatchFlags::CREATE).map_err(failed)?;
    let end = Instant::now() + DISK_DEADLINE;
    let mut buffer = [0; 4096];
    while !path.exists() {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(RootError::Absent(path.into())),
            Ok(_) => {
                // What was created does not matter: the path is looked at again.
                let _ = rustix::io::read(&watch, &mut buffer);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(line: &str) -> RootDisk {
        RootDisk::from_command_line(line).unwrap().unwrap()
    }

    #[test]
    fn the_words_of_an_existing_runtime_name_a_disk() {
        let line = "tsc=reliable no_timer_check rcupdate.rcu_expedited=1 reboot=k cryptomgr.notests \
                    net.ifnames=0 pci=lastbus=0 root=/dev/pmem0p1 \
                    rootflags=dax,data=ordered,errors=remount-ro ro rootfstype=ext4 console=hvc0 \
                    quiet systemd.show_status=false panic=1 nr_cpus=2 selinux=0 \
                    systemd.unit=kata-containers.target systemd.mask=systemd-networkd.service \
                    scsi_mod.scan=none agent.log=debug agent.debug_console \
                    agent.debug_console_vport=1026 cgroup_no_v1=all";
        let disk = disk(line);
        assert_eq!(disk.device, Path::new("/dev/pmem0p1"));
        assert_eq!(disk.file_systems, "ext4");
        assert_eq!(
            disk.options.as_c_str(),
            c"dax,data=ordered,errors=remount-ro"
        );
        assert!(disk.read_only && disk.mappings.is_empty());
        assert_eq!(disk.init, Path::new("/sbin/init"));
    }

    #[test]
    fn a_disk_is_read_only_unless_it_is_said_otherwise() {
        assert!(disk("root=/dev/vda").read_only);
        assert!(!disk("root=/dev/vda rw").read_only);
        assert!(disk("rw root=/dev/vda ro").read_only);
        let disk = disk("root=/dev/vda init=/bin/agent");
        assert_eq!(disk.init, Path::new("/bin/agent"));
        assert_eq!(disk.file_systems, FILE_SYSTEMS);
    }

    #[test]
    fn an_initrd_alone_has_no_root_disk() {
        let none = |line| RootDisk::from_command_line(line).unwrap().is_none();
        assert!(none("quiet panic=-1"));
        assert!(none("root=/dev/ram0 rw"));
    }

    #[test]
    fn a_root_that_is_not_understood_is_an_error() {
        for line in [
            "root=PARTUUID=1-2",
            "root=host:/export",
            "root=/dev/dm-0 dm-mod.create=x",
        ] {
            assert!(RootDisk::from_command_line(line).is_err(), "{line}");
        }
    }

    #[test]
    fn what_is_there_is_not_waited_for() {
        wait_for(Path::new("/dev/null")).unwrap();
    }
}
