//! Addresses as text and as bytes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// `MAX_ADDR_LEN`, linux/netdevice.h: the longest hardware address, in bytes.
const HARDWARE_LENGTH_MAX: usize = 32;

/// Text that is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not hexadecimal bytes with colons between them.
    #[error("not a hardware address")]
    Hardware,
    /// Not an address, or not one and a length.
    #[error("not an IP address with a prefix length")]
    Prefix,
    /// More bits than the address has.
    #[error("a prefix length of more than {0} bits")]
    Length(u8),
}

/// A link's hardware address, a MAC for Ethernet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HardwareAddress(Vec<u8>);

impl HardwareAddress {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for HardwareAddress {
    type Err = InvalidAddress;

    /// Hexadecimal bytes, two digits each, with colons between them.
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let is_byte =
            |part: &&str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        let bytes = text
            .split(':')
            .map(|part| {
                Some(part)
                    .filter(is_byte)
                    .and_then(|part| u8::from_str_radix(part, 16).ok())
            })
            .collect::<Option<Vec<u8>>>();
        bytes
            .filter(|bytes| bytes.len() <= HARDWARE_LENGTH_MAX)
            .map(Self)
            .ok_or(InvalidAddress::Hardware)
    }
}

impl fmt::Display for HardwareAddress {
    /// In lower case.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(out, "{separator}{byte:02x}")?;
        }
        Ok(())
    }
}

/// An address and how many of its first bits are the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpPrefix {
    address: IpAddr,
    length: u8,
}

impl IpPrefix {
    /// Puts both together.
    ///
    /// # Errors
    /// [`InvalidAddress::Length`] if the address has fewer bits.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, InvalidAddress> {
        let bits = bits_of(address);
        if length > bits {
            return Err(InvalidAddress::Length(bits));
        }
        Ok(Self { address, length })
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The length, in bits.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }
}

impl FromStr for IpPrefix {
    type Err = InvalidAddress;

    /// `ADDRESS/LENGTH`, or an address alone, which is a whole one.
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| InvalidAddress::Prefix)?;
        let length = match length {
            Some(length) => length.parse().map_err(|_| InvalidAddress::Prefix)?,
            None => bits_of(address),
        };
        Self::new(address, length)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.length)
    }
}

pub(super) fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_that_is_no_address_is_refused() {
        for text in ["", "1", "1:2", "+1:02", "02:00:00:00:00:0g", "02:00:", "é0"] {
            assert!(text.parse::<HardwareAddress>().is_err(), "{text:?}");
        }
        for text in [
            "",
            "1.2.3",
            "1.2.3.4/",
            "1.2.3.4/33",
            "::/129",
            "1.2.3.4/-1",
        ] {
            assert!(text.parse::<IpPrefix>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_hardware_address_survives_its_text(bytes in prop::collection::vec(any::<u8>(), 1..=32)) {
            let address = HardwareAddress(bytes);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn a_prefix_survives_its_text(address: IpAddr, length in 0_u8..=128) {
            if let Ok(prefix) = IpPrefix::new(address, length) {
                prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
            }
        }
    }
}
