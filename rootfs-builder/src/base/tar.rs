//! Reads tar archives of whatever origin: ustar and GNU headers, with the
//! extensions of pax(1).
//!
//! A member comes out with all that is said of it, or not at all: sparse files,
//! records that nobody knows and damaged headers are errors.

use std::io::{self, Read};

/// In bytes.
const BLOCK: usize = 512;
/// The longest extended header or long name that is read, in bytes. A path has
/// at most 4096, and so has each of the few other records.
const MAX_EXTENSION: u64 = 1 << 20;
/// Records that say what we do not keep: times, names of owners, comments.
const IGNORED_RECORDS: [&[u8]; 8] = [
    b"atime",
    b"ctime",
    b"mtime",
    b"uname",
    b"gname",
    b"comment",
    b"charset",
    b"hdrcharset",
];
/// Before the name of an extended attribute.
const ATTRIBUTE: [&[u8]; 2] = [b"SCHILY.xattr.", b"LIBARCHIVE.xattr."];

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// A call failed, or the data ended too early, or there is too much of it.
    #[error("read the archive")]
    Read(#[from] io::Error),
    /// A header whose checksum is not right.
    #[error("a header is damaged")]
    Checksum,
    /// A field that makes no sense.
    #[error("a header has an odd {0}")]
    Odd(&'static str),
    /// A kind of member, or a record, that would not be kept.
    #[error("a member has {0}, which would not be kept")]
    Unknown(String),
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// The low twelve bits.
    pub(super) permissions: u32,
    pub(super) user: u64,
    pub(super) group: u64,
    /// Of a link, where it leads.
    pub(super) link: Vec<u8>,
    /// Of a file.
    pub(super) data: Vec<u8>,
    /// Names of its extended attributes.
    pub(super) attributes: Vec<Vec<u8>>,
}

/// What an extended header says of the members after it.
#[derive(Clone, Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    user: Option<u64>,
    group: Option<u64>,
    attributes: Vec<Vec<u8>>,
}

/// Members, one after the other.
pub(super) struct Reader<R> {
    from: R,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from }
    }

    /// The next member, if it has at most `room` bytes; none at the archive's
    /// end.
    pub(super) fn next(&mut self, room: u64) -> Result<Option<Member>, TarError> {
        let mut extension = Extension::default();
        let mut extended = false;
        loop {
            let Some(header) = self.header()? else {
                // An extension without a member.
                return if extended {
                    Err(TarError::Odd("end"))
                } else {
                    Ok(None)
                };
            };
            let kind = match header.0[156] {
                b'0' | 0 | b'7' => Kind::File,
                b'1' => Kind::HardLink,
                b'2' => Kind::Symlink,
                b'3' => Kind::CharacterDevice,
                b'4' => Kind::BlockDevice,
                b'5' => Kind::Directory,
                b'6' => Kind::Fifo,
                // One for each member: more of them would be memory that no count
                // of members bounds.
                b'x' if extended => return Err(TarError::Odd("extension")),
                b'x' => {
                    extension.read(&self.extension(&header)?)?;
                    extended = true;
                    continue;
                }
                b'L' => {
                    extension.path = Some(until_nul(&self.extension(&header)?).to_vec());
                    extended = true;
                    continue;
                }
                b'K' => {
                    extension.link = Some(until_nul(&self.extension(&header)?).to_vec());
                    extended = true;
                    continue;
                }
                // For all members that follow: git and others put their
                // commit's name there.
                b'g' => {
                    let mut global = Extension::default();
                    global.read(&self.extension(&header)?)?;
                    if global.says_something() {
                        return Err(TarError::Unknown("a global header".into()));
                    }
                    continue;
                }
                other => {
                    let kind = char::from(other).escape_default();
                    return Err(TarError::Unknown(format!("the type '{kind}'")));
                }
            };
            return self.member(&header, kind, extension, room).map(Some);
        }
    }

    fn member(
        &mut self,
        header: &Header,
        kind: Kind,
        extension: Extension,
        room: u64,
    ) -> Result<Member, TarError> {
        let size = match extension.size {
            Some(size) => size,
            None => header.number(124, 12, "size")?,
        };
        // Only a file has data; some writers put a hard link's size there.
        let data = match kind {
            Kind::File if size > room => {
                return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
            }
            Kind::File => self.data(size)?,
            Kind::HardLink => Vec::new(),
            _ if size == 0 => Vec::new(),
            _ => return Err(TarError::Odd("size")),
        };
        // What a file with a slash at its end is, in archives older than the
        // type for directories.
        let path = extension.path.unwrap_or_else(|| header.path());
        let kind = if kind == Kind::File && path.ends_with(b"/") {
            Kind::Directory
        } else {
            kind
        };
        let mode = header.number(100, 8, "mode")?;
        let owner =
            |said: Option<u64>, at, what| said.map_or_else(|| header.number(at, 8, what), Ok);
        Ok(Member {
            path,
            kind,
            permissions: (mode & 0o7777) as u32,
            user: owner(extension.user, 108, "user")?,
            group: owner(extension.group, 116, "group")?,
            link: extension
                .link
                .unwrap_or_else(|| until_nul(&header.0[157..257]).to_vec()),
            data,
            attributes: extension.attributes,
        })
    }

    /// None at the end: a block of zeros, or nothing more.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = Vec::with_capacity(BLOCK);
        self.from
            .by_ref()
            .take(BLOCK as u64)
            .read_to_end(&mut block)?;
        if block.is_empty() || block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = Header(
            block
                .try_into()
                .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?,
        );
        // The sum of all bytes, with the field itself as spaces.
        let sum: u64 = (header.0.iter().enumerate())
            .map(|(at, &byte)| u64::from(if (148..156).contains(&at) { b' ' } else { byte }))
            .sum();
        match header.number(148, 8, "checksum") {
            Ok(said) if said == sum => Ok(Some(header)),
            _ => Err(TarError::Checksum),
        }
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.number(124, 12, "size")?;
        if size > MAX_EXTENSION {
            return Err(TarError::Odd("size"));
        }
        self.data(size)
    }

    /// Data, and what fills its last block. Nothing is set aside for what is
    /// only promised.
    fn data(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut data = Vec::new();
        self.from.by_ref().take(size).read_to_end(&mut data)?;
        let filling = (data.len() as u64).next_multiple_of(BLOCK as u64) - data.len() as u64;
        let filled = io::copy(&mut self.from.by_ref().take(filling), &mut io::sink())?;
        if (data.len() as u64, filled) == (size, filling) {
            Ok(data)
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }

    /// What follows the archive's end; a digest is over that, too.
    pub(super) fn drain(mut self) -> Result<R, TarError> {
        io::copy(&mut self.from, &mut io::sink())?;
        Ok(self.from)
    }
}

