//! The directory of a VM's files that are between the driver and the VMM:
//!
//! - `kernel`, `initrd`: links, which vanish as soon as the VM runs. A guest that
//!   resets would be started again by the VMM, behind our back and in a memory
//!   file that may be a template's by then; without a kernel it ends instead.
//! - `restore/`: what a restored VM is made from, only meanwhile.
//! - `save/`: where the VMM writes a state. Only when it is whole it is moved to
//!   where it belongs, so that the VMM never writes there itself.
//! - `directory.fs0` and so on: the sockets of the directories' virtiofsds, only
//!   until the VMM is connected to them.
//! - `saved`: the memory file belongs to a saved state. Known to whoever adopts
//!   the VM, and where the VMM has no access if it keeps itself to its files.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, SeekFrom, renameat_with};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use serde_json::Value;

use super::view::View;
use super::{MEMORY_FILE, STATE_FILE};
use crate::error::Error;
use crate::process::User;
use crate::spec::{Backing, VmSpec};
use crate::virtiofsd::socket_path;

/// The names of the VMM's own (docs/snapshot_restore.md of Cloud Hypervisor).
const VMM_CONFIG: &str = "config.json";
const VMM_STATE: &str = "state.json";
const VMM_MEMORY: &str = "memory-ranges";

/// The modes of what a VMM with a user of its own, by its group, goes through and
/// reads.
const PASSABLE: u32 = 0o710;
const READABLE_DIRECTORY: u32 = 0o750;
const READABLE: u32 = 0o640;

/// The longest state that is read, in bytes: one of a VM of ours is below 1 MiB.
const LONGEST_STATE: u64 = 64 << 20;

