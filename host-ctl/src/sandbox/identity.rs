//! Who a sandbox is: names and numbers that no two sandboxes share, all drawn
//! from getrandom(2) at the moment they are needed.

use crate::config::{SandboxId, random_bytes};
use agent_client::Identity;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The UUID of a VM, random (RFC 9562, version 4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Uuid([u8; 16]);

/// Text that is not a [`Uuid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a uuid in its 8-4-4-4-12 form")]
pub struct NotAUuid;

impl Uuid {
    /// The UUID of nobody (RFC 9562, section 5.9).
    pub const NIL: Uuid = Uuid([0; 16]);

    /// A UUID nobody had before.
    ///
    /// # Errors
    /// When getrandom(2) fails.
    pub fn draw() -> Result<Self, Errno> {
        random_bytes().map(Self::from_random)
    }

    /// Marks random bytes as version 4 of variant 1 (RFC 9562, section 5.4).
    fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

/// A new identity, named after the sandbox.
///
/// # Errors
/// When getrandom(2) fails.
pub fn draw_identity(sandbox: &SandboxId) -> Result<Identity, Errno> {
    Ok(Identity {
        // Random itself, a valid name (hostname(7)), and the one by which
        // people find the sandbox again.
        hostname: sandbox.vm_name(),
        // machine-id(5) wants a version 4 UUID without its dashes.
        machine_id: Uuid::draw()?.to_string().replace('-', ""),
        boot_id: Uuid::draw()?.to_string(),
    })
}

impl fmt::Display for Uuid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                out.write_str("-")?;
            }
            write!(out, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Uuid({self})")
    }
}

impl FromStr for Uuid {
    type Err = NotAUuid;

    fn from_str(text: &str) -> Result<Self, NotAUuid> {
        let is_dash = |place| matches!(place, 8 | 13 | 18 | 23);
        let fits = text.len() == 36
            && text.bytes().enumerate().all(|(place, byte)| match byte {
                b'-' => is_dash(place),
                b'0'..=b'9' | b'a'..=b'f' => !is_dash(place),
                _ => false,
            });
        if !fits {
            return Err(NotAUuid);
        }
        u128::from_str_radix(&text.replace('-', ""), 16)
            .map(|number| Self(number.to_be_bytes()))
            .map_err(|_| NotAUuid)
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> String {
        uuid.to_string()
    }
}

impl TryFrom<String> for Uuid {
    type Error = NotAUuid;

    fn try_from(text: String) -> Result<Self, NotAUuid> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_uuid_survives_its_text(bytes: [u8; 16]) {
            let uuid = Uuid::from_random(bytes);
            let text = uuid.to_string();
            prop_assert_eq!(text.parse(), Ok(uuid));
            prop_assert_eq!(text.as_bytes()[14], b'4');
            prop_assert!(b"89ab".contains(&text.as_bytes()[19]));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<Uuid>();
        }
    }

    #[test]
    fn two_draws_share_nothing() {
        let one = draw_identity(&SandboxId::random().unwrap()).unwrap();
        let two = draw_identity(&SandboxId::random().unwrap()).unwrap();
        assert_ne!(one.machine_id, two.machine_id);
        assert_ne!(one.boot_id, two.boot_id);
        assert_ne!(one.hostname, two.hostname);
        assert_ne!(Uuid::draw().unwrap(), Uuid::draw().unwrap());
    }
}
