//! Writing a template to one file.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::chunks::Writer;
use super::contents::Contents;
use super::whole::Unfinished;
use super::{ArchiveError, Protection, runs};
use crate::host::failed;
use crate::store::check::open_read_only;
use crate::store::{SavedFile, Store, StoreError, Template};

impl Store {
    /// Writes a template to a new file, which only this user may read, and tells
    /// its size.
    ///
    /// # Errors
    /// When the template is not whole, the file is there already, or a call
    /// fails; nothing is left then, nor when this process is killed.
    pub fn export(
        &self,
        template: &Template,
        to: &Path,
        protection: &Protection,
    ) -> Result<u64, ArchiveError> {
        self.check(template)?;
        let unfinished = Unfinished::begin(to)?;
        self.write_archive(template, unfinished.file(), protection)?;
        Ok(unfinished.finish()?)
    }

    fn write_archive(
        &self,
        template: &Template,
        file: &File,
        protection: &Protection,
    ) -> Result<(), ArchiveError> {
        let manifest = template.manifest();
        let memory = template.memory();
        let found = fs::symlink_metadata(&memory).map_err(failed("stat", &memory))?;
        let contents = Contents::of(manifest, found.mode() & 0o200 != 0);
        let text = serde_json::to_vec(&contents).map_err(StoreError::Serialize)?;
        let length = u32::try_from(text.len())
            .map_err(|_| ArchiveError::Contents("its manifest is too long".to_owned()))?;
        let mut out = Writer::begin(BufWriter::new(file), protection)?;
        let failed_to_write = |error| ArchiveError::Stream("write", error);
        out.write_all(&length.to_be_bytes())
            .and_then(|()| out.write_all(&text))
            .map_err(failed_to_write)?;
        let own = manifest.files.iter().map(|file| (file, false));
        for (saved, blob) in own.chain(manifest.blobs.iter().map(|blob| (blob, true))) {
            self.write_file(template, saved, blob, &mut out)?;
        }
        out.finish().map_err(failed_to_write)?;
        Ok(())
    }

    /// Whoever reads the archive compares the bytes with the digest beside them.
    fn write_file(
        &self,
        template: &Template,
        saved: &SavedFile,
        blob: bool,
        out: &mut impl Write,
    ) -> Result<(), ArchiveError> {
        let path = self.path_of(template, saved, blob);
        let file = open_read_only(&path).map_err(failed("open", &path))?;
        let found = file.metadata().map_err(failed("fstat", &path))?;
        if !found.is_file() || found.len() != saved.size {
            return Err(ArchiveError::Damaged(saved.name.clone()));
        }
        runs::write(&file, saved.size, out).map_err(|error| ArchiveError::Stream("write", error))
    }
}
