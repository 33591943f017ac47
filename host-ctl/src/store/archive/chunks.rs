//! The chunks of an archive: what goes through a [`Writer`] comes out of a
//! [`Reader`], which passes on no byte of a chunk before it has verified it.
//!
//! Each chunk is verified with its number and whether it is the last one (the
//! STREAM construction): the nonce of a chunk is its number, eight bytes with the
//! highest first, and a byte that is 1 for the last, after three that are 0. No
//! key has two archives, so no nonce comes twice.

use std::io::{self, Read, Write};

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _, Nonce, Tag};
use hmac::Mac as _;

use super::key::{ArchiveKey, Kind, keyed};
use super::{ArchiveError, MAGIC, Protection, SALT};
use crate::config::random_bytes;

/// Bytes of a chunk that is not the last.
const CHUNK: usize = 64 << 10;
/// Bytes of the longest tag.
const LONGEST_TAG: usize = 32;

/// How chunks are told to be whole.
enum Seal {
    Encrypted(Box<ChaCha20Poly1305>),
    Signed([u8; 32]),
    Plain,
    /// Signed by whom is not asked.
    Unasked,
}

impl Seal {
    fn of(kind: Kind, key: Option<&ArchiveKey>, salt: &[u8; SALT]) -> Self {
        let key = key.map(|key| key.derive(kind, salt));
        match (kind, key) {
            (Kind::Encrypted, Some(key)) => {
                Self::Encrypted(Box::new(ChaCha20Poly1305::new(&key.into())))
            }
            (Kind::Signed, Some(key)) => Self::Signed(key),
            (Kind::Signed, None) => Self::Unasked,
            (Kind::Plain | Kind::Encrypted, _) => Self::Plain,
        }
    }

    fn tag_length(&self) -> usize {
        match self {
            Self::Encrypted(_) => 16,
            Self::Signed(_) | Self::Unasked => 32,
            Self::Plain => 0,
        }
    }

    /// Encrypts where that is wanted; the tag.
    fn close(&self, number: u64, last: bool, chunk: &mut [u8]) -> io::Result<Vec<u8>> {
        let nonce = nonce(number, last);
        match self {
            Self::Encrypted(cipher) => cipher
                .encrypt_inout_detached(&nonce, &[], chunk.into())
                .map(|tag| tag.to_vec())
                .map_err(|_| io::ErrorKind::InvalidInput.into()),
            Self::Signed(key) => Ok(sign(key, &nonce, chunk).finalize().into_bytes().to_vec()),
            Self::Plain | Self::Unasked => Ok(Vec::new()),
        }
    }

    /// Verifies, and decrypts where that is wanted.
    fn open(&self, number: u64, last: bool, chunk: &mut [u8], tag: &[u8]) -> bool {
        let nonce = nonce(number, last);
        match self {
            Self::Encrypted(cipher) => Tag::try_from(tag).is_ok_and(|tag| {
                cipher
                    .decrypt_inout_detached(&nonce, &[], chunk.into(), &tag)
                    .is_ok()
            }),
            // In constant time.
            Self::Signed(key) => sign(key, &nonce, chunk).verify_slice(tag).is_ok(),
            Self::Plain | Self::Unasked => true,
        }
    }
}

fn sign(key: &[u8; 32], nonce: &Nonce, chunk: &[u8]) -> hmac::Hmac<sha2::Sha256> {
    let mut mac = keyed(key);
    mac.update(nonce);
    mac.update(chunk);
    mac
}

fn nonce(number: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = last.into();
    nonce.into()
}

