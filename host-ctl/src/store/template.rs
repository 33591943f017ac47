//! Published templates: found, listed, removed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;
use serde::Serialize;

use super::seal::Sealed;
use super::{CloneRefusal, FORMAT, Manifest, SavedFile, Staging, Store, StoreError};
use crate::config::{TemplateDigest, TemplateName};
use crate::host::{Lock, RecordError, failed, read_record, sync_directory};

/// Fewest digits by which a template may be called.
const PREFIX_MIN: usize = 4;
/// How long a removal waits for a sweep that looks at the same lock; a build
/// takes longer and is not waited for.
const REMOVE_WAIT: Duration = Duration::from_secs(2);
/// File name of the manifest in a template's directory.
pub(super) const MANIFEST: &str = "manifest.json";

/// A published template whose manifest was read and found to be ours. Its
/// files were not looked at yet.
#[derive(Debug, Clone)]
pub struct Template {
    digest: TemplateDigest,
    directory: PathBuf,
    manifest: Manifest,
}

/// One line of a list of templates.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Digest, also the name of its directory.
    pub digest: TemplateDigest,
    /// Names that stand for it.
    pub names: Vec<TemplateName>,
    /// When it was published, in seconds since 1970.
    pub created: Option<u64>,
    /// The guest's RAM in MiB.
    pub memory_mib: Option<u32>,
    /// Bytes on disk, without blobs, which templates share.
    pub disk_bytes: u64,
    /// Why no clone can be made of it, as far as its manifest tells.
    pub refusal: Option<String>,
}

impl Template {
    /// Digest, also the name of its directory.
    #[must_use]
    pub fn digest(&self) -> &TemplateDigest {
        &self.digest
    }