impl Extension {
    /// Records of "LENGTH KEY=VALUE\n", the length being that of the whole.
    fn read(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        while !records.is_empty() {
            let record = (|| {
                let space = records.iter().position(|&byte| byte == b' ')?;
                let length = usize::try_from(decimal(&records[..space])?).ok()?;
                let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
                let equals = record.iter().position(|&byte| byte == b'=')?;
                records = &records[length..];
                Some((&record[..equals], &record[equals + 1..]))
            })();
            let (key, value) = record.ok_or(TarError::Odd("extension"))?;
            let number = || decimal(value).map(Some).ok_or(TarError::Odd("extension"));
            let attribute = ATTRIBUTE.iter().find_map(|start| key.strip_prefix(*start));
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = number()?,
                b"uid" => self.user = number()?,
                b"gid" => self.group = number()?,
                _ if attribute.is_some() => self.attributes.extend(attribute.map(<[u8]>::to_vec)),
                _ if IGNORED_RECORDS.contains(&key) => {}
                _ => {
                    let key = key.escape_ascii();
                    return Err(TarError::Unknown(format!("the record {key}")));
                }
            }
        }
        Ok(())
    }

    fn says_something(&self) -> bool {
        let numbers = [self.size, self.user, self.group];
        self.path.is_some()
            || self.link.is_some()
            || !self.attributes.is_empty()
            || numbers.iter().any(Option::is_some)
    }
}

struct Header([u8; BLOCK]);

impl Header {
    /// Octal digits; or, with the first bit set, a number of 8 bytes at the end
    /// of the field (GNU).
    fn number(&self, at: usize, length: usize, what: &'static str) -> Result<u64, TarError> {
        let field = &self.0[at..at + length];
        let odd = || TarError::Odd(what);
        if field[0] & 0x80 != 0 {
            let (high, low) = field.split_at(length.saturating_sub(8));
            let low = if high.is_empty() { &low[1..] } else { low };
            let filled = high.first().is_none_or(|&first| first == 0x80)
                && high.iter().skip(1).all(|&byte| byte == 0)
                && (!high.is_empty() || field[0] == 0x80);
            let number = low.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
            return filled.then_some(number).ok_or_else(odd);
        }
        let digits = until_nul(field).trim_ascii();
        let digit = |sum: Option<u64>, byte: &u8| match byte {
            b'0'..=b'7' => sum?.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
            _ => None,
        };
        digits.iter().fold(Some(0), digit).ok_or_else(odd)
    }

    /// With the prefix that POSIX has and GNU has not.
    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
