//! UUIDs that are made of content, so that they are the same in every build.

use crate::digest::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A UUID; shown in groups of hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Uuid(u128);

impl Uuid {
    /// Of that number.
    #[must_use]
    pub const fn new(number: u128) -> Self {
        Self(number)
    }

    /// Of version 8 (RFC 9562, section 5.8: the bits are ours), from the start
    /// of a digest.
    #[must_use]
    pub fn of(digest: &Digest) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.as_bytes()[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(u128::from_be_bytes(bytes))
    }

    /// The bytes in the order in which they are shown.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The bytes as a GPT has them: the first three groups little-endian (UEFI
    /// specification, appendix A).
    #[must_use]
    pub fn to_gpt(self) -> [u8; 16] {
        let mut bytes = self.to_bytes();
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }

    /// The reverse of [`Uuid::to_gpt`].
    #[must_use]
    pub fn from_gpt(bytes: [u8; 16]) -> Self {
        // The same swaps undo themselves.
        Self(u128::from_be_bytes(
            Self(u128::from_be_bytes(bytes)).to_gpt(),
        ))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        let (a, b, c, d, e) = (
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        );
        write!(to, "{a}-{b}-{c}-{d}-{e}")
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, to)
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let number = u128::from_str_radix(&text.replace('-', ""), 16);
        number
            .map(Self)
            .ok()
            // One way of writing it only.
            .filter(|uuid| uuid.to_string() == text)
            .ok_or_else(|| serde::de::Error::custom("not a UUID"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_made_of_the_digest_and_well_formed() {
        let uuid = Uuid::of(&Digest::of(b""));
        assert_eq!(uuid.to_string(), "e3b0c442-98fc-8c14-9afb-f4c8996fb924");
    }

    #[test]
    fn a_gpt_has_the_first_three_groups_the_other_way_round() {
        let uuid = Uuid::new(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        let bytes = uuid.to_gpt();
        assert_eq!(bytes[..8], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(Uuid::from_gpt(bytes), uuid);
    }

    #[test]
    fn a_uuid_is_read_as_it_is_shown() {
        let uuid = Uuid::of(&Digest::of(b"x"));
        let text = serde_json::to_string(&uuid).unwrap();
        assert_eq!(serde_json::from_str::<Uuid>(&text).unwrap(), uuid);
        assert!(serde_json::from_str::<Uuid>("\"12\"").is_err());
    }
}