/// A VM's directory.
#[derive(Debug, Clone)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    /// The directory of the VM with this control socket.
    pub(super) fn of(monitor: &Path) -> Self {
        let mut name = OsString::from(monitor);
        name.push(".files");
        Self::at(name.into())
    }

    /// The one that is there.
    pub(super) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.directory.join("kernel")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.directory.join("initrd")
    }

    pub(super) fn save(&self) -> PathBuf {
        self.directory.join("save")
    }

    pub(super) fn restore(&self) -> PathBuf {
        self.directory.join("restore")
    }

    /// What the sockets of directories are called after.
    pub(super) fn directories(&self) -> PathBuf {
        self.directory.join("directory")
    }

    /// The socket of the directory with this index.
    pub(super) fn directory_socket(&self, index: usize) -> PathBuf {
        socket_path(&self.directories(), index)
    }

    fn saved(&self) -> PathBuf {
        self.directory.join("saved")
    }

    /// Makes it. What a VM before has left is removed: its control socket is
    /// ours by now.
    pub(super) fn create(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(Error::path("rmdir", &self.directory))?,
        }
        create_directory(&self.directory)?;
        create_directory(&self.save())
    }

    /// Lets a VMM with a user of its own through it, to write its states.
    pub(super) fn share(&self, user: &User) -> Result<(), Error> {
        user.show(&self.directory, PASSABLE)?;
        user.share_directory(&self.save())
    }

    /// Creates the memory file of a new VM, unless its RAM lies in none; says which.
    pub(super) fn create_memory(
        &self,
        spec: &VmSpec,
        user: Option<&User>,
    ) -> Result<Option<PathBuf>, Error> {
        let Backing::FileBacked { path, .. } = &spec.memory.backing else {
            return Ok(None);
        };
        let file = create_exclusively(path).map_err(Error::path("create", path))?;
        let made = file
            .set_len(u64::from(spec.memory.size_mib) << 20)
            .map_err(Error::path("ftruncate", path))
            .and_then(|()| {
                let shared = user.map_or(Ok(()), |user| user.share(&file));
                shared.map_err(Error::path("fchown", path))
            });
        if made.is_err() {
            // The first error counts.
            let _ = fs::remove_file(path);
        }
        made.map(|()| Some(path.clone()))
    }

    /// Removes it with all that is in it; gone already is as good.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.directory);
    }

    /// Shows kernel and initrd to the VMM, where it sees them.
    pub(super) fn show_kernel(&self, seen: &VmSpec) -> Result<(), Error> {
        for (target, link) in [(&seen.kernel, self.kernel()), (&seen.initrd, self.initrd())] {
            symlink(target, &link).map_err(Error::path("symlink", &link))?;
        }
        Ok(())
    }

    /// Hides them again.
    pub(super) fn hide_kernel(&self) -> Result<(), Error> {
        for link in [self.kernel(), self.initrd()] {
            fs::remove_file(&link).map_err(Error::path("unlink", &link))?;
        }
        Ok(())
    }

    /// Puts a saved state where a VMM with this configuration reads it. RAM that
    /// was saved with the state is linked to. RAM in a memory file is mapped from
    /// there, and a file that is one hole stands where the VMM looks for what to
    /// copy over it: it copies what is data.
    pub(super) fn prepare_restore(
        &self,
        state: &SavedState,
        config: &Value,
        view: &View,
        user: Option<&User>,
    ) -> Result<(), Error> {
        let directory = self.restore();
        create_directory(&directory)?;
        let spec = &view.spec;
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            let written = create_exclusively(&path)
                .and_then(|mut file| io::Write::write_all(&mut file, bytes));
            written.map_err(Error::path("write", path))
        };
        write(VMM_CONFIG, config.to_string().as_bytes())?;
        write(VMM_STATE, &state.bytes)?;
        let memory = directory.join(VMM_MEMORY);
        let mut read = vec![directory.join(VMM_CONFIG), directory.join(VMM_STATE)];
        if let Some(target) = &view.saved_memory {
            symlink(target, &memory).map_err(Error::path("symlink", memory))?;
        } else if matches!(spec.memory.backing, Backing::FileBacked { .. }) {
            create_hole(&memory, u64::from(spec.memory.size_mib) << 20)?;
            read.push(memory);
        }
        if let Some(user) = user {
            user.show(&directory, READABLE_DIRECTORY)?;
            read.iter().try_for_each(|path| user.show(path, READABLE))?;
        }
        Ok(())
    }

    /// Ends what [`Files::prepare_restore`] began.
    pub(super) fn finish_restore(&self) -> Result<(), Error> {
        let directory = self.restore();
        fs::remove_dir_all(&directory).map_err(Error::path("rmdir", directory))
    }

    /// Removes what a save that failed or was abandoned has left. The directory
    /// itself stays: a VMM that keeps itself to its files knows this one.
    pub(super) fn clear_save(&self) -> Result<(), Error> {
        for name in [VMM_CONFIG, VMM_STATE, VMM_MEMORY] {
            let path = self.save().join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(Error::path("unlink", path))?,
            }
        }
        Ok(())
    }

    /// Moves a state that the VMM has written to a directory, and the RAM, if it
    /// has written that, to this file there; all of it or nothing. Returns its
    /// files, and how many bytes they have.
    pub(super) fn collect(
        &self,
        directory: &Path,
        memory: Option<&str>,
    ) -> Result<(Vec<PathBuf>, u64), Error> {
        // A disk that was full has cut it short, which the VMM does not notice.
        let state = self.save().join(VMM_STATE);
        let bytes = read_bounded(&state)?;
        if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_err() {
            return Err(Error::Migration {
                verb: "save",
                reason: "the state it wrote is not whole: is the disk full?".to_owned(),
            });
        }
        let mut moves = vec![(state, directory.join(STATE_FILE))];
        if let Some(name) = memory {
            moves.push((self.save().join(VMM_MEMORY), directory.join(name)));
        }
        let (mut moved, mut bytes) = (Vec::new(), 0);
        for (from, to) in moves {
            match move_file(&from, &to) {
                Ok(length) => bytes += length,
                Err(error) => {
                    moved.iter().for_each(|path: &PathBuf| {
                        // The first error counts.
                        let _ = fs::remove_file(path);
                    });
                    return Err(Error::path("rename", to)(error));
                }
            }
            moved.push(to);
        }
        Ok((moved, bytes))
    }

    /// Notes that the memory file belongs to a saved state.
    pub(super) fn note_saved(&self) -> Result<(), Error> {
        let path = self.saved();
        create_exclusively(&path).map_err(Error::path("create", path))?;
        Ok(())
    }

    /// Whether that was noted.
    pub(super) fn is_saved(&self) -> bool {
        self.saved().exists()
    }
}

