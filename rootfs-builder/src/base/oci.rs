//! An image in an OCI layout: index, manifest, configuration and layers, each
//! held against its digest.
//!
//! A layout may come from anywhere. Its files are opened below its directory and
//! through no link, their sizes are known before they are read, and what it
//! names elsewhere (`urls`) is never fetched.

use super::layer::{Capped, LayerError, Layers};
use crate::digest::{Digest, Measured};
use crate::disk::Architecture;
use crate::input::{self, InputError};
use crate::manifest::{Input, Role};
use flate2::read::MultiGzDecoder;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The longest document that is read, in bytes: what the distribution
/// specification has registries accept for a manifest.
const MAX_JSON_BYTES: u64 = 4 << 20;
/// The largest layer as packed, in bytes.
const MAX_LAYER_BYTES: u64 = 2 << 30;
/// The most layers. Docker itself stops at 127.
const MAX_LAYERS: usize = 256;
/// How many indexes may lie one in the other.
const MAX_INDEXES: usize = 4;
/// The annotation that names an image of a layout.
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// Why a layout is no base.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A file is not what it should be by its place.
    #[error("read {path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A layout of another version.
    #[error("read {0}: only layouts of version 1.0.0 are known")]
    Version(PathBuf),
    /// A digest by another algorithm, or none.
    #[error("find {0:?}: only blobs named by a sha256 are looked for")]
    Algorithm(String),
    /// A blob that is not what it is called.
    #[error("read {path}: its {what} is not what the image says")]
    Blob {
        /// The file.
        path: PathBuf,
        /// Size or digest.
        what: &'static str,
    },
    /// No image, or more than one.
    #[error("find {wanted} in {layout}: {found} images are called so")]
    Images {
        /// What was asked for.
        wanted: String,
        /// Where.
        layout: PathBuf,
        /// How many there are.
        found: usize,
    },
    /// Something of a kind that cannot be used.
    #[error("use a {what} of type {found:?}")]
    Kind {
        /// What it is.
        what: &'static str,
        /// Its media type.
        found: String,
    },
    /// An image for other machines.
    #[error("the image is for {found}, the agent for {wanted}")]
    Machine {
        /// Of the image.
        found: String,
        /// Of the agent.
        wanted: &'static str,
    },
    /// More than an image should have.
    #[error("the image has more than {0}")]
    TooMuch(&'static str),
    /// The configuration speaks of other layers than the manifest.
    #[error("the image's configuration has another count of layers than its manifest")]
    Layers,
    /// A layer cannot be applied.
    #[error("apply layer {number} ({path})")]
    Layer {
        /// Counted from one.
        number: usize,
        /// Its blob.
        path: PathBuf,
        /// What is wrong with it.
        source: LayerError,
    },
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// How a layer is packed.
#[derive(Clone, Copy)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

/// The layers of the image `reference` of a layout, and what was read for them.
pub(super) fn load(
    layout: &Path,
    reference: Option<&str>,
    architecture: Architecture,
) -> Result<(Layers, Vec<Input>), OciError> {
    let layout = Layout::open(layout)?;
    let version: Version = layout.document("oci-layout")?;
    if version.version != "1.0.0" {
        return Err(OciError::Version(layout.path.join("oci-layout")));
    }
    let found = layout.find(reference, architecture)?;
    let (bytes, path) = layout.blob(&found, MAX_JSON_BYTES)?;
    let manifest: Manifest = json(&path, &bytes)?;
    let mut inputs = vec![Input::new(Role::Base, "base manifest", &bytes)];
    let (bytes, path) = layout.blob(&manifest.config, MAX_JSON_BYTES)?;
    let config: Config = json(&path, &bytes)?;
    inputs.push(Input::new(Role::Base, "base configuration", &bytes));
    if !config.platform.is(architecture) {
        return Err(OciError::Machine {
            found: format!("{}/{}", config.platform.os, config.platform.architecture),
            wanted: name(architecture),
        });
    }
    if manifest.layers.len() > MAX_LAYERS {
        return Err(OciError::TooMuch("256 layers"));
    }
    if manifest.layers.len() != config.rootfs.diff_ids.len() {
        return Err(OciError::Layers);
    }
    let mut layers = Layers::default();
    let described = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    for (number, (descriptor, diff_id)) in (1..).zip(described) {
        let packing = packing(&descriptor.media_type)?;
        let expected = sha256(diff_id)?;
        let (bytes, path) = layout.blob(descriptor, MAX_LAYER_BYTES)?;
        inputs.push(Input::new(
            Role::Base,
            format!("base layer {number}"),
            &bytes,
        ));
        let unpacked = apply(&mut layers, packing, &bytes).map_err(|source| OciError::Layer {
            number,
            path: path.clone(),
            source,
        })?;
        if unpacked != expected {
            return Err(OciError::Blob {
                path,
                what: "diff_id",
            });
        }
    }
    Ok((layers, inputs))
}

/// Applies a layer; returns the digest of what it unpacks to.
fn apply(layers: &mut Layers, packing: Packing, bytes: &[u8]) -> Result<Digest, LayerError> {
    let unpacked: Box<dyn Read + '_> = match packing {
        Packing::None => Box::new(bytes),
        Packing::Gzip => Box::new(MultiGzDecoder::new(bytes)),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(bytes);
            Box::new(decoder.map_err(super::tar::TarError::Read)?)
        }
    };
    let room = layers.room();
    // Headers and filling are about as much again, of the smallest files.
    let capped = Capped {
        from: unpacked,
        left: room.saturating_mul(2),
    };
    let measured = layers.apply(Measured::new(capped))?;
    Ok(measured.digest())
}

