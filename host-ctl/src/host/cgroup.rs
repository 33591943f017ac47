//! The cgroup of a VMM (cgroup v2): a directory below one of ours, with limits
//! that no working VM comes near and a hijacked VMM does not get past.
//!
//! Where it can be had is found out each time. Root has it below the root of
//! the hierarchy; others below what was handed down to them, as systemd does
//! with `user@UID.service` (cgroups(7), "Cgroups v2 delegation"). Nobody's
//! processes are moved for it: where those stand in the way (the rule of "no
//! internal processes"), there are no limits, and that is said.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, AtFlags, CWD, accessat, statfs};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::call::{CallFailed, failed};

/// The directory below which each VMM's lies. It stays.
const OURS: &str = "tardigrade";
/// What the limits are set with.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// How often the guest's RAM fits: once what the guest has written, and once
/// what its VMM was the first to touch of the files it maps or writes, template
/// and disks and what it saves, which a file system in memory gives no back.
const MEMORY_TIMES: u64 = 2;
/// Bytes beside that. QEMU's program and its cache of translated code (128 MiB)
/// take the most; then the tables of pages, less than a hundredth of the RAM.
const MEMORY_BESIDE: u64 = 512 << 20;
/// Threads beside those of vCPUs. QEMU has up to 64 that wait for disks; Cloud
/// Hypervisor has one for each queue of its up to 26 devices.
const THREADS_BESIDE: u64 = 256;
/// Threads of a vCPU: its own, and those that work for it in the kernel.
const THREADS_TIMES: u64 = 8;
/// CGROUP2_SUPER_MAGIC, linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
/// How long a killed VMM's last threads may take to leave.
const LEAVE_DEADLINE: Duration = Duration::from_secs(2);

/// Why a VMM has no limits of its own.
#[derive(Debug, Error)]
pub enum Unlimited {
    /// There is no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoHierarchy,
    /// Where this process is in it cannot be told.
    #[error("{0} does not tell where this process is in the hierarchy of cgroups")]
    Place(&'static str),
    /// Nothing in it is ours.
    #[error("no cgroup from {0} on was handed down to this user")]
    NotHandedDown(PathBuf),
    /// It cannot count what would be limited.
    #[error("{path} has no {controller} controller: cgroup v1 has it, or nobody has passed it on")]
    NoController {
        /// The cgroup.
        path: PathBuf,
        /// The controller.
        controller: &'static str,
    },
    /// Those below it can have no limits.
    #[error("{path} has processes of its own, or may not pass its controllers on")]
    Busy {
        /// The cgroup.
        path: PathBuf,
        /// What write(2) said.
        #[source]
        source: io::Error,
    },
    /// Somebody else has made it.
    #[error("{0} is not this user's")]
    NotOurs(PathBuf),
    /// clone3(2) is not there, or is filtered.
    #[error("no process can be started in a cgroup here (clone3, Linux 5.7)")]
    NoStart,
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
}

/// What a VMM may use, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, what it caches of files among them.
    pub memory_max: u64,
    /// Threads.
    pub pids_max: u64,
}

impl Limits {
    /// Those of a VM with this much RAM, in MiB, and as many vCPUs. Files that
    /// its VMM was the first to read count too, until there is no room for them.
    #[must_use]
    pub fn of(memory_mib: u32, vcpus: u8) -> Self {
        Self {
            memory_max: (u64::from(memory_mib) << 20) * MEMORY_TIMES + MEMORY_BESIDE,
            pids_max: u64::from(vcpus) * THREADS_TIMES + THREADS_BESIDE,
        }
    }
}

/// A VMM's cgroup, as it is recorded before it is made and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupRecord {
    /// Its directory, whose name no other sandbox's has.
    pub path: PathBuf,
    /// What it limits.
    pub limits: Limits,
    /// The directory's inode, which no cgroup of the same boot has had before;
    /// none before it was made.
    pub inode: Option<u64>,
}

/// Where cgroups can be made.
#[derive(Debug)]
pub struct Cgroups {
    /// One that is ours to pass on, the topmost.
    base: PathBuf,
}

