//! The agent's initrd: the contents as an archive, packed.

use crate::compression::Compression;
use crate::contents::Contents;
use crate::digest::Digest;
use crate::manifest::{Image, Manifest};
use std::io;

/// An initrd's bytes and what is to be said about them.
#[derive(Clone, Debug)]
pub struct Initrd {
    /// The file.
    pub bytes: Vec<u8>,
    /// Its description.
    pub manifest: Manifest,
}

/// Makes an initrd of `contents`.
///
/// # Errors
/// Those of [`Compression::pack`].
pub fn pack(contents: Contents, compression: Compression) -> io::Result<Initrd> {
    let Contents {
        archive,
        mut manifest,
        ..
    } = contents;
    let bytes = compression.pack(archive.to_bytes(manifest.source_date_epoch))?;
    manifest.image = Some(Image {
        sha256: Digest::of(&bytes),
        size: bytes.len() as u64,
        compression,
    });
    Ok(Initrd { bytes, manifest })
}