fn packing(media_type: &str) -> Result<Packing, OciError> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar" => Ok(Packing::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Packing::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd" => Ok(Packing::Zstd),
        other => Err(OciError::Kind {
            what: "layer",
            found: other.into(),
        }),
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

impl Platform {
    fn is(&self, architecture: Architecture) -> bool {
        self.os == "linux" && self.architecture == name(architecture)
    }
}

/// As the image specification calls it, which takes Go's names.
fn name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "amd64",
        Architecture::Arm64 => "arm64",
    }
}

/// A digest in lower-case hex: nothing else becomes part of a path.
fn sha256(text: &str) -> Result<Digest, OciError> {
    text.strip_prefix("sha256:")
        .and_then(|digest| digest.parse().ok())
        .ok_or_else(|| OciError::Algorithm(text.chars().take(128).collect()))
}

/// The directory of a layout, open.
struct Layout {
    directory: OwnedFd,
    path: PathBuf,
}

impl Layout {
    fn open(path: &Path) -> Result<Self, OciError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|source| path_error("open", path, source.into()))?;
        Ok(Self {
            directory,
            path: path.into(),
        })
    }

    /// A file of the layout, through no link.
    fn read(&self, name: &str, limit: u64) -> Result<(Vec<u8>, PathBuf), OciError> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(&self.directory, name, flags, Mode::empty(), resolve)
            .map_err(|source| path_error("open", &path, source.into()))?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let bytes = input::read_open(File::from(file), &path, limit)?;
        Ok((bytes, path))
    }

    fn document<T: DeserializeOwned>(&self, name: &str) -> Result<T, OciError> {
        let (bytes, path) = self.read(name, MAX_JSON_BYTES)?;
        json(&path, &bytes)
    }

    /// A blob that is what its descriptor says.
    fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<(Vec<u8>, PathBuf), OciError> {
        let digest = sha256(&descriptor.digest)?;
        let name = format!("blobs/sha256/{digest}");
        let (bytes, path) = self.read(&name, limit.min(descriptor.size))?;
        let what = if bytes.len() as u64 != descriptor.size {
            "size"
        } else if Digest::of(&bytes) != digest {
            "sha256"
        } else {
            return Ok((bytes, path));
        };
        Err(OciError::Blob { path, what })
    }

    /// The manifest of the one image that is meant.
    fn find(
        &self,
        reference: Option<&str>,
        architecture: Architecture,
    ) -> Result<Descriptor, OciError> {
        let Index { mut manifests } = self.document("index.json")?;
        if let Some(wanted) = reference {
            let is_wanted = |found: &Descriptor| {
                found
                    .annotations
                    .get(REFERENCE)
                    .is_some_and(|name| name == wanted)
            };
            manifests.retain(is_wanted);
        }
        for _ in 0..=MAX_INDEXES {
            manifests.retain(|found| {
                let platform = found.platform.as_ref();
                platform.is_none_or(|platform| platform.is(architecture))
            });
            manifests.sort_by(|one, other| one.digest.cmp(&other.digest));
            manifests.dedup_by(|one, other| one.digest == other.digest);
            let [found] = manifests.as_slice() else {
                return Err(OciError::Images {
                    wanted: match reference {
                        Some(reference) => format!("{reference:?} for {}", name(architecture)),
                        None => format!("an image for {}", name(architecture)),
                    },
                    layout: self.path.clone(),
                    found: manifests.len(),
                });
            };
            if is_manifest(&found.media_type) {
                return Ok(found.clone());
            }
            if !is_index(&found.media_type) {
                return Err(OciError::Kind {
                    what: "manifest",
                    found: found.media_type.clone(),
                });
            }
            let (bytes, path) = self.blob(found, MAX_JSON_BYTES)?;
            manifests = json::<Index>(&path, &bytes)?.manifests;
        }
        Err(OciError::TooMuch("4 indexes one in the other"))
    }
}

/// What is not asked for is skipped without recursion, however deep it goes.
fn json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|source| OciError::Json {
        path: path.into(),
        source,
    })
}

fn path_error(call: &'static str, path: &Path, source: io::Error) -> InputError {
    InputError::Path {
        call,
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests;
