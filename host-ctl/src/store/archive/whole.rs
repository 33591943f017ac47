//! A file that is there when it is whole, and not before: it has no name until
//! then (O_TMPFILE, open(2)), so that whoever is killed leaves nothing of it. On
//! a file system that has no such files it has a hidden name beside its own,
//! which a kill may leave.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat_with};
use rustix::io::Errno;

use crate::config::{hexadecimal, random_bytes};
use crate::host::{CallFailed, failed};

/// A file that is being written, for this user alone.
#[derive(Debug)]
pub(super) struct Unfinished {
    file: File,
    /// Its name meanwhile, if it has one; removed with this.
    meanwhile: Option<PathBuf>,
    to: PathBuf,
    /// Where it is to be, by which its name is made to last.
    directory: File,
}

impl Unfinished {
    /// Begins a file, of whose name there must be none.
    ///
    /// # Errors
    /// When there is one, or it cannot be made, or made to last, where that is to
    /// be.
    pub(super) fn begin(to: &Path) -> Result<Self, CallFailed> {
        // Found out in the end, too; but that is after all of the work.
        match fs::symlink_metadata(to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("stat", to)(error)),
            Ok(_) => return Err(failed("create", to)(Errno::EXIST)),
        }
        // Whoever may make files in a directory may not always open it.
        let directory = open_directory(to)?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(CWD, parent(to), flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Self {
                file: file.into(),
                meanwhile: None,
                to: to.to_owned(),
                directory,
            }),
            // Without the flag's support it is an attempt to write to a directory.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::begin_named(to, directory),
            Err(errno) => Err(failed("create", to)(errno)),
        }
    }

    fn begin_named(to: &Path, directory: File) -> Result<Self, CallFailed> {
        let random = random_bytes::<8>().map_err(failed("getrandom", to))?;
        let mut name = std::ffi::OsString::from(".");
        name.push(to.file_name().unwrap_or_default());
        name.push(format!(".{}.part", hexadecimal(&random)));
        let meanwhile = to.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&meanwhile)
            .map_err(failed("create", &meanwhile))?;
        Ok(Self {
            file,
            meanwhile: Some(meanwhile),
            to: to.to_owned(),
            directory,
        })
    }

    /// Where it is written to.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes it last, under its name; tells its size.
    ///
    /// # Errors
    /// When something has taken the name meanwhile, or a call fails; nothing is
    /// left of it then.
    pub(super) fn finish(mut self) -> Result<u64, CallFailed> {
        let to = &self.to;
        self.file.sync_all().map_err(failed("fsync", to))?;
        let size = self.file.metadata().map_err(failed("fstat", to))?.len();
        match self.meanwhile.take() {
            None => {
                let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(CWD, file, CWD, to, AtFlags::SYMLINK_FOLLOW)
                    .map_err(|errno| failed("linkat", to)(errno))?;
            }
            Some(meanwhile) => {
                let flags = RenameFlags::NOREPLACE;
                match renameat_with(CWD, &meanwhile, CWD, to, flags) {
                    Ok(()) => {}
                    // NFS and others take no flags. A link replaces nothing, and
                    // the other name goes with us.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        let linked = linkat(CWD, &meanwhile, CWD, to, AtFlags::empty());
                        self.meanwhile = Some(meanwhile);
                        linked.map_err(failed("linkat", to))?;
                    }
                    Err(errno) => {
                        self.meanwhile = Some(meanwhile);
                        return Err(failed("rename", to)(errno));
                    }
                }
            }
        }
        if let Err(error) = self.directory.sync_all() {
            // Who is told that it failed expects nothing there.
            let _ = fs::remove_file(to);
            return Err(failed("fsync", parent(to))(error));
        }
        Ok(size)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.meanwhile {
            // The first failure is what counts.
            let _ = fs::remove_file(path);
        }
    }
}

/// Opens the directory of a file, to make its name last (fsync(2)).
fn open_directory(to: &Path) -> Result<File, CallFailed> {
    let path = parent(to);
    File::open(path).map_err(failed("open", path))
}

/// The directory of a file.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    type Begin = fn(&Path) -> Result<Unfinished, CallFailed>;

    /// Both ways to begin one.
    const WAYS: [Begin; 2] = [Unfinished::begin, |to| {
        Unfinished::begin_named(to, open_directory(to)?)
    }];

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_file_has_no_name_before_it_is_whole_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("archive");
        let mut unfinished = Unfinished::begin(&to).unwrap();
        unfinished.file.write_all(b"half").unwrap();
        if unfinished.meanwhile.is_some() {
            eprintln!("skipped in part: a file system without files that have no name");
        } else {
            assert!(names(directory.path()).is_empty(), "a kill would leave it");
        }
        assert_eq!(unfinished.finish().unwrap(), 4);
        assert_eq!(names(directory.path()), ["archive"]);
        let mode = fs::metadata(&to).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_there_already_is_neither_begun_for_nor_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("archive");
        for begin in WAYS {
            let unfinished = begin(&to).unwrap();
            fs::write(&to, "other").unwrap();
            assert!(unfinished.finish().is_err());
            assert_eq!(fs::read_to_string(&to).unwrap(), "other");
            assert_eq!(names(directory.path()), ["archive"]);
            assert!(Unfinished::begin(&to).is_err());
            fs::remove_file(&to).unwrap();
        }
    }

    #[test]
    fn one_whose_name_cannot_be_made_to_last_is_not_left_under_it() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("archive");
        for begin in WAYS {
            let mut unfinished = begin(&to).unwrap();
            // What this is cannot be synced (fsync(2), "EINVAL").
            unfinished.directory = File::open("/dev/null").unwrap();
            let error = unfinished.finish().unwrap_err().to_string();
            assert!(error.contains("fsync"), "{error}");
            assert!(names(directory.path()).is_empty());
        }
    }

    #[test]
    fn none_is_begun_where_files_can_be_made_but_their_names_not_made_to_last() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("archive");
        let nobody = 65534;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(directory.path(), Some(nobody), None).unwrap();
        }
        let path = directory.path().to_owned();
        // Users are each thread's own.
        let working = std::thread::spawn(move || {
            if rustix::process::geteuid().is_root() {
                let nobody = rustix::process::Uid::from_raw(nobody);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode));
            set(0o300).unwrap();
            let begun = Unfinished::begin(&to);
            set(0o700).unwrap();
            begun.unwrap_err().to_string()
        });
        let error = working.join().unwrap();
        assert!(error.contains("open"), "{error}");
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn one_that_is_given_up_leaves_nothing_with_a_name_or_without() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("archive");
        for begin in WAYS {
            drop(begin(&to).unwrap());
            assert!(names(directory.path()).is_empty());
            begin(&to).unwrap().finish().unwrap();
            assert_eq!(names(directory.path()), ["archive"]);
            fs::remove_file(&to).unwrap();
        }
    }
}
