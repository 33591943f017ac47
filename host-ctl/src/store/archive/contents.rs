//! What an archive says of itself. Not one word of it is believed: what cannot be
//! a template's is refused before a file is made.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::ArchiveError;
use crate::config::hexadecimal_bytes;
use crate::store::template::MANIFEST;
use crate::store::{FORMAT, Hashing, Manifest, Requirements, SavedFile, Sha256, Staging};

/// Files beside the memory: no VMM saves more than two.
const MOST_FILES: usize = 8;
/// Longest name of one.
const LONGEST_NAME: usize = 64;
/// Longest text that is kept of it as it is.
const LONGEST_VERSION: usize = 256;

/// A template to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    pub(super) requirements: Requirements,
    pub(super) agent_version: String,
    pub(super) quiesce_id: String,
    /// As in [`crate::store::Draft`], where the archive was made. Who imports it
    /// goes by the VMM there.
    pub(super) memory_opened_for_writing: bool,
    /// Its own files, the memory among them.
    pub(super) files: Vec<Entry>,
    /// Kernel, initrd and disks, each once.
    pub(super) blobs: Vec<Entry>,
}

/// A file; its bytes come in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) hashing: Hashing,
    pub(super) sha256: Sha256,
}

impl Contents {
    pub(super) fn of(manifest: &Manifest, memory_opened_for_writing: bool) -> Self {
        let entry = |file: &SavedFile| Entry {
            name: file.name.clone(),
            size: file.size,
            hashing: file.hashing,
            sha256: file.sha256.clone(),
        };
        Self {
            requirements: manifest.requirements.clone(),
            agent_version: manifest.agent_version.clone(),
            quiesce_id: manifest.quiesce_id.clone(),
            memory_opened_for_writing,
            files: manifest.files.iter().map(entry).collect(),
            blobs: manifest.blobs.iter().map(entry).collect(),
        }
    }

    /// The bytes that name its freeze.
    ///
    /// # Errors
    /// When they are none.
    pub(super) fn quiesce_id(&self) -> Result<[u8; 16], ArchiveError> {
        hexadecimal_bytes(&self.quiesce_id).ok_or_else(|| wrong("quiesce_id"))
    }

    /// Checks all of it; the bytes that its files take.
    ///
    /// # Errors
    /// [`ArchiveError::Contents`] with the first field that is wrong.
    pub(super) fn check(&self) -> Result<u64, ArchiveError> {
        let machine = &self.requirements.machine;
        if self.memory_opened_for_writing && self.requirements.vmm.kind != "qemu" {
            return Err(wrong("memory_opened_for_writing"));
        }
        if self.requirements.format != FORMAT {
            let found = self.requirements.format;
            return Err(wrong(&format!("format {found}, want {FORMAT}")));
        }
        self.quiesce_id()?;
        if self.agent_version.len() > LONGEST_VERSION {
            return Err(wrong("agent_version"));
        }
        let containers = self.requirements.containers.iter();
        for container in containers {
            if container.disk >= machine.disks.len() {
                return Err(wrong(&format!("no disk {}", container.disk)));
            }
        }
        self.check_files(u64::from(machine.memory_mib) << 20)?;
        let disks = machine.disks.iter().filter_map(|disk| disk.image.as_ref());
        let wanted: BTreeSet<&str> = [&machine.kernel, &machine.initrd]
            .into_iter()
            .chain(disks)
            .map(Sha256::as_str)
            .collect();
        let found: BTreeSet<&str> = self.blobs.iter().map(|blob| blob.name.as_str()).collect();
        let whole =
            |blob: &Entry| blob.name == blob.sha256.as_str() && blob.hashing == Hashing::Whole;
        if found != wanted || found.len() != self.blobs.len() || !self.blobs.iter().all(whole) {
            return Err(wrong("blobs"));
        }
        let mut sizes = self.files.iter().chain(&self.blobs).map(|entry| entry.size);
        sizes
            .try_fold(0_u64, u64::checked_add)
            .ok_or_else(|| wrong("sizes"))
    }

    fn check_files(&self, memory: u64) -> Result<(), ArchiveError> {
        let names: BTreeSet<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        if names.len() != self.files.len() || names.len() > MOST_FILES {
            return Err(wrong("files"));
        }
        for file in &self.files {
            let fits = if file.name == Staging::MEMORY {
                file.hashing == Hashing::Pages && file.size == memory
            } else {
                file.hashing == Hashing::Whole && is_name(&file.name)
            };
            if !fits {
                return Err(wrong("files"));
            }
        }
        if names.contains(Staging::MEMORY) && names.len() > 1 {
            Ok(())
        } else {
            Err(wrong("no memory, or no state"))
        }
    }
}

/// Whether a file of a template's directory can have this name: no path, none
/// that is hidden, and not the manifest's.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.starts_with('.')
        && (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(fits)
        && name != MANIFEST
}

fn wrong(what: &str) -> ArchiveError {
    ArchiveError::Contents(what.to_owned())
}