/// Refuses a directory that has a state already.
pub(super) fn is_free(directory: &Path) -> Result<(), Error> {
    for path in [directory.join(STATE_FILE), directory.join(MEMORY_FILE)] {
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::path("stat", path)(error)),
            Ok(_) => return Err(Error::path("create", path)(Errno::EXIST.into())),
        }
    }
    Ok(())
}

/// A saved state.
#[derive(Debug)]
pub(super) struct SavedState {
    bytes: Vec<u8>,
    /// The RAM, if it was saved with it.
    pub(super) memory: Option<PathBuf>,
}

impl SavedState {
    /// Reads what [`Files::collect`] has left in a directory.
    pub(super) fn read(directory: &Path) -> Result<Self, Error> {
        let bytes = read_bounded(&directory.join(STATE_FILE))?;
        let memory = directory.join(MEMORY_FILE);
        Ok(Self {
            bytes,
            memory: memory.is_file().then_some(memory),
        })
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        let mut bytes = Vec::new();
        let mut file = io::Read::take(open_regular(path)?, LONGEST_STATE + 1);
        io::Read::read_to_end(&mut file, &mut bytes)?;
        if bytes.len() as u64 > LONGEST_STATE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    };
    read().map_err(Error::path("read", path))
}

/// Opens what a VMM has written, which nobody vouches for: a file, and not what a
/// symlink leads to or a pipe that is never written to.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(not_a_file())
    }
}

fn not_a_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a regular file")
}

fn create_directory(path: &Path) -> Result<(), Error> {
    let created = DirBuilder::new().mode(0o700).create(path);
    created.map_err(Error::path("mkdir", path))
}

/// Creates a file of this length in which there is nothing.
///
/// # Errors
/// [`Error::Unsupported`] on a file system that tells of no holes (lseek(2)): to
/// the VMM it would be full of zeros.
fn create_hole(path: &Path, length: u64) -> Result<(), Error> {
    let file = create_exclusively(path).map_err(Error::path("create", path))?;
    file.set_len(length)
        .map_err(Error::path("ftruncate", path))?;
    match rustix::fs::seek(&file, SeekFrom::Data(0)) {
        Err(Errno::NXIO) => Ok(()),
        Err(errno) => Err(Error::path("lseek SEEK_DATA", path)(errno.into())),
        Ok(_) => Err(Error::Unsupported(
            "mapping ram on a file system without holes",
        )),
    }
}

