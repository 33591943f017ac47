//! CopyFile as a policy sees it: without the data, with the type spelt out.

use protocols::wire::agent::CopyFileRequest;
use serde_json::{Value, json};

use crate::input::InputError;

// The file types of inode(7) within a mode.
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;

/// The mode of a regular file with these permissions.
pub(crate) const fn regular(permissions: u32) -> u32 {
    S_IFREG | permissions
}

/// The reduced object of the existing agent. The type is exact: a mode that
/// merely contains the bits of a symlink is "Unknown", and whoever carries
/// the request out must take it for unknown, too.
pub(crate) fn input(request: &CopyFileRequest) -> Result<Value, InputError> {
    let file_type = match request.file_mode & S_IFMT {
        S_IFREG => "Regular",
        S_IFDIR => "Directory",
        S_IFLNK => "Symlink",
        _ => "Unknown",
    };
    let symlink_target = match file_type {
        "Symlink" => Some(str::from_utf8(&request.data).map_err(|_| InputError::SymlinkTarget)?),
        _ => None,
    };
    Ok(json!({
        "path": request.path,
        "file_type": file_type,
        "symlink_target": symlink_target,
        "file_size": request.file_size,
        "file_mode": request.file_mode,
        "dir_mode": request.dir_mode,
        "uid": request.uid,
        "gid": request.gid,
        "offset": request.offset,
    }))
}
