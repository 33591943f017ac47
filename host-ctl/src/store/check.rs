//! Whether a template's files still are what was published.
//!
//! The cheap check looks at inode, size and times of every file, memory and
//! blobs included; only a file that does not match is hashed. `verify` hashes
//! all of them.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::hash_cache::nanos;
use super::pages::Pages;
use super::{CloneRefusal, Hashing, Property, SavedFile, SavedMachine, Sha256, Store, Template};
use crate::host::failed;

/// What a check had to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Files whose times did not match and that were hashed, and found whole.
    pub hashed: Vec<String>,
}

impl Store {
    /// Looks at inode, size, mtime and ctime of every file; hashes those that
    /// differ. Costs one stat a file when nothing happened.
    ///
    /// # Errors
    /// [`CloneRefusal::Missing`] or [`CloneRefusal::Damaged`] for the first
    /// file that is not what was published.
    pub fn check(&self, template: &Template) -> Result<Checked, CloneRefusal> {
        self.check_files(template, false)
    }

    /// Hashes every file.
    ///
    /// # Errors
    /// As [`Store::check`].
    pub fn verify(&self, template: &Template) -> Result<Checked, CloneRefusal> {
        self.check_files(template, true)
    }

    /// The same for what the machine is made of, kernel, initrd and disks, without
    /// which nothing like the template can be booted either.
    ///
    /// # Errors
    /// As [`Store::check`].
    pub fn check_images(&self, template: &Template) -> Result<Checked, CloneRefusal> {
        let mut checked = Checked::default();
        self.check_blobs(template, false, &mut checked)?;
        Ok(checked)
    }

    fn check_files(&self, template: &Template, all: bool) -> Result<Checked, CloneRefusal> {
        let mut checked = Checked::default();
        for saved in &template.manifest().files {
            let path = self.path_of(template, saved, false);
            if check_file(&path, saved, &saved.name, all)? {
                checked.hashed.push(saved.name.clone());
            }
        }
        self.check_blobs(template, all, &mut checked)?;
        Ok(checked)
    }

    fn check_blobs(
        &self,
        template: &Template,
        all: bool,
        checked: &mut Checked,
    ) -> Result<(), CloneRefusal> {
        let manifest = template.manifest();
        for saved in &manifest.blobs {
            let path = self.path_of(template, saved, true);
            let name = role(&manifest.requirements.machine, &saved.sha256);
            if check_file(&path, saved, &name, all)? {
                checked.hashed.push(saved.name.clone());
            }
        }
        Ok(())
    }
}

/// What a file is to the machine, as a field of its manifest.
fn role(machine: &SavedMachine, sha256: &Sha256) -> String {
    let fixed = [
        ("machine.kernel", &machine.kernel),
        ("machine.initrd", &machine.initrd),
    ];
    let disks = machine.disks.iter().enumerate();
    let disks = disks.filter_map(|(index, disk)| {
        let image = disk.image.as_ref()?;
        Some((format!("machine.disks[{index}].image"), image))
    });
    let mut all = fixed
        .into_iter()
        .map(|(name, image)| (name.to_owned(), image))
        .chain(disks);
    all.find(|(_, image)| *image == sha256)
        .map_or_else(|| sha256.to_string(), |(name, _)| name)
}

/// Checks one file, called `name` in errors; says whether it was hashed.
fn check_file(
    path: &Path,
    saved: &SavedFile,
    name: &str,
    hash: bool,
) -> Result<bool, CloneRefusal> {
    let file = match open_read_only(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CloneRefusal::Missing(name.to_owned()));
        }
        Err(error) => return Err(failed("open", path)(error).into()),
    };
    let metadata = file.metadata().map_err(failed("fstat", path))?;
    let damaged = |property, recorded: String, found: String| CloneRefusal::Damaged {
        file: name.to_owned(),
        property,
        recorded,
        found,
    };
    if !metadata.is_file() {
        let found = "something else".to_owned();
        return Err(damaged(Property::Kind, "a regular file".to_owned(), found));
    }
    if metadata.len() != saved.size {
        let [recorded, found] = [saved.size, metadata.len()].map(|size| size.to_string());
        return Err(damaged(Property::Size, recorded, found));
    }
    if !hash && is_untouched(&metadata, saved) {
        return Ok(false);
    }
    let found = hash_file(&file, saved.hashing)
        .map_err(failed("read", path))?
        .0;
    if found == saved.sha256 {
        Ok(true)
    } else {
        let recorded = saved.sha256.to_string();
        Err(damaged(Property::Sha256, recorded, found.to_string()))
    }
}

fn is_untouched(metadata: &Metadata, saved: &SavedFile) -> bool {
    metadata.ino() == saved.inode
        && nanos(metadata.mtime(), metadata.mtime_nsec()) == saved.mtime_nanos
        && nanos(metadata.ctime(), metadata.ctime_nsec()) == saved.ctime_nanos
}

/// A file's digest, and its bytes that are not zero (all, when hashed whole).
pub(super) fn hash_file(file: &File, hashing: Hashing) -> io::Result<(Sha256, u64)> {
    match hashing {
        Hashing::Whole => Ok((Sha256::of_file(file)?, file.metadata()?.len())),
        Hashing::Pages => {
            let pages = Pages::of_file(file)?;
            Ok((pages.sha256, pages.touched))
        }
    }
}

/// What a manifest records of a file that will not change any more.
pub(super) fn describe(
    name: &str,
    metadata: &Metadata,
    hashing: Hashing,
    sha256: Sha256,
) -> SavedFile {
    SavedFile {
        name: name.to_owned(),
        size: metadata.len(),
        hashing,
        sha256,
        inode: metadata.ino(),
        mtime_nanos: nanos(metadata.mtime(), metadata.mtime_nsec()),
        ctime_nanos: nanos(metadata.ctime(), metadata.ctime_nsec()),
    }
}

pub(super) fn open_read_only(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
}