/// Creates a file for us alone, which must not be there.
pub(super) fn create_exclusively(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Moves a file and nothing else, also to another file system; returns its size.
fn move_file(from: &Path, to: &Path) -> io::Result<u64> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Looked at where the VMM cannot exchange it any more.
        Ok(()) => match fs::symlink_metadata(to) {
            // By another name it might be a file that is not the VMM's to give.
            Ok(moved) if moved.is_file() && moved.nlink() == 1 => own(to, &moved),
            found => {
                // The first error counts.
                let _ = fs::remove_file(to);
                Err(found.err().unwrap_or_else(not_a_file))
            }
        },
        Err(Errno::XDEV) => {
            let mut source = open_regular(from)?;
            let mut target = create_exclusively(to)?;
            let copied = io::copy(&mut source, &mut target)
                .and_then(|length| fs::remove_file(from).map(|()| length));
            if copied.is_err() {
                // The first error counts.
                let _ = fs::remove_file(to);
            }
            copied
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a file that a VMM with a user of its own has left ours; its size.
fn own(path: &Path, found: &Metadata) -> io::Result<u64> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    if found.uid() != user {
        lchown(path, Some(user), Some(group))?;
    }
    Ok(found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (tempfile::TempDir, Files, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(&directory.path().join("api"));
        files.create().unwrap();
        let target = directory.path().join("saved");
        fs::create_dir(&target).unwrap();
        (directory, files, target)
    }

    fn write(files: &Files, name: &str, text: &str) {
        fs::write(files.save().join(name), text).unwrap();
    }

    #[test]
    fn a_state_that_was_cut_short_is_an_error_and_is_not_moved() {
        let (_directory, files, target) = made();
        write(&files, VMM_STATE, r#"{"snapshots":{"cpu-man"#);
        let error = files.collect(&target, None).unwrap_err();
        assert!(error.to_string().contains("is the disk full?"), "{error}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_file_is_neither_followed_nor_waited_for_nor_moved() {
        let (directory, files, target) = made();
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "{}").unwrap();
        let [state, memory] = [VMM_STATE, VMM_MEMORY].map(|name| files.save().join(name));
        symlink(&elsewhere, &state).unwrap();
        files.collect(&target, None).unwrap_err();
        fs::remove_file(&state).unwrap();
        let private = rustix::fs::Mode::RWXU;
        rustix::fs::mkfifoat(CWD, &state, private).unwrap();
        files.collect(&target, None).unwrap_err();
        fs::remove_file(&state).unwrap();
        write(&files, VMM_STATE, "{}");
        symlink(&elsewhere, &memory).unwrap();
        files.collect(&target, Some(MEMORY_FILE)).unwrap_err();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        assert!(elsewhere.exists());
    }

    #[test]
    fn what_has_another_name_is_not_taken_for_the_vmms() {
        let (directory, files, target) = made();
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "{}").unwrap();
        fs::hard_link(&elsewhere, files.save().join(VMM_STATE)).unwrap();
        files.collect(&target, None).unwrap_err();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        assert_eq!(fs::read(&elsewhere).unwrap(), b"{}");
    }

    #[test]
    fn a_state_whose_memory_is_missing_is_not_left_there_either() {
        let (_directory, files, target) = made();
        write(&files, VMM_STATE, "{}");
        files.collect(&target, Some(MEMORY_FILE)).unwrap_err();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }

    #[test]
    fn a_whole_state_is_moved_without_the_vmms_own_account_and_read_again() {
        let (_directory, files, target) = made();
        is_free(&target).unwrap();
        write(&files, VMM_STATE, "{}");
        write(&files, VMM_MEMORY, "ram");
        write(&files, VMM_CONFIG, "{}");
        let (moved, bytes) = files.collect(&target, Some(MEMORY_FILE)).unwrap();
        assert_eq!(moved, [target.join(STATE_FILE), target.join(MEMORY_FILE)]);
        assert_eq!((bytes, fs::read_dir(&target).unwrap().count()), (5, 2));
        files.clear_save().unwrap();
        assert_eq!(fs::read_dir(files.save()).unwrap().count(), 0);
        is_free(&target).unwrap_err();
        let state = SavedState::read(&target).unwrap();
        assert_eq!(state.memory, Some(target.join(MEMORY_FILE)));
    }

    #[test]
    fn there_is_nothing_to_copy_over_ram_that_is_mapped() {
        let directory = tempfile::tempdir().unwrap();
        let hole = directory.path().join("hole");
        create_hole(&hole, 1 << 30).unwrap();
        let file = File::open(&hole).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 30);
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Err(Errno::NXIO));
        create_hole(&hole, 1).unwrap_err();
    }

    #[test]
    fn that_the_memory_was_saved_is_known_until_the_directory_is_made_anew() {
        let (_directory, files, _target) = made();
        assert!(!files.is_saved());
        files.note_saved().unwrap();
        assert!(files.is_saved());
        files.create().unwrap();
        assert!(!files.is_saved());
    }
}
