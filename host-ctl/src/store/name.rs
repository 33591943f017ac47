//! Names that people give to templates: small files that hold a digest.

use std::fs;
use std::io;
use std::time::Duration;

use super::{Store, StoreError};
use crate::config::{TemplateDigest, TemplateName};
use crate::host::{Lock, RecordError, failed, read_bounded, sync_directory, write_atomically};

/// How long another process may take to change a name.
const NAME_WAIT: Duration = Duration::from_secs(10);

impl Store {
    /// Lets a name stand for a template, whatever it stood for before.
    ///
    /// # Errors
    /// When a call fails; the name is unchanged then.
    pub fn set_name(&self, name: &TemplateName, digest: &TemplateDigest) -> Result<(), StoreError> {
        let _lock = self.lock_names()?;
        let path = self.names().join(name.as_str());
        write_atomically(&path, format!("{digest}\n").as_bytes(), 0o600)?;
        Ok(())
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// When it cannot be read, or holds no digest.
    pub fn named(&self, name: &TemplateName) -> Result<Option<TemplateDigest>, StoreError> {
        match read_bounded(&self.names().join(name.as_str())) {
            Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim_end().parse()?)),
            Err(RecordError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn all_names(&self) -> Result<Vec<(TemplateName, TemplateDigest)>, StoreError> {
        let names = self.names();
        let mut found = Vec::new();
        for entry in fs::read_dir(&names).map_err(failed("opendir", &names))? {
            let name = entry.map_err(failed("readdir", &names))?.file_name();
            if let Some(Ok(name)) = name.to_str().map(str::parse::<TemplateName>)
                && let Some(digest) = self.named(&name)?
            {
                found.push((name, digest));
            }
        }
        found.sort();
        Ok(found)
    }

    pub(super) fn forget_names_of(&self, digest: &TemplateDigest) -> Result<(), StoreError> {
        let _lock = self.lock_names()?;
        for (name, named) in self.all_names()? {
            if named == *digest {
                let path = self.names().join(name.as_str());
                match fs::remove_file(&path) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed("unlink", &path)(error).into()),
                }
            }
        }
        sync_directory(&self.names())?;
        Ok(())
    }

    fn lock_names(&self) -> Result<Lock, StoreError> {
        let path = self.locks().join("names.lock");
        Ok(Lock::acquire(&path, "change a name", NAME_WAIT)?)
    }
}