impl Cgroups {
    /// Finds out where.
    ///
    /// # Errors
    /// When nowhere.
    pub fn find() -> Result<Self, Unlimited> {
        let read = |path: &'static str| {
            fs::read_to_string(path).map_err(|source| failed("read", Path::new(path))(source))
        };
        let (mount, root) =
            parse_mounts(&read("/proc/self/mountinfo")?).ok_or(Unlimited::NoHierarchy)?;
        let place = "/proc/self/cgroup";
        let own = parse_place(&read(place)?).ok_or(Unlimited::Place(place))?;
        let below = own
            .strip_prefix(&root)
            .map_err(|_| Unlimited::Place("/proc/self/mountinfo"))?;
        Self::on_the_way(&mount, below)
    }

    /// The topmost of the cgroups on the way from a mounted one to ours that we
    /// may write to: who moves a process must be able to write to a cgroup that is
    /// above both its old one and its new one.
    fn on_the_way(mount: &Path, below: &Path) -> Result<Self, Unlimited> {
        let mut way: Vec<_> = mount.join(below).ancestors().map(Path::to_owned).collect();
        way.retain(|cgroup| cgroup.starts_with(mount));
        let base = way
            .into_iter()
            .rev()
            .find(|cgroup| is_ours_to_pass_on(cgroup));
        let base = base.ok_or_else(|| Unlimited::NotHandedDown(mount.to_owned()))?;
        let has = fs::read_to_string(base.join("cgroup.controllers"))
            .map_err(failed("read", &base.join("cgroup.controllers")))?;
        for controller in CONTROLLERS {
            if !has.split_whitespace().any(|word| word == controller) {
                return Err(Unlimited::NoController {
                    path: base,
                    controller,
                });
            }
        }
        Ok(Self { base })
    }

    /// Makes the directory below which each VMM's lies, if there is none yet, and
    /// has limits for what is there.
    ///
    /// # Errors
    /// What is in the way.
    pub fn prepare(&self) -> Result<(), Unlimited> {
        pass_on(&self.base)?;
        let ours = self.ours();
        match fs::create_dir(&ours) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("mkdir", &ours)(error).into());
            }
            _ => {}
        }
        let found = fs::symlink_metadata(&ours).map_err(failed("stat", &ours))?;
        if !found.is_dir() || found.uid() != geteuid().as_raw() {
            return Err(Unlimited::NotOurs(ours));
        }
        pass_on(&ours)
    }

    fn ours(&self) -> PathBuf {
        self.base.join(OURS)
    }

    /// What the cgroup of this name will be.
    #[must_use]
    pub fn plan(&self, name: &str, limits: Limits) -> CgroupRecord {
        CgroupRecord {
            path: self.ours().join(name),
            limits,
            inode: None,
        }
    }
}

impl CgroupRecord {
    /// Makes it, as it was planned.
    ///
    /// # Errors
    /// The first call that failed; nothing is left then.
    pub fn make(&mut self) -> Result<(), CallFailed> {
        let path = &self.path;
        fs::create_dir(path).map_err(failed("mkdir", path))?;
        let made = self.set_limits().and_then(|()| {
            let found = fs::metadata(path).map_err(failed("stat", path))?;
            Ok(found.ino())
        });
        match made {
            Ok(inode) => {
                self.inode = Some(inode);
                Ok(())
            }
            Err(error) => {
                // The first failure is what counts.
                let _ = fs::remove_dir(path);
                Err(error)
            }
        }
    }

    fn set_limits(&self) -> Result<(), CallFailed> {
        let Limits {
            memory_max,
            pids_max,
        } = self.limits;
        for (name, most) in [("memory.max", memory_max), ("pids.max", pids_max)] {
            let path = self.path.join(name);
            fs::write(&path, most.to_string()).map_err(failed("write", &path))?;
        }
        Ok(())
    }

    /// Removes it; nobody may be in it any more. Says whether there was one.
    ///
    /// # Errors
    /// When somebody is, or the call fails.
    pub fn remove(&self) -> Result<bool, CallFailed> {
        let path = &self.path;
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => found.map_err(failed("stat", path))?,
        };
        let is_another = self.inode.is_some_and(|inode| inode != found.ino());
        if is_another || !is_cgroup(path)? {
            return Ok(false);
        }
        let end = Instant::now() + LEAVE_DEADLINE;
        let mut lodgers = None;
        loop {
            match fs::remove_dir(path) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    let left = end.saturating_duration_since(Instant::now());
                    let changed = match &mut lodgers {
                        // What has changed since it was opened is told from now on.
                        None => Lodgers::watch(path).map(|watched| {
                            lodgers = watched;
                            true
                        }),
                        Some(watched) => watched.changed(left),
                    };
                    if !changed.map_err(failed("poll cgroup.events", path))? {
                        return Err(failed("rmdir", path)(error));
                    }
                }
                Err(error) => return Err(failed("rmdir", path)(error)),
            }
        }
    }
}

/// Whether a cgroup has processes, as far as that changes (Linux's
/// Documentation/admin-guide/cgroup-v2.rst, "Un-populated Notification").
struct Lodgers(File);

