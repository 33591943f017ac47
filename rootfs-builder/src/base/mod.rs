//! What lies under agent and policy in an image: nothing, busybox, a directory,
//! an image in an OCI layout, or Debian.
//!
//! Everything in an image belongs to root, and has one time. What else a base
//! has is kept exactly or refused by name, as far as this machine's tools can
//! hold it. Links are never followed on this machine.

mod busybox;
mod debian;
mod directory;
mod layer;
mod oci;
mod tar;

use crate::archive::Archive;
use crate::disk::Architecture;
use crate::manifest::Input;
use std::path::PathBuf;
use std::str::FromStr;

pub use busybox::BusyboxError;
pub use debian::DebianError;
pub use directory::DirectoryError;
pub use layer::LayerError;
pub use oci::OciError;
pub use tar::TarError;

/// What an image starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// Nothing: the agent is alone.
    #[default]
    None,
    /// The distribution's busybox, static.
    Busybox,
    /// A directory tree.
    Directory(PathBuf),
    /// An image in an OCI layout.
    Oci {
        /// The layout's directory.
        layout: PathBuf,
        /// The image's name there; none if it is the only one.
        reference: Option<String>,
    },
    /// The essential packages of a Debian suite.
    Debian(String),
}

/// Why a base cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// Packages for a base that cannot install any.
    #[error("install packages: only the base debian:SUITE can")]
    Packages,
    /// A base for a processor that bases are not known of.
    #[error("use a base with an agent for ELF machine {0}: not known")]
    Machine(u16),
    /// Busybox.
    #[error("use busybox as the base")]
    Busybox(#[from] BusyboxError),
    /// A directory.
    #[error("use a directory as the base")]
    Directory(#[from] DirectoryError),
    /// An OCI layout.
    #[error("use an OCI image as the base")]
    Oci(#[from] OciError),
    /// Debian.
    #[error("use Debian as the base")]
    Debian(#[from] DebianError),
}

/// A base, in memory.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) archive: Archive,
    /// What was read for it.
    pub(crate) inputs: Vec<Input>,
    /// What could not be kept as it was, a line each.
    pub(crate) changes: Vec<String>,
}

impl FromStr for Base {
    type Err = &'static str;

    /// `none`, `busybox`, `oci:LAYOUT[:REF]`, `debian:SUITE`, or a directory. The
    /// layout's path has no colon; a directory of one of these names is `./NAME`.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        Ok(match text.split_once(':') {
            Some(("debian", "")) => return Err("which suite? debian:SUITE"),
            Some(("debian", suite)) => Self::Debian(suite.into()),
            Some(("oci", rest)) => {
                let (layout, reference) = match rest.split_once(':') {
                    Some((layout, reference)) => (layout, Some(reference.to_owned())),
                    None => (rest, None),
                };
                if layout.is_empty() || reference.as_ref().is_some_and(String::is_empty) {
                    return Err("not oci:LAYOUT[:REF]");
                }
                Self::Oci {
                    layout: layout.into(),
                    reference,
                }
            }
            _ => match text {
                "none" => Self::None,
                "busybox" => Self::Busybox,
                "" => return Err("no base"),
                directory => Self::Directory(directory.into()),
            },
        })
    }
}

impl Base {
    /// Reads it, for an agent of that ELF machine.
    pub(crate) fn load(
        &self,
        packages: &[String],
        machine: u16,
        source_date_epoch: u32,
    ) -> Result<Loaded, BaseError> {
        if !packages.is_empty() && !matches!(self, Self::Debian(_)) {
            return Err(BaseError::Packages);
        }
        let of_layers = |layers: layer::Layers, inputs| Loaded {
            archive: layers.archive,
            inputs,
            changes: layers.changes,
        };
        Ok(match self {
            Self::None => Loaded::default(),
            Self::Busybox => {
                let (archive, input) = busybox::load()?;
                Loaded {
                    archive,
                    inputs: vec![input],
                    changes: Vec::new(),
                }
            }
            Self::Directory(root) => {
                let (archive, changes, input) = directory::load(root)?;
                Loaded {
                    archive,
                    inputs: vec![input],
                    changes,
                }
            }
            Self::Oci { layout, reference } => {
                let architecture = Architecture::of(machine).ok_or(BaseError::Machine(machine))?;
                let (layers, inputs) = oci::load(layout, reference.as_deref(), architecture)?;
                of_layers(layers, inputs)
            }
            Self::Debian(suite) => {
                let (layers, input) = debian::load(suite, packages, source_date_epoch)?;
                of_layers(layers, vec![input])
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_word_a_directory_or_a_name_with_a_place() {
        let oci = |layout: &str, reference: Option<&str>| Base::Oci {
            layout: layout.into(),
            reference: reference.map(str::to_owned),
        };
        for (text, base) in [
            ("none", Base::None),
            ("busybox", Base::Busybox),
            ("./none", Base::Directory("./none".into())),
            ("/srv/tree:1", Base::Directory("/srv/tree:1".into())),
            ("debian:bookworm", Base::Debian("bookworm".into())),
            ("oci:a/b", oci("a/b", None)),
            ("oci:a/b:r.io/x:1", oci("a/b", Some("r.io/x:1"))),
        ] {
            assert_eq!(text.parse(), Ok(base), "{text}");
        }
        for text in ["", "debian:", "oci:", "oci::x", "oci:x:"] {
            assert!(text.parse::<Base>().is_err(), "{text}");
        }
    }

    #[test]
    fn packages_are_asked_only_of_a_base_that_has_them() {
        let packages = ["hello".to_owned()];
        for base in [Base::None, Base::Busybox, Base::Directory("/".into())] {
            let error = base.load(&packages, 62, 0).unwrap_err();
            assert!(matches!(error, BaseError::Packages), "{error}");
        }
    }
}
