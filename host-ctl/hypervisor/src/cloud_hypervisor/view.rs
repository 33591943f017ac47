//! What a VMM finds the files of its VM by.
//!
//! One that has our user finds them where they are. To one with a user of its
//! own no directory of ours lets through: it inherits what it opens, under
//! numbers of its own, and every path it is told begins at one of them. It makes
//! its sockets in the directory of the agent's, where nothing else lies, and its
//! states in a directory for that; console and states are taken out of there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use super::files::{Files, SavedState};
use crate::error::Error;
use crate::process::{Confined, User};
use crate::socket::vacate;
use crate::spec::{AgentDevice, Backing, VmSpec};

/// The guest's kernel.
const KERNEL: RawFd = 900;
/// The guest's initrd.
const INITRD: RawFd = 901;
/// The VM's directory ([`Files`]).
const FILES: RawFd = 902;
/// The directory of the agent's socket.
const AGENT_DIRECTORY: RawFd = 903;
/// The memory file.
const MEMORY: RawFd = 904;
/// RAM that was saved with a state.
const SAVED_MEMORY: RawFd = 905;
/// The first disk; the others follow.
const FIRST_DISK: RawFd = 910;

/// How the VM begins.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// With its kernel.
    Boot,
    /// With a saved state.
    Restore(&'a SavedState),
}

/// The files of one VM, as its VMM sees them.
pub(super) struct View {
    /// The VM, with paths that lead its VMM to what ours lead us to.
    pub(super) spec: VmSpec,
    /// Its directory.
    pub(super) files: Files,
    /// RAM that was saved with the state it is made from.
    pub(super) saved_memory: Option<PathBuf>,
    /// Where it makes its console's socket, if that belongs elsewhere.
    console: Option<PathBuf>,
    inherited: Vec<(OwnedFd, RawFd)>,
}

impl View {
    /// That of a VMM with this user, if it has one of its own. What it may open,
    /// make and remove is set with it.
    ///
    /// # Errors
    /// [`Error::Spec`] for a file that it may not open.
    pub(super) fn of(
        spec: &VmSpec,
        files: &Files,
        start: Start<'_>,
        user: Option<&User>,
    ) -> Result<Self, Error> {
        let saved_memory = match start {
            Start::Boot => None,
            Start::Restore(state) => state.memory.clone(),
        };
        let plain = Self {
            spec: spec.clone(),
            files: files.clone(),
            saved_memory,
            console: None,
            inherited: Vec::new(),
        };
        match (user, start) {
            (None, Start::Boot) => {
                for path in [&spec.kernel, &spec.initrd] {
                    // A clear error, before there is a process.
                    File::open(path).map_err(Error::path("open", path))?;
                }
                Ok(plain)
            }
            (None, Start::Restore(_)) => Ok(plain),
            (Some(user), _) => plain.through_descriptors(start, user),
        }
    }

    fn through_descriptors(mut self, start: Start<'_>, user: &User) -> Result<Self, Error> {
        self.open_sockets(user)?;
        self.files.share(user)?;
        let directory = self.files.directory().to_owned();
        self.add_directory(&directory, FILES)?;
        self.files = Files::at(seen(FILES));
        match start {
            Start::Boot => {
                self.add(user.open_or_copy(&self.spec.kernel)?, KERNEL);
                self.add(user.open_or_copy(&self.spec.initrd)?, INITRD);
                (self.spec.kernel, self.spec.initrd) = (seen(KERNEL), seen(INITRD));
            }
            Start::Restore(_) => {
                if let Some(path) = self.saved_memory.take() {
                    self.add(user.open("memory.backing", &path, false)?, SAVED_MEMORY);
                    self.saved_memory = Some(seen(SAVED_MEMORY));
                }
            }
        }
        if let Backing::FileBacked { path, shared } = self.spec.memory.backing.clone() {
            self.add(user.open("memory.path", &path, shared)?, MEMORY);
            let path = seen(MEMORY);
            self.spec.memory.backing = Backing::FileBacked { path, shared };
        }
        for (index, number) in (0..self.spec.disks.len()).zip(FIRST_DISK..) {
            let disk = &self.spec.disks[index];
            let opened = user.open("disks.path", &disk.path, !disk.readonly)?;
            self.add(opened, number);
            self.spec.disks[index].path = seen(number);
        }
        Ok(self)
    }

