//! Reads newc archives, hostile ones too: nothing is allocated, every member
//! borrows from the archive, and each step moves forward.

use super::{HEADER_LENGTH, MAGIC, MAX_NAME, TRAILER, padding};

/// Why an archive cannot be read on, and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Neither a header nor the zeros that may follow a trailer.
    #[error("read archive: no header at byte {0}")]
    NoHeader(usize),
    /// A header field is not eight hex digits.
    #[error("read archive: the header at byte {0} has a field that is no number")]
    Field(usize),
    /// A name that is empty, too long or not terminated.
    #[error("read archive: the header at byte {0} has no valid name")]
    Name(usize),
    /// The archive ends in the middle of a member, or without a trailer.
    #[error("read archive: it ends inside the member at byte {0}")]
    Truncated(usize),
}

/// The type of a member, from its mode: inode(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link; its data is the target.
    Symlink,
    /// A character device node.
    CharacterDevice,
    /// A block device node.
    BlockDevice,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A mode that says none of these.
    Unknown,
}

/// One member, as it stands in the archive. Nothing about it is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The name without its NUL; any bytes but NUL, absolute paths and `..`
    /// included.
    pub path: &'a [u8],
    /// The inode number.
    pub inode: u32,
    /// Type and permissions.
    pub mode: u32,
    /// The owner's user id.
    pub user: u32,
    /// The owner's group id.
    pub group: u32,
    /// The count of links.
    pub links: u32,
    /// Seconds since 1970.
    pub modified: u32,
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// A file's bytes, a link's target.
    pub data: &'a [u8],
}

impl Member<'_> {
    /// Its type.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.mode & 0o170_000 {
            0o040_000 => Kind::Directory,
            0o100_000 => Kind::File,
            0o120_000 => Kind::Symlink,
            0o020_000 => Kind::CharacterDevice,
            0o060_000 => Kind::BlockDevice,
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            _ => Kind::Unknown,
        }
    }
}

/// The members of `archive`, to the first error. Several archives in a row are
/// one, as for the kernel.
pub fn members(archive: &[u8]) -> impl Iterator<Item = Result<Member<'_>, ReadError>> {
    let mut position = Some(0);
    let mut after_trailer = false;
    std::iter::from_fn(move || {
        loop {
            let start = skip_zeros(archive, position?, after_trailer);
            if after_trailer && start == archive.len() {
                position = None;
                return None;
            }
            match read_member(archive, start) {
                Ok((member, end)) => {
                    position = Some(end);
                    after_trailer = member.path == TRAILER.as_bytes();
                    if !after_trailer {
                        return Some(Ok(member));
                    }
                }
                Err(error) => {
                    position = None;
                    return Some(Err(error));
                }
            }
        }
    })
}

/// Zeros are padding only between archives.
fn skip_zeros(archive: &[u8], position: usize, allowed: bool) -> usize {
    let zeros = archive[position..]
        .iter()
        .take_while(|&&byte| allowed && byte == 0)
        .count();
    position + zeros
}

/// The member that starts at `start`, and where the next one does.
fn read_member(archive: &[u8], start: usize) -> Result<(Member<'_>, usize), ReadError> {
    let truncated = || ReadError::Truncated(start);
    let rest = &archive[start..];
    if !rest.starts_with(MAGIC) {
        // An end in the middle of the magic is an end, not another format.
        return Err(if MAGIC.starts_with(rest) {
            truncated()
        } else {
            ReadError::NoHeader(start)
        });
    }
    let header = rest.get(MAGIC.len()..HEADER_LENGTH).ok_or_else(truncated)?;
    let mut fields = [0; 13];
    for (field, digits) in fields.iter_mut().zip(header.chunks_exact(8)) {
        *field = parse_field(digits).ok_or(ReadError::Field(start))?;
    }
    let [
        inode,
        mode,
        user,
        group,
        links,
        modified,
        size,
        _,
        _,
        major,
        minor,
        name_size,
        _,
    ] = fields;
    let name_size = name_size as usize;
    if !(2..=MAX_NAME).contains(&name_size) {
        return Err(ReadError::Name(start));
    }
    let name_end = HEADER_LENGTH + name_size;
    let name = rest.get(HEADER_LENGTH..name_end).ok_or_else(truncated)?;
    let Some((0, path)) = name.split_last() else {
        return Err(ReadError::Name(start));
    };
    if path.contains(&0) {
        return Err(ReadError::Name(start));
    }
    let data_start = name_end + padding(name_end);
    let data_end = data_start
        .checked_add(size as usize)
        .ok_or_else(truncated)?;
    let data = rest.get(data_start..data_end).ok_or_else(truncated)?;
    let member = Member {
        path,
        inode,
        mode,
        user,
        group,
        links,
        modified,
        device: (major, minor),
        data,
    };
    // The padding of the last member may be missing: the kernel does not look.
    let end = (data_end + padding(data_end)).min(rest.len());
    Ok((member, start + end))
}

fn parse_field(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value: u32, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(value << 4 | digit)
    })
}