/// Writes an archive.
pub(super) struct Writer<W> {
    out: W,
    seal: Seal,
    chunk: Vec<u8>,
    number: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn begin(mut out: W, protection: &Protection) -> Result<Self, ArchiveError> {
        let (kind, key) = match protection {
            Protection::Encrypted(key) => (Kind::Encrypted, Some(key)),
            Protection::Signed(key) => (Kind::Signed, Some(key)),
            Protection::Plain => (Kind::Plain, None),
        };
        let salt = random_bytes::<SALT>().map_err(super::StoreError::from)?;
        let mut written = out.write_all(MAGIC);
        written = written.and_then(|()| out.write_all(&[kind.letter()]));
        written = written.and_then(|()| out.write_all(&salt));
        written.map_err(|error| ArchiveError::Stream("write", error))?;
        Ok(Self {
            out,
            seal: Seal::of(kind, key, &salt),
            chunk: Vec::with_capacity(CHUNK),
            number: 0,
        })
    }

    fn put(&mut self, last: bool) -> io::Result<()> {
        let tag = self.seal.close(self.number, last, &mut self.chunk)?;
        self.out.write_all(&self.chunk)?;
        self.out.write_all(&tag)?;
        self.chunk.clear();
        self.number += 1;
        Ok(())
    }

    /// The last chunk.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.put(true)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Only now is it certain that there is another.
        if self.chunk.len() == CHUNK && !bytes.is_empty() {
            self.put(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads an archive. A chunk that is not whole is [`io::ErrorKind::InvalidData`]
/// ([`is_forged`]).
pub(super) struct Reader<R> {
    input: R,
    seal: Seal,
    /// What was read and not verified yet: a chunk, its tag, and a byte of the
    /// next one, if there is one.
    ahead: Vec<u8>,
    chunk: Vec<u8>,
    taken: usize,
    number: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads how it begins: its kind, and whether this key is its key, is known
    /// then.
    pub(super) fn begin(
        mut input: R,
        key: Option<&ArchiveKey>,
    ) -> Result<(Kind, Self), ArchiveError> {
        let mut beginning = [0; MAGIC.len() + 1 + SALT];
        input.read_exact(&mut beginning).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                ArchiveError::Unknown
            } else {
                ArchiveError::Stream("read", error)
            }
        })?;
        let (magic, rest) = beginning.split_at(MAGIC.len());
        let kind = Kind::of_letter(rest[0]).filter(|_| magic == MAGIC);
        let kind = kind.ok_or(ArchiveError::Unknown)?;
        let mut salt = [0; SALT];
        salt.copy_from_slice(&rest[1..]);
        let reader = Self {
            input,
            seal: Seal::of(kind, key, &salt),
            ahead: Vec::with_capacity(CHUNK + LONGEST_TAG + 1),
            chunk: Vec::new(),
            taken: 0,
            number: 0,
            ended: false,
        };
        Ok((kind, reader))
    }

    fn next(&mut self) -> io::Result<()> {
        let whole = CHUNK + self.seal.tag_length();
        let wanted = u64::try_from(whole + 1 - self.ahead.len()).unwrap_or(0);
        self.input
            .by_ref()
            .take(wanted)
            .read_to_end(&mut self.ahead)?;
        let last = self.ahead.len() <= whole;
        let rest = self.ahead.split_off(self.ahead.len().min(whole));
        let chunk = std::mem::replace(&mut self.ahead, rest);
        self.chunk = chunk;
        self.taken = 0;
        self.ended = last;
        let length = self.chunk.len().checked_sub(self.seal.tag_length());
        let tag = self.chunk.split_off(length.ok_or_else(forged)?);
        if !self.seal.open(self.number, last, &mut self.chunk, &tag) {
            self.chunk.clear();
            return Err(forged());
        }
        self.number += 1;
        Ok(())
    }

    /// Whether all of it was read.
    pub(super) fn is_at_end(&mut self) -> io::Result<bool> {
        while self.taken == self.chunk.len() && !self.ended {
            self.next()?;
        }
        Ok(self.taken == self.chunk.len())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_at_end()? {
            return Ok(0);
        }
        let left = &self.chunk[self.taken..];
        let given = left.len().min(buffer.len());
        buffer[..given].copy_from_slice(&left[..given]);
        self.taken += given;
        Ok(given)
    }
}

fn forged() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Whether an error of a [`Reader`] says that a chunk is not whole.
pub(super) fn is_forged(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}
