//! Why the store did not do something, and why a template cannot be cloned.

use std::fmt;
use std::path::PathBuf;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::LEAKS;
use crate::config::{ConfigError, NameError, TemplateDigest};
use crate::host::{CallFailed, LockError, RecordError, TreeError, explain};

/// Why the store could not be opened or changed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A directory is not private.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// Somebody else is at it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A record was not read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A tree was not removed.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A stored name is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The kernel gave no random bytes.
    #[error("getrandom")]
    Random(#[from] Errno),
    /// Only regular files can be kept.
    #[error("{0}: not a regular file")]
    NotRegular(PathBuf),
    /// The key is not one of ours.
    #[error("{0}: want 128 hexadecimal digits")]
    Key(PathBuf),
    /// Somebody who looks at the staging directories does not let go.
    #[error("{0}: still being swept")]
    SweepBusy(PathBuf),
    /// The manifest cannot be JSON.
    #[error("serialize the manifest")]
    Serialize(#[source] serde_json::Error),
    /// Nothing of that name or digest.
    #[error("template {0}: not found")]
    NotFound(String),
    /// What was to be published has no memory or state.
    #[error("{0}: nothing was saved in it")]
    Empty(PathBuf),
}

/// Why no clone can be made of a template. Shown as
/// "cold boot instead, because ...".
#[derive(Debug, Error)]
pub enum CloneRefusal {
    /// There is none.
    #[error("there is no template {0}")]
    NotFound(String),
    /// Several digests begin like that.
    #[error("several templates begin with {0}")]
    Ambiguous(String),
    /// The manifest cannot be read.
    #[error("its manifest cannot be read")]
    Manifest(#[from] RecordError),
    /// A file of it cannot be looked at.
    #[error("it cannot be read")]
    Call(#[from] CallFailed),
    /// Written by another version of this program.
    #[error("its manifest has format {found}, this program knows {known}")]
    Format {
        /// The format found.
        found: u32,
        /// The format known.
        known: u32,
    },
    /// The manifest was not written with this store's key.
    #[error("its manifest was not sealed by this store")]
    Forged,
    /// The manifest is another template's.
    #[error("its manifest is that of template {0}")]
    Misplaced(TemplateDigest),
    /// Another user made it.
    #[error(
        "it belongs to uid {owner}, this is uid {user}; --share takes it all the same, and with it \
         that clones of both have in common {LEAKS}"
    )]
    Owner {
        /// Who made it.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// It was saved by a VMM that this program does not know.
    #[error("its vmm {0:?} is unknown")]
    Vmm(String),
    /// What is wanted is not what was saved.
    #[error("{field} differs: wanted {wanted}, it has {have}")]
    Differs {
        /// The first field that differs, as a path into the manifest.
        field: String,
        /// What is wanted.
        wanted: String,
        /// What was saved.
        have: String,
    },
    /// A file is gone.
    #[error("its file {0} is missing")]
    Missing(String),
    /// A file is not what was published.
    #[error("its file {file} is damaged: {property} is {found}, was {recorded}")]
    Damaged {
        /// The file.
        file: String,
        /// What differs first.
        property: Property,
        /// As published.
        recorded: String,
        /// As found.
        found: String,
    },
    /// The store itself does not work.
    #[error("the store cannot be used")]
    Store(#[from] Box<StoreError>),
}

impl CloneRefusal {
    /// The whole reason on one line, with what caused it.
    #[must_use]
    pub fn reason(&self) -> String {
        explain(self)
    }
}

/// A property of a published file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Property {
    /// Whether it is a regular file.
    Kind,
    /// Its length in bytes.
    Size,
    /// Its content.
    Sha256,
}

impl fmt::Display for Property {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Property::Kind => "kind",
            Property::Size => "size",
            Property::Sha256 => "sha256",
        })
    }
}
