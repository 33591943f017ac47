//! An archive, packed or not.

use super::InspectError;
use crate::archive::{Kind, Member, members};
use crate::compression::Compression;
use crate::digest::Digest;
use serde::Serialize;
use std::fmt;

/// The largest archive that is looked at, packed or unpacked, in bytes.
pub const MAX_ARCHIVE_BYTES: usize = 1 << 30;

/// What is in an archive.
#[derive(Clone, Debug, Serialize)]
pub struct Listing {
    /// Of the file, as packed.
    pub sha256: Digest,
    /// In bytes, as packed.
    pub size: u64,
    /// How it is packed.
    pub compression: Compression,
    /// Its members in their order.
    pub members: Vec<Line>,
}

/// One member. Text that comes from the archive is escaped as
/// [`slice::escape_ascii`] does it.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// As in the archive, escaped.
    pub path: String,
    /// Type and permissions, octal.
    pub mode: String,
    /// The owner's user id.
    pub user: u32,
    /// The owner's group id.
    pub group: u32,
    /// Seconds since 1970.
    pub modified: u32,
    /// The length of its data in bytes.
    pub size: u64,
    /// Of a file's bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// A link's target, escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Major and minor number of a device node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
}

/// Lists the archive `bytes`.
///
/// # Errors
/// See [`InspectError`].
pub(super) fn list(bytes: Vec<u8>) -> Result<Listing, InspectError> {
    let sha256 = Digest::of(&bytes);
    let size = bytes.len() as u64;
    let compression = Compression::of(&bytes);
    let archive = compression
        .unpack(bytes, MAX_ARCHIVE_BYTES)
        .map_err(InspectError::Decompress)?;
    let members = members(&archive)
        .map(|member| member.map(|member| line(&member)))
        .collect::<Result<_, _>>()?;
    Ok(Listing {
        sha256,
        size,
        compression,
        members,
    })
}

fn line(member: &Member<'_>) -> Line {
    let kind = member.kind();
    Line {
        path: member.path.escape_ascii().to_string(),
        mode: format!("{:06o}", member.mode),
        user: member.user,
        group: member.group,
        modified: member.modified,
        size: member.data.len() as u64,
        sha256: (kind == Kind::File).then(|| Digest::of(member.data)),
        target: (kind == Kind::Symlink).then(|| member.data.escape_ascii().to_string()),
        device: matches!(kind, Kind::CharacterDevice | Kind::BlockDevice).then_some(member.device),
    }
}

/// A line a member: mode, owner, size or device numbers, path, link target.
impl fmt::Display for Listing {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.members {
            let Line {
                path,
                mode,
                user,
                group,
                size,
                ..
            } = line;
            let extent = match line.device {
                Some((major, minor)) => format!("{major},{minor}"),
                None => size.to_string(),
            };
            write!(to, "{mode} {user}:{group} {extent:>9} {path}")?;
            match &line.target {
                Some(target) => writeln!(to, " -> {target}")?,
                None => writeln!(to)?,
            }
        }
        Ok(())
    }
}