    /// Has it make its sockets in the directory of the agent's.
    fn open_sockets(&mut self, user: &User) -> Result<(), Error> {
        let AgentDevice::HybridVsock { socket, .. } = &mut self.spec.agent else {
            return Err(Error::Unsupported("an agent's device that has no socket"));
        };
        let (directory, name) = place("agent.socket", socket)?;
        let made = directory.join(place("console", &self.spec.console)?.1);
        let own = seen(AGENT_DIRECTORY);
        *socket = own.join(name);
        if made != self.spec.console {
            vacate(&made)?;
            self.console = Some(made.clone());
        }
        let (_, name) = place("console", &made)?;
        self.spec.console = own.join(name);
        user.share_directory(&directory)?;
        self.add_directory(&directory, AGENT_DIRECTORY)
    }

    fn add(&mut self, file: impl Into<OwnedFd>, number: RawFd) {
        self.inherited.push((file.into(), number));
    }

    fn add_directory(&mut self, path: &Path, number: RawFd) -> Result<(), Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(path, flags, Mode::empty());
        self.add(
            opened.map_err(|errno| Error::path("open", path)(errno.into()))?,
            number,
        );
        Ok(())
    }

    /// What it inherits, and as which numbers.
    pub(super) fn inherited(&self) -> Vec<(BorrowedFd<'_>, RawFd)> {
        let inherited = self.inherited.iter();
        inherited.map(|(file, at)| (file.as_fd(), *at)).collect()
    }

    /// Where it makes a socket that is not where it belongs.
    pub(super) fn made_console(&self) -> Option<&Path> {
        self.console.as_deref()
    }

    /// Takes the console's socket to where it belongs, out of the VMM's reach; who
    /// listens is the same.
    pub(super) fn take_console(&self, console: &Path) -> Result<(), Error> {
        match &self.console {
            None => Ok(()),
            Some(made) => {
                std::fs::rename(made, console).map_err(Error::path("rename", made))?;
                // Looked at where the VMM cannot exchange it any more: by a link we
                // would be led to another's.
                let found = std::fs::symlink_metadata(console);
                if found
                    .as_ref()
                    .is_ok_and(|found| found.file_type().is_socket())
                {
                    return Ok(());
                }
                // The first error counts.
                let _ = std::fs::remove_file(console);
                let no_socket = || io::Error::other("the vmm made no socket");
                let error = found.err().unwrap_or_else(no_socket);
                Err(Error::path("stat", console)(error))
            }
        }
    }
}

/// The directory of a VM as its VMM sees it, which is confined like this.
pub(super) fn files_seen(confined: Confined, files: &Files) -> Files {
    match confined {
        Confined::User { .. } => Files::at(seen(FILES)),
        Confined::Insecure | Confined::Namespaces => files.clone(),
    }
}

/// How an inherited descriptor is opened again, or begun at.
fn seen(number: RawFd) -> PathBuf {
    format!("/proc/self/fd/{number}").into()
}

