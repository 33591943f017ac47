//! The files a machine is made of, kept in the store.

use super::BuildError;
use super::requirements::Images;
use crate::sandbox::spec::SandboxSpec;
use crate::store::{Blob, Store};

/// The kept files of a machine: kernel, initrd, then the disks.
pub(super) struct Kept(Vec<Blob>);

impl Kept {
    pub(super) fn import(spec: &SandboxSpec, store: &Store) -> Result<Kept, BuildError> {
        let mut blobs = vec![store.import(&spec.kernel)?, store.import(&spec.initrd)?];
        for disk in &spec.disks {
            blobs.push(store.import(disk)?);
        }
        Ok(Kept(blobs))
    }

    /// All of them; while they live no sweep removes them.
    pub(super) fn blobs(&self) -> &[Blob] {
        &self.0
    }

    pub(super) fn images(&self) -> Images {
        let digest = |index: usize| self.0[index].sha256().clone();
        Images {
            kernel: digest(0),
            initrd: digest(1),
            disks: (2..self.0.len()).map(digest).collect(),
        }
    }

    /// The sandbox, made of the kept files.
    pub(super) fn applied_to(&self, spec: &SandboxSpec) -> SandboxSpec {
        let path = |index: usize| self.0[index].path().to_owned();
        SandboxSpec {
            kernel: path(0),
            initrd: path(1),
            disks: (2..self.0.len()).map(path).collect(),
            ..spec.clone()
        }
    }
}
