//! The 16-byte names of a quiesce and of a copy's life.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ClientError;

/// Why a text is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 32 lower-case hexadecimal digits")]
pub struct IdError;

/// Draws from getrandom(2).
pub(crate) fn random<const N: usize>() -> Result<[u8; N], ClientError> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ClientError::Random(error.into())),
        }
    }
    Ok(bytes)
}

fn parse(text: &str) -> Result<[u8; 16], IdError> {
    let digits: Vec<u8> = text
        .bytes()
        .map(|digit| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(IdError),
        })
        .collect::<Result<_, _>>()?;
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
        .collect();
    if digits.len() == 32 {
        bytes.try_into().map_err(|_| IdError)
    } else {
        Err(IdError)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            /// The bytes as they go over the wire.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl From<[u8; 16]> for $name {
            fn from(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

id! {
    /// Names one freeze; the thaw of every copy names it. Text form: 32
    /// lower-case hexadecimal digits.
    QuiesceId
}

id! {
    /// Names the life of one copy; never a time. Text form: 32 lower-case
    /// hexadecimal digits.
    Generation
}

impl Generation {
    /// A new one.
    ///
    /// # Errors
    /// What getrandom(2) says.
    pub fn random() -> Result<Self, ClientError> {
        random().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::{Generation, QuiesceId};

    #[test]
    fn an_id_reads_back_as_written_and_nothing_else_is_one() {
        let id = Generation::random().unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        let good = "00112233445566778899aabbccddeeff";
        assert_eq!(good.parse::<QuiesceId>().unwrap().as_bytes()[1], 0x11);
        for bad in [
            "",
            &good[1..],
            &format!("{good}0"),
            &good.to_uppercase(),
            &good.replace('0', "g"),
        ] {
            assert!(bad.parse::<QuiesceId>().is_err(), "{bad}");
        }
    }
}