/// The directory and the name of a file.
fn place(field: &'static str, path: &Path) -> Result<(PathBuf, PathBuf), Error> {
    match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) => Ok((directory.to_owned(), name.into())),
        _ => Err(Error::Spec {
            field,
            reason: format!("{path:?} names no file"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud_hypervisor::config::{Surroundings, new_vm};
    use crate::process::{Confinement, Launch, Needs, spawn};
    use crate::spec::{Disk, Memory};
    use rustix::process::{WaitOptions, geteuid, waitpid};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    /// A VM whose files lie in a directory that lets nobody through.
    fn spec(directory: &Path) -> VmSpec {
        fs::set_permissions(directory, Permissions::from_mode(0o700)).unwrap();
        let path = |name: &str| directory.join(name);
        for (name, text) in [("kernel", "kernel"), ("initrd", "initrd"), ("disk", "disk")] {
            fs::write(path(name), text).unwrap();
            fs::set_permissions(path(name), Permissions::from_mode(0o644)).unwrap();
        }
        fs::create_dir(path("vmm")).unwrap();
        fs::set_permissions(path("vmm"), Permissions::from_mode(0o700)).unwrap();
        VmSpec {
            name: "vm".to_owned(),
            uuid: "6dc6a3a1-5d2a-4b0f-9a52-0b7e2d5c1f10".to_owned(),
            vcpus: 1,
            memory: Memory {
                size_mib: 32,
                backing: Backing::FileBacked {
                    path: path("memory"),
                    shared: true,
                },
            },
            kernel: path("kernel"),
            initrd: path("initrd"),
            cmdline: String::new(),
            disks: vec![Disk {
                id: "a".to_owned(),
                path: path("disk"),
                readonly: true,
            }],
            agent: AgentDevice::HybridVsock {
                socket: path("vmm/link.sock"),
                cid: 3,
            },
            console: path("console.sock"),
            monitor: path("monitor.sock"),
            nics: Vec::new(),
            directories: Vec::new(),
            cpu_model: None,
            log: path("log"),
            cgroup: None,
        }
    }

    #[test]
    fn a_vmm_with_our_user_sees_what_we_see() {
        let directory = tempfile::tempdir().unwrap();
        let spec = spec(directory.path());
        let files = Files::of(&spec.monitor);
        let view = View::of(&spec, &files, Start::Boot, None).unwrap();
        assert_eq!(view.spec, spec);
        assert_eq!(view.files.save(), files.save());
        assert!(view.inherited().is_empty());
        assert_eq!(view.made_console(), None);
        view.take_console(&spec.console).unwrap();
        assert_eq!(
            files_seen(Confined::Namespaces, &files).save(),
            files.save()
        );
    }

    /// What a VMM would do, a line for each that it could.
    const TRIED: &str = "for f in kernel initrd; do cat /proc/self/fd/902/$f && echo; done; \
        cat /proc/self/fd/910 && echo; \
        (echo x > /proc/self/fd/910) && echo wrote the disk; \
        (printf mem 1<> /proc/self/fd/904) && echo wrote the memory; \
        (echo '{}' > /proc/self/fd/902/save/state.json) && echo saved; \
        mkfifo /proc/self/fd/903/console.sock && echo made the console; \
        (echo x > /proc/self/fd/902/saved) && echo forged the mark; \
        rm -f /proc/self/fd/902/kernel && echo removed the kernel; \
        ls /proc/self/fd/902 && echo listed; \
        ls DIRECTORY && echo went in";

    #[test]
    fn a_vmm_with_a_user_of_its_own_gets_at_its_files_by_descriptors_and_no_further() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root gives users away");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let spec = spec(directory.path());
        let confinement = Confinement::strictest(0x7e00_0000).unwrap();
        let user = confinement.user();
        let files = Files::of(&spec.monitor);
        files.create().unwrap();
        files.create_memory(&spec, user).unwrap();
        let view = View::of(&spec, &files, Start::Boot, user).unwrap();
        files.show_kernel(&view.spec).unwrap();

        // No path of ours is told.
        let around = Surroundings {
            files: &view.files,
            confines_files: true,
        };
        let told = new_vm(&view.spec, around).unwrap().to_string();
        let hidden = directory.path().to_str().unwrap();
        assert!(!told.contains(hidden), "{told}");

        let log = tempfile::NamedTempFile::new().unwrap();
        let cell = confinement.cell(Needs::default()).unwrap();
        let placed = view.inherited();
        let pid = spawn(&Launch {
            program: Path::new("/bin/sh"),
            arguments: &["-c".to_owned(), TRIED.replace("DIRECTORY", hidden)],
            inherited: &[user.unwrap().lock()],
            placed: &placed,
            log: &File::create("/dev/null").unwrap(),
            output: Some(log.as_file()),
            keeps: None,
            filter: None,
            cell: cell.as_ref(),
            cgroup: None,
        });
        waitpid(Some(pid.unwrap()), WaitOptions::empty()).unwrap();
        let did = fs::read_to_string(log.path()).unwrap();
        let did: Vec<&str> = did.lines().collect();
        let wanted = [
            "kernel",
            "initrd",
            "disk",
            "wrote the memory",
            "saved",
            "made the console",
        ];
        assert_eq!(did, wanted);

        // What it made is no socket: nobody is led to it.
        assert!(view.take_console(&spec.console).is_err());
        assert!(fs::symlink_metadata(&spec.console).is_err());
        let made = view.made_console().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(made).unwrap();
        view.take_console(&spec.console).unwrap();
        assert!(fs::symlink_metadata(&spec.console).is_ok());
        assert!(!files.is_saved());
        // What it has saved is ours then.
        let target = directory.path().join("target");
        fs::create_dir(&target).unwrap();
        let (moved, _) = files.collect(&target, None).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(&moved[0]).unwrap().uid(), 0);
    }

    #[test]
    fn a_restored_vms_vmm_reads_what_it_is_made_from() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root gives users away");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut spec = spec(directory.path());
        let memory = directory.path().join("memory");
        File::create(&memory).unwrap().set_len(32 << 20).unwrap();
        spec.memory.backing = Backing::FileBacked {
            path: memory.clone(),
            shared: false,
        };
        let confinement = Confinement::strictest(0x7e00_0000).unwrap();
        let user = confinement.user();
        let files = Files::of(&spec.monitor);
        files.create().unwrap();
        let saved = directory.path().join("saved");
        fs::create_dir(&saved).unwrap();
        fs::write(saved.join("state"), "{}").unwrap();
        let state = SavedState::read(&saved).unwrap();
        let start = Start::Restore(&state);
        // For its owner alone: no template's memory is published so.
        fs::set_permissions(&memory, Permissions::from_mode(0o600)).unwrap();
        let refused = View::of(&spec, &files, start, user).err().unwrap();
        assert!(refused.to_string().contains("memory.path"), "{refused}");
        fs::set_permissions(&memory, Permissions::from_mode(0o644)).unwrap();
        let view = View::of(&spec, &files, start, user).unwrap();
        let config = serde_json::json!({ "a": "configuration" });
        files.prepare_restore(&state, &config, &view, user).unwrap();

        let log = tempfile::NamedTempFile::new().unwrap();
        let cell = confinement.cell(Needs::default()).unwrap();
        let placed = view.inherited();
        const READ: &str = "cd /proc/self/fd/902/restore/ && cat config.json state.json && echo && \
            stat -c %s memory-ranges && head -c 1 memory-ranges | wc -c; \
            (echo x > config.json) && echo wrote; (echo x > /proc/self/fd/904) && echo wrote";
        let pid = spawn(&Launch {
            program: Path::new("/bin/sh"),
            arguments: &["-c".to_owned(), READ.to_owned()],
            inherited: &[user.unwrap().lock()],
            placed: &placed,
            log: &File::create("/dev/null").unwrap(),
            output: Some(log.as_file()),
            keeps: None,
            filter: None,
            cell: cell.as_ref(),
            cgroup: None,
        });
        waitpid(Some(pid.unwrap()), WaitOptions::empty()).unwrap();
        let did = fs::read_to_string(log.path()).unwrap();
        let size = (32 << 20).to_string();
        let wanted = [r#"{"a":"configuration"}{}"#, size.as_str(), "1"];
        assert_eq!(did.lines().collect::<Vec<_>>(), wanted);
        files.finish_restore().unwrap();
    }
}
