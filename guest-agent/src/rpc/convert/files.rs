//! CopyFile: what kind of file a piece is of, and where it goes.

use super::{ConvertError, invalid, unsupported};
use crate::service::files::{CopyFile, SHARED};
use guest_runtime::shared_files::{Content, SharedFile, relative};
use protocols::wire::agent;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

// The file types of inode(7) within a mode, as the gate shows them to a policy:
// exactly these, not whatever has their bits.
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;

impl TryFrom<agent::CopyFileRequest> for CopyFile {
    type Error = ConvertError;

    fn try_from(request: agent::CopyFileRequest) -> Result<Self, ConvertError> {
        let path = relative(SHARED, &request.path);
        let path = path.ok_or_else(|| {
            invalid("path", &request.path)(format!("no path in its normal form below {SHARED}"))
        })?;
        let content = match request.file_mode & S_IFMT {
            S_IFDIR => Content::Directory,
            S_IFLNK => Content::Symlink {
                target: symlink_target(request.data)?,
            },
            // Without a type it is the plainest one.
            S_IFREG | 0 => regular(request.file_size, request.offset, request.data)?,
            _ => {
                let mode = request.file_mode;
                return Err(unsupported(format!("copying a file of mode {mode:o}")));
            }
        };
        Ok(Self(SharedFile {
            path,
            content,
            mode: request.file_mode & !S_IFMT,
            directory_mode: request.dir_mode,
            uid: owner("uid", request.uid)?,
            gid: owner("gid", request.gid)?,
        }))
    }
}

fn symlink_target(data: Vec<u8>) -> Result<OsString, ConvertError> {
    if data.is_empty() || data.contains(&0) {
        let text = String::from_utf8_lossy(&data);
        return Err(invalid("data", &text)("no target of a symbolic link"));
    }
    Ok(OsString::from_vec(data))
}

fn regular(size: i64, offset: i64, data: Vec<u8>) -> Result<Content, ConvertError> {
    let number =
        |field, value: i64| u64::try_from(value).map_err(invalid(field, &value.to_string()));
    let size = number("file_size", size)?;
    let begin = number("offset", offset)?;
    let end = begin.checked_add(data.len() as u64);
    if end.is_none_or(|end| end > size) {
        let reason = format!("{} bytes from there are not within {size}", data.len());
        return Err(invalid("offset", &offset.to_string())(reason));
    }
    Ok(Content::Regular {
        size,
        offset: begin,
        data,
    })
}

/// -1 leaves it as it is, chown(2).
fn owner(field: &'static str, id: i32) -> Result<Option<u32>, ConvertError> {
    match id {
        -1 => Ok(None),
        id => u32::try_from(id)
            .map(Some)
            .map_err(invalid(field, &id.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_taken_is_a_piece_of_a_file_below_the_directory(
            below in "[a./]{0,8}",
            file_mode: u32,
            file_size: i64,
            offset in prop_oneof![Just(0), any::<i64>()],
            data in prop::collection::vec(any::<u8>(), 0..8),
            uid: i32,
        ) {
            let mut request = agent::CopyFileRequest::new();
            request.path = format!("{SHARED}/{below}");
            request.file_mode = file_mode;
            (request.file_size, request.offset) = (file_size, offset);
            (request.data, request.uid) = (data.clone(), uid);
            if let Ok(CopyFile(file)) = CopyFile::try_from(request) {
                let mut names = file.path.components();
                prop_assert!(names.all(|name| matches!(name, std::path::Component::Normal(_))));
                prop_assert_eq!(file.mode & S_IFMT, 0);
                if let Content::Regular { size, offset, data } = file.content {
                    prop_assert!(offset + data.len() as u64 <= size);
                }
            }
        }
    }
}
