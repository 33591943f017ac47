//! The files a machine is made of, kept in the store.

use super::BuildError;
use super::requirements::Images;
use crate::sandbox::spec::SandboxSpec;
use crate::store::{Blob, Store};

/// The kept files of a machine.
pub(super) struct Kept {
    /// Kernel, initrd, then the images.
    blobs: Vec<Blob>,
    /// Of each disk, where its image is among them; none for a slot.
    disks: Vec<Option<usize>>,
}

impl Kept {
    pub(super) fn import(spec: &SandboxSpec, store: &Store) -> Result<Kept, BuildError> {
        let mut blobs = vec![store.import(&spec.kernel)?, store.import(&spec.initrd)?];
        let mut disks = Vec::new();
        for image in &spec.disks {
            disks.push(image.as_ref().map(|_| blobs.len()));
            if let Some(image) = image {
                blobs.push(store.import(image)?);
            }
        }
        Ok(Kept { blobs, disks })
    }

    /// All of them; while they live no sweep removes them.
    pub(super) fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    pub(super) fn images(&self) -> Images {
        let digest = |index: usize| self.blobs[index].sha256().clone();
        Images {
            kernel: digest(0),
            initrd: digest(1),
            disks: self.disks.iter().map(|disk| disk.map(digest)).collect(),
        }
    }

    /// The sandbox, made of the kept files.
    pub(super) fn applied_to(&self, spec: &SandboxSpec) -> SandboxSpec {
        let path = |index: usize| self.blobs[index].path().to_owned();
        SandboxSpec {
            kernel: path(0),
            initrd: path(1),
            disks: self.disks.iter().map(|disk| disk.map(path)).collect(),
            ..spec.clone()
        }
    }
}