    /// Where the VMM's state lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the guest's RAM lies. Never written; a clone maps it privately.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.directory.join(Staging::MEMORY)
    }

    /// What it says about itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl Store {
    /// A template by its name, its digest, or at least four digits with which
    /// only its digest begins.
    ///
    /// # Errors
    /// When there is none, or its manifest is not one of ours.
    pub fn find(&self, reference: &str) -> Result<Template, CloneRefusal> {
        let digest = self.resolve(reference)?;
        self.load(&digest)
    }

    /// Whether something lies under this digest; it may still be unusable.
    #[must_use]
    pub fn has(&self, digest: &TemplateDigest) -> bool {
        self.templates().join(digest.as_str()).exists()
    }

    /// The digest a reference stands for; the template may still be unusable.
    ///
    /// # Errors
    /// When nothing is called so, or several are.
    pub fn resolve(&self, reference: &str) -> Result<TemplateDigest, CloneRefusal> {
        let not_found = || CloneRefusal::NotFound(reference.chars().take(80).collect());
        if let Ok(name) = reference.parse::<TemplateName>()
            && let Some(digest) = self.named(&name).map_err(Box::new)?
        {
            return Ok(digest);
        }
        if reference.len() < PREFIX_MIN {
            return Err(not_found());
        }
        let mut found = self
            .digests()
            .map_err(|error| Box::new(StoreError::from(error)))?
            .into_iter()
            .filter(|digest| digest.as_str().starts_with(reference));
        match (found.next(), found.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(not_found()),
            (Some(_), Some(_)) => Err(CloneRefusal::Ambiguous(reference.to_owned())),
        }
    }

    /// Reads a template's manifest and checks that it is this store's, this
    /// user's ([`Store::shared`] takes any) and that template's.
    ///
    /// # Errors
    /// When there is none, or it is not.
    pub fn load(&self, digest: &TemplateDigest) -> Result<Template, CloneRefusal> {
        let directory = self.templates().join(digest.as_str());
        let path = directory.join(MANIFEST);
        let sealed: Sealed = match read_record(&path) {
            Ok(sealed) => sealed,
            Err(RecordError::Missing(_)) if !directory.exists() => {
                return Err(CloneRefusal::NotFound(digest.to_string()));
            }
            Err(error @ RecordError::Parse { .. }) => {
                return Err(other_format(&path).unwrap_or(CloneRefusal::Manifest(error)));
            }
            Err(error) => return Err(error.into()),
        };
        let manifest = self.unseal(sealed)?;
        let requirements = &manifest.requirements;
        if requirements.format != FORMAT {
            return Err(format_refusal(requirements.format));
        }
        let own = requirements.digest().map_err(Box::new)?;
        if own != *digest {
            return Err(CloneRefusal::Misplaced(own));
        }
        let user = geteuid().as_raw();
        if requirements.owner != user && !self.shares {
            return Err(CloneRefusal::Owner {
                owner: requirements.owner,
                user,
            });
        }
        Ok(Template {
            digest: digest.clone(),
            directory,
            manifest,
        })
    }

    /// All templates, usable or not, in order of their digests.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Summary>, StoreError> {
        let names = self.all_names()?;
        let summaries = self.digests()?.into_iter().map(|digest| {
            let template = self.load(&digest);
            let manifest = template.as_ref().ok().map(Template::manifest);
            Summary {
                names: names
                    .iter()
                    .filter(|(_, named)| *named == digest)
                    .map(|(name, _)| name.clone())
                    .collect(),
                created: manifest.map(|manifest| manifest.created),
                memory_mib: manifest.map(|manifest| manifest.requirements.machine.memory_mib),
                disk_bytes: disk_bytes(&self.templates().join(digest.as_str())),
                refusal: template.as_ref().err().map(CloneRefusal::reason),
                digest,
            }
        });
        Ok(summaries.collect())
    }

    /// Removes a template and the names that stand for it. Clones of it live
    /// on: what they have open stays until they end.
    ///
    /// # Errors
    /// When it is being built at this moment, or a call fails.
    pub fn remove(&self, digest: &TemplateDigest) -> Result<(), StoreError> {
        let lock = self.template_lock(digest);
        let _lock = Lock::acquire(&lock, "remove the template", REMOVE_WAIT)?;
        self.forget_names_of(digest)?;
        let template = self.templates().join(digest.as_str());
        // Renamed first: at no moment does half a template bear its name.
        let staging = self.stage()?;
        let doomed = staging.path().join("removed");
        match fs::rename(&template, &doomed) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::NotFound(digest.to_string()));
            }
            Err(error) => return Err(failed("rename", &template)(error).into()),
        }
        sync_directory(&self.templates())?;
        // The template is gone: what else can't be cleared is told, last.
        let forgotten = self.forget_cold_boots();
        staging.discard()?;
        forgotten
    }

    pub(super) fn digests(&self) -> Result<Vec<TemplateDigest>, crate::host::CallFailed> {
        let templates = self.templates();
        let mut digests = Vec::new();
        for entry in fs::read_dir(&templates).map_err(failed("opendir", &templates))? {
            let name = entry.map_err(failed("readdir", &templates))?.file_name();
            if let Some(Ok(digest)) = name.to_str().map(str::parse) {
                digests.push(digest);
            }
        }
        digests.sort();
        Ok(digests)
    }

    pub(super) fn template_lock(&self, digest: &TemplateDigest) -> PathBuf {
        self.locks().join(format!("{digest}.lock"))
    }

    /// The path of a file that a manifest names.
    pub(super) fn path_of(&self, template: &Template, file: &SavedFile, blob: bool) -> PathBuf {
        if blob {
            self.blobs().join(&file.name)
        } else {
            template.directory.join(&file.name)
        }
    }
}

/// A manifest of another format need not have our fields.
fn other_format(path: &Path) -> Option<CloneRefusal> {
    let value: serde_json::Value = read_record(path).ok()?;
    let format = value.pointer("/manifest/requirements/format")?.as_u64()?;
    let format = u32::try_from(format).ok()?;
    (format != FORMAT).then(|| format_refusal(format))
}

fn format_refusal(found: u32) -> CloneRefusal {
    CloneRefusal::Format {
        found,
        known: FORMAT,
    }
}

/// What a directory's files take on disk; st_blocks counts 512 bytes each
/// (stat(2)).
fn disk_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.blocks() * 512)
        .sum()
}
