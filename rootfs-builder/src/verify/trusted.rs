//! What is known of a disk's hash tree from where it can be trusted: the words
//! that the kernel is told.

use crate::digest::{Digest, DigestError};
use crate::disk::gpt::SECTOR;
use crate::verity::{BLOCK, HASH_START};
use std::str::FromStr;

/// The highest number of a partition: a table has no more entries.
const MAX_PARTITION: usize = 128;

/// Root hash and geometry. A root hash by itself is not enough: the digests of
/// a tree's top block stand for data only together with the count of blocks
/// below them. With another count the same root hash is that of less data, or
/// of the top block itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// Of the top block.
    pub root_hash: Digest,
    /// What each digest starts with. None if it is not known: a root hash has
    /// one salt only, since its length is fixed here.
    pub salt: Option<Digest>,
    /// What is covered, in blocks of 4096 bytes.
    pub data_blocks: u64,
    /// The number of the data's partition, counted from one.
    pub data: usize,
    /// That of the tree's.
    pub hashes: usize,
}

impl Trusted {
    /// A disk as this builder lays it out, of which only that is known.
    #[must_use]
    pub fn of(root_hash: Digest, data_blocks: u64) -> Self {
        Self {
            root_hash,
            salt: None,
            data_blocks,
            data: 1,
            hashes: 2,
        }
    }
}

/// Words that are no table of a disk that can be verified.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// Too few or too many.
    #[error(
        "not START LENGTH verity 1 DATA HASHES 4096 4096 BLOCKS 1 sha256 ROOTHASH SALT, \
         and no options after that"
    )]
    Shape,
    /// A word that has another value, or none that makes sense.
    #[error("the table's {0} is not one that this program makes")]
    Value(&'static str),
    /// Root hash or salt.
    #[error("the table's {0}")]
    Digest(&'static str, #[source] DigestError),
}

impl FromStr for Trusted {
    type Err = WordsError;

    /// A table as `dmsetup table` prints it, or a kernel command line with
    /// `dm-mod.create="NAME,UUID,MINOR,FLAGS,TABLE"`.
    fn from_str(text: &str) -> Result<Self, WordsError> {
        let table = match text.split_once("dm-mod.create=\"") {
            Some((_, rest)) => {
                let (devices, _) = rest.split_once('"').ok_or(WordsError::Shape)?;
                devices.splitn(5, ',').nth(4).ok_or(WordsError::Shape)?
            }
            None => text,
        };
        let words: Vec<&str> = table.split_ascii_whitespace().collect();
        let [
            start,
            length,
            target,
            version,
            data,
            hashes,
            data_size,
            hash_size,
            blocks,
            hash_start,
            algorithm,
            root_hash,
            salt,
        ] = words[..]
        else {
            return Err(WordsError::Shape);
        };
        let expect = |what, right| {
            if right {
                Ok(())
            } else {
                Err(WordsError::Value(what))
            }
        };
        let block = BLOCK.to_string();
        expect("start", start == "0")?;
        expect("target", target == "verity")?;
        expect("version", version == "1")?;
        expect("block size", data_size == block && hash_size == block)?;
        expect("start of the tree", hash_start == HASH_START.to_string())?;
        expect("algorithm", algorithm == "sha256")?;
        let data_blocks: u64 = number(blocks).ok_or(WordsError::Value("count of blocks"))?;
        let sectors = data_blocks.checked_mul(BLOCK as u64 / SECTOR);
        expect("length", sectors.is_some() && sectors == number(length))?;
        let (data, hashes) = partition(data)
            .zip(partition(hashes))
            .filter(|(data, hashes)| data.0 == hashes.0 && data.1 != hashes.1)
            .ok_or(WordsError::Value("pair of partitions"))?;
        let digest = |what, text: &str| {
            let parsed = text.parse();
            parsed.map_err(|source| WordsError::Digest(what, source))
        };
        Ok(Self {
            root_hash: digest("root hash", root_hash)?,
            salt: Some(digest("salt", salt)?),
            data_blocks,
            data: data.1,
            hashes: hashes.1,
        })
    }
}

/// One way of writing it only.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// The disk and the partition's number, as the kernel names them.
fn partition(device: &str) -> Option<(&str, usize)> {
    let disk = device.trim_end_matches(|last: char| last.is_ascii_digit());
    let number = usize::try_from(number(&device[disk.len()..])?).ok()?;
    ((1..=MAX_PARTITION).contains(&number) && !disk.is_empty()).then_some((disk, number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> String {
        let (root, salt) = (Digest::of(b"root"), Digest::of(b"salt"));
        format!("0 12288 verity 1 /dev/vda1 /dev/vda2 4096 4096 1536 1 sha256 {root} {salt}")
    }

    #[test]
    fn a_table_is_read_by_itself_and_from_a_command_line() {
        let expected = Trusted {
            salt: Some(Digest::of(b"salt")),
            ..Trusted::of(Digest::of(b"root"), 1536)
        };
        assert_eq!(table().parse(), Ok(expected.clone()));
        let line = format!(
            "console=ttyS0 dm-mod.create=\"root,,,ro,{}\" root=/dev/dm-0 ro",
            table()
        );
        assert_eq!(line.parse(), Ok(expected));
        let pmem = table().replace("/dev/vda", "/dev/pmem0p");
        assert_eq!(pmem.parse::<Trusted>().map(|table| table.hashes), Ok(2));
    }

    #[test]
    fn a_table_of_another_kind_is_refused() {
        for (word, other) in [
            ("0 12288", "8 12288"),
            ("12288", "12296"),
            ("12288", "012288"),
            ("verity", "linear"),
            (" 1 /dev/vda1", " 0 /dev/vda1"),
            ("/dev/vda2", "/dev/vdb2"),
            ("/dev/vda2", "/dev/vda1"),
            ("/dev/vda1", "/dev/vda"),
            ("/dev/vda1", "/dev/vda0"),
            ("/dev/vda1", "/dev/vda129"),
            (" 4096 4096", " 512 4096"),
            (" 1 sha256", " 2 sha256"),
            ("sha256", "sha1"),
        ] {
            let text = table().replacen(word, other, 1);
            assert!(text.parse::<Trusted>().is_err(), "{text}");
        }
        // With it, damage is read as if it were none.
        let text = table() + " 1 ignore_corruption";
        assert_eq!(text.parse::<Trusted>(), Err(WordsError::Shape));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text: String) {
            let _ = text.parse::<Trusted>();
            let _ = format!("dm-mod.create=\"{text}").parse::<Trusted>();
        }
    }
}