impl Lodgers {
    /// None when the cgroup is gone.
    fn watch(cgroup: &Path) -> io::Result<Option<Self>> {
        let mut watched = match File::open(cgroup.join("cgroup.events")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => Self(opened?),
        };
        watched.read()?;
        Ok(Some(watched))
    }

    /// Waits until the kernel tells of a change; says whether it did in time.
    fn changed(&mut self, within: Duration) -> io::Result<bool> {
        let until = Instant::now() + within;
        let told = loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut watched = [PollFd::new(&self.0, PollFlags::PRI)];
            match poll(&mut watched, Some(&left)) {
                Ok(told) => break told > 0,
                // By a signal that somebody handles.
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        self.read()?;
        Ok(told)
    }

    /// What is read is old news.
    fn read(&mut self) -> io::Result<()> {
        self.0.rewind()?;
        match io::copy(&mut self.0, &mut io::sink()) {
            // It was removed meanwhile, by another.
            Err(error) if is(&error, Errno::NODEV) => Ok(()),
            read => read.map(drop),
        }
    }
}

fn is_cgroup(path: &Path) -> Result<bool, CallFailed> {
    let found = statfs(path).map_err(failed("statfs", path))?;
    Ok(u64::try_from(found.f_type).is_ok_and(|kind| kind == CGROUP2))
}

/// Whether we may make cgroups below this one, limit them and move processes of
/// ours to them.
fn is_ours_to_pass_on(cgroup: &Path) -> bool {
    let may = |path: &Path, how| accessat(CWD, path, how, AtFlags::EACCESS).is_ok();
    may(cgroup, Access::WRITE_OK | Access::EXEC_OK)
        && ["cgroup.procs", "cgroup.subtree_control"]
            .iter()
            .all(|file| may(&cgroup.join(file), Access::WRITE_OK))
}

/// Has those below this cgroup be counted and limited.
fn pass_on(cgroup: &Path) -> Result<(), Unlimited> {
    let path = cgroup.join("cgroup.subtree_control");
    let has = fs::read_to_string(&path).map_err(failed("read", &path))?;
    let lacks = |controller: &&str| !has.split_whitespace().any(|word| word == *controller);
    let missing: Vec<String> = CONTROLLERS
        .iter()
        .filter(|controller| lacks(controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    match fs::write(&path, missing.join(" ")) {
        Ok(()) => Ok(()),
        Err(error) if is(&error, Errno::BUSY) || is(&error, Errno::NOENT) => Err(Unlimited::Busy {
            path: cgroup.to_owned(),
            source: error,
        }),
        Err(error) => Err(failed("write", &path)(error).into()),
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Where the cgroup v2 hierarchy is mounted, and which of its cgroups is there
/// (proc_pid_mountinfo(5)).
fn parse_mounts(text: &str) -> Option<(PathBuf, PathBuf)> {
    text.lines().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        let mut fields = fields.split(' ');
        let (root, at) = (fields.nth(3)?, fields.next()?);
        let is_v2 = kind.split(' ').next() == Some("cgroup2");
        is_v2.then(|| (at.into(), root.into()))
    })
}

/// This process's cgroup in the hierarchy of v2 (cgroups(7), /proc/PID/cgroup).
fn parse_place(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.starts_with('/').then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A hierarchy of plain files, which say what the kernel would.
    fn hierarchy(cgroups: &[(&str, &str)]) -> tempfile::TempDir {
        let mount = tempfile::tempdir().unwrap();
        for (path, controllers) in cgroups {
            let path = mount.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.controllers"), controllers).unwrap();
            for file in ["cgroup.procs", "cgroup.subtree_control"] {
                fs::write(path.join(file), "").unwrap();
            }
        }
        mount
    }

    const ALL: &str = "cpu memory pids\n";

    #[test]
    fn the_mount_and_our_place_are_found_in_what_the_kernel_says() {
        let hybrid = "24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            25 24 0:23 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            26 24 0:24 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let found = parse_mounts(hybrid).unwrap();
        assert_eq!(found, ("/sys/fs/cgroup/unified".into(), "/".into()));
        assert_eq!(parse_mounts("24 1 0:22 / / rw - ext4 /dev/vda rw\n"), None);
        let place = parse_place("8:pids:/\n0::/user.slice/a.scope\n");
        assert_eq!(place, Some("/user.slice/a.scope".into()));
        assert_eq!(parse_place("8:pids:/\n"), None);
    }

    #[test]
    fn limits_leave_room_for_the_guests_ram_twice_and_for_the_vmm() {
        let limits = Limits::of(256, 2);
        assert_eq!(limits.memory_max, (2 * 256 + 512) << 20);
        assert_eq!(limits.pids_max, 272);
        assert!(Limits::of(u32::MAX, u8::MAX).memory_max > u64::from(u32::MAX) << 21);
    }

    #[test]
    fn a_cgroup_is_made_below_ours_and_has_its_limits() {
        let mount = hierarchy(&[("", ALL), ("a", ALL), ("a/b", ALL)]);
        let cgroups = Cgroups::on_the_way(mount.path(), Path::new("a/b")).unwrap();
        assert_eq!(cgroups.base, mount.path());
        let ours = mount.path().join("tardigrade");
        fs::create_dir(&ours).unwrap();
        fs::write(ours.join("cgroup.subtree_control"), "memory\n").unwrap();
        cgroups.prepare().unwrap();
        let passed = |at: &Path| fs::read_to_string(at.join("cgroup.subtree_control")).unwrap();
        assert_eq!(passed(mount.path()), "+memory +pids");
        assert_eq!(
            passed(&ours),
            "+pids",
            "what is there is not asked for again"
        );

        let mut record = cgroups.plan("one", Limits::of(64, 1));
        assert_eq!(record.path, ours.join("one"));
        record.make().unwrap();
        let text = |name: &str| fs::read_to_string(record.path.join(name)).unwrap();
        assert_eq!(text("memory.max"), (640_u64 << 20).to_string());
        assert_eq!(text("pids.max"), "264");
        assert!(record.inode.is_some());
        // Its name is taken.
        assert!(cgroups.plan("one", record.limits).make().is_err());
    }

    #[test]
    fn controllers_that_cgroup_v1_has_are_missed_by_name() {
        let mount = hierarchy(&[("", "hugetlb\n")]);
        let error = Cgroups::on_the_way(mount.path(), Path::new("")).unwrap_err();
        assert!(error.to_string().contains("memory controller"), "{error}");
        let mount = hierarchy(&[("", "memory\n")]);
        let error = Cgroups::on_the_way(mount.path(), Path::new("")).unwrap_err();
        assert!(error.to_string().contains("pids controller"), "{error}");
    }

    #[test]
    fn what_is_no_cgroup_or_another_one_is_not_removed() {
        let mount = tempfile::tempdir().unwrap();
        let path = mount.path().join("one");
        fs::create_dir(&path).unwrap();
        let mut record = CgroupRecord {
            path: path.clone(),
            limits: Limits::of(64, 1),
            inode: None,
        };
        assert!(!record.remove().unwrap(), "a plain directory");
        assert!(path.exists());
        record.path = mount.path().join("two");
        assert!(!record.remove().unwrap(), "none");
    }

    #[test]
    fn an_ordinary_user_has_what_was_handed_down_and_nothing_above_it() {
        let mount = hierarchy(&[("", ALL), ("a", ALL), ("a/b", ALL)]);
        if geteuid().is_root() {
            eprintln!("skipped in part: root may write everywhere");
            return;
        }
        let closed = fs::Permissions::from_mode(0o555);
        fs::set_permissions(mount.path(), closed).unwrap();
        let cgroups = Cgroups::on_the_way(mount.path(), Path::new("a/b")).unwrap();
        assert_eq!(cgroups.base, mount.path().join("a"));
        fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }

    /// A hierarchy of the kernel's that we may write to.
    fn real() -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let (mount, _) = parse_mounts(&mounts)?;
        accessat(CWD, &mount, Access::WRITE_OK, AtFlags::EACCESS).ok()?;
        Some(mount)
    }

    #[test]
    fn a_real_cgroup_is_removed_when_nobody_is_in_it_and_by_its_inode_only() {
        let Some(mount) = real() else {
            eprintln!("skipped: no cgroup v2 hierarchy that this user may write to");
            return;
        };
        let path = mount.join(format!("tardigrade-test-remove-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        let mut record = CgroupRecord {
            path: path.clone(),
            limits: Limits::of(64, 1),
            inode: Some(inode + 1),
        };
        assert!(!record.remove().unwrap(), "another one");
        record.inode = Some(inode);
        let mut lodger = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        fs::write(path.join("cgroup.procs"), lodger.id().to_string()).unwrap();
        assert!(record.remove().is_err(), "somebody lives in it");
        // Who leaves while it is waited for is missed at once.
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| {
                let begun = Instant::now();
                (record.remove().unwrap(), begun.elapsed())
            });
            lodger.kill().unwrap();
            lodger.wait().unwrap();
            let (removed, took) = removing.join().unwrap();
            assert!(removed && took < LEAVE_DEADLINE, "{took:?}");
        });
        assert!(!record.remove().unwrap());
    }
}
