//! Templates on disk: how they are staged, published, found and checked.
//!
//! ```text
//! store/templates/<digest>/   manifest.json, memory and the VMM's state files
//! store/staging/<random>/     what is not published yet; locked while in use
//! store/blobs/<sha256>        kernels, initrds and disks that templates use
//! store/names/<name>          the digest that a name stands for
//! store/hashes/<dev>-<inode>  which digest an unchanged file has
//! store/cold-boots/<digest>     how often something was booted in its place
//! store/locks/                one lock a template, so that it is built once
//! store/key                   what manifests are sealed with
//! ```
//!
//! The store knows what a manifest says, not what it means: it never starts a
//! VM. What is published is never written again; a template is replaced only
//! by another directory.

mod archive;
mod blob;
mod check;
mod cold_boots;
mod compare;
mod copy;
mod digest;
mod error;
mod hash_cache;
mod manifest;
mod name;
mod pages;
mod publish;
mod seal;
mod share;
mod staging;
mod sweep;
mod template;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::config::{Paths, private_directory};

pub use archive::{ArchiveError, ArchiveKey, Imported, LEAKS, Protection, Trust};
pub use blob::Blob;
pub use check::Checked;
pub use cold_boots::ColdBoots;
pub use compare::{Difference, compare};
pub use digest::Sha256;
pub use error::{CloneRefusal, Property, StoreError};
pub use manifest::{
    FORMAT, Hashing, Manifest, Requirements, SavedAgentDevice, SavedContainer, SavedDisk,
    SavedFile, SavedImport, SavedMachine, SavedNic, SavedOrigin, SavedVmm, SavedWarmUp,
};
pub use publish::{BuildLock, Claim, Draft, Published};
pub use staging::Staging;
pub use template::{Summary, Template};

/// The templates of one user.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    /// Whether templates of other owners are taken.
    shares: bool,
}

impl Store {
    /// Opens the store below a state root, made when absent.
    ///
    /// # Errors
    /// When a directory of it cannot be made, or is not private to this user.
    pub fn open(paths: &Paths) -> Result<Store, StoreError> {
        let store = Store {
            root: paths.store.clone(),
            shares: false,
        };
        private_directory(&store.root)?;
        for directory in [
            store.templates(),
            store.staging(),
            store.blobs(),
            store.names(),
            store.hashes(),
            store.locks(),
            store.cold_boots_directory(),
        ] {
            private_directory(&directory)?;
        }
        Ok(store)
    }

    /// The same store, whose templates are taken whoever made them. Clones of
    /// theirs and ours have [`LEAKS`] in common then.
    #[must_use]
    pub fn shared(mut self) -> Store {
        self.shares = true;
        self
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    fn hashes(&self) -> PathBuf {
        self.root.join("hashes")
    }

    fn cold_boots_directory(&self) -> PathBuf {
        self.root.join("cold-boots")
    }

    fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }
}
