//! Addresses of sandboxes: pure, no socket is opened here.

use crate::config::random_bytes;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The prefix of a point-to-point link (RFC 3021).
pub const PAIR_LENGTH: u8 = 31;

/// A block of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    first: u32,
    length: u8,
}

/// The two ends of a sandbox's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressPair {
    /// The host's.
    pub host: Ipv4Addr,
    /// The guest's.
    pub guest: Ipv4Addr,
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HardwareAddress([u8; 6]);

/// Text that is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnAddress {
    /// Not a [`Block`].
    #[error("expected an IPv4 block such as 100.64.0.0/10, at most /30, and its first address")]
    Block,
    /// Not a [`HardwareAddress`].
    #[error("expected six bytes in hexadecimal with colons")]
    Hardware,
}

impl Block {
    /// Where sandboxes get their addresses unless told otherwise: the space
    /// for links between a provider and its subscribers, which neither the
    /// internet nor a local network uses (RFC 6598).
    pub const SHARED: Block = Block {
        first: 0x6440_0000,
        length: 10,
    };

    /// The addresses that share `length` bits with this one.
    #[must_use]
    pub fn around(address: Ipv4Addr, length: u8) -> Block {
        let length = length.min(32);
        Block {
            first: address.to_bits() & mask(length),
            length,
        }
    }

    /// Whether they have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Block) -> bool {
        let mask = mask(self.length.min(other.length));
        self.first & mask == other.first & mask
    }

    /// Whether it is every address there is: a default route takes nothing.
    #[must_use]
    pub fn is_everything(self) -> bool {
        self.length == 0
    }

    /// One of its pairs, by any number; equal numbers give equal pairs.
    #[must_use]
    pub fn pair(self, number: u32) -> AddressPair {
        let offset = number & !mask(self.length) & !1;
        AddressPair {
            host: Ipv4Addr::from_bits(self.first | offset),
            guest: Ipv4Addr::from_bits(self.first | offset | 1),
        }
    }
}

/// The first `length` bits.
fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl FromStr for Block {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let (address, length) = text.split_once('/').ok_or(NotAnAddress::Block)?;
        let address: Ipv4Addr = address.parse().map_err(|_| NotAnAddress::Block)?;
        let length: u8 = length.parse().map_err(|_| NotAnAddress::Block)?;
        let block = Block::around(address, length);
        // Of larger blocks and of host bits somebody made a mistake.
        if (8..PAIR_LENGTH).contains(&length) && block.first == address.to_bits() {
            Ok(block)
        } else {
            Err(NotAnAddress::Block)
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", Ipv4Addr::from_bits(self.first), self.length)
    }
}

impl AddressPair {
    /// Both addresses.
    #[must_use]
    pub fn block(self) -> Block {
        Block::around(self.host, PAIR_LENGTH)
    }
}

impl HardwareAddress {
    /// The one every template is frozen with: no clone keeps it.
    pub const TEMPLATE: HardwareAddress = HardwareAddress([2, 0, 0, 0, 0, 1]);

    /// A random one, of one station and locally administered (IEEE 802,
    /// section 8.4).
    ///
    /// # Errors
    /// When getrandom(2) fails.
    pub fn draw() -> Result<Self, Errno> {
        random_bytes().map(Self::from_random)
    }

    fn from_random(mut bytes: [u8; 6]) -> Self {
        bytes[0] = bytes[0] & !1 | 2;
        Self(bytes)
    }

    /// Of a link that has one of six bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes, as they are sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 6] {
        &self.0
    }
}

impl fmt::Display for HardwareAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for HardwareAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "HardwareAddress({self})")
    }
}

impl FromStr for HardwareAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let mut bytes = [0; 6];
        let mut octets = text.split(':');
        for byte in &mut bytes {
            let octet = octets.next().filter(|octet| octet.len() == 2);
            let value = octet.and_then(|octet| u8::from_str_radix(octet, 16).ok());
            *byte = value.ok_or(NotAnAddress::Hardware)?;
        }
        match octets.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(NotAnAddress::Hardware),
        }
    }
}

impl From<HardwareAddress> for String {
    fn from(address: HardwareAddress) -> String {
        address.to_string()
    }
}

impl TryFrom<String> for HardwareAddress {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blocks() -> impl Strategy<Value = Block> {
        (any::<u32>(), 8_u8..31)
            .prop_map(|(address, length)| Block::around(Ipv4Addr::from_bits(address), length))
    }

    proptest! {
        #[test]
        fn a_pair_lies_in_its_block_and_is_a_block_of_its_own(block in blocks(), number: u32) {
            let pair = block.pair(number);
            prop_assert!(block.overlaps(pair.block()));
            prop_assert_eq!(Block::around(pair.guest, PAIR_LENGTH), pair.block());
            prop_assert_ne!(pair.host, pair.guest);
            prop_assert!(Block::around(pair.guest, block.length) == block);
        }

        #[test]
        fn two_pairs_overlap_only_if_they_are_the_same(block in blocks(), one: u32, two: u32) {
            let (one, two) = (block.pair(one), block.pair(two));
            prop_assert_eq!(one.block().overlaps(two.block()), one == two);
        }

        #[test]
        fn overlapping_is_mutual(one in blocks(), two in blocks()) {
            prop_assert_eq!(one.overlaps(two), two.overlaps(one));
            prop_assert!(one.overlaps(one));
        }

        #[test]
        fn a_block_reads_back_as_written(block in blocks()) {
            prop_assert_eq!(block.to_string().parse(), Ok(block));
        }

        #[test]
        fn a_drawn_hardware_address_is_one_stations_and_nobodys_product(bytes: [u8; 6]) {
            let address = HardwareAddress::from_random(bytes);
            prop_assert_eq!(address.as_bytes()[0] & 3, 2);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,30}") {
            let _ = text.parse::<Block>();
            let _ = text.parse::<HardwareAddress>();
        }
    }

    #[test]
    fn the_shared_space_is_what_the_standard_says() {
        assert_eq!("100.64.0.0/10".parse(), Ok(Block::SHARED));
    }

    #[test]
    fn a_block_with_host_bits_or_without_room_is_refused() {
        for text in ["10.0.0.1/8", "10.0.0.0/31", "0.0.0.0/0", "10.0.0.0", "x/8"] {
            assert_eq!(text.parse::<Block>(), Err(NotAnAddress::Block), "{text}");
        }
    }
}
