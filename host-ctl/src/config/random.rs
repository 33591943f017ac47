//! Random names and keys, drawn from the kernel at the moment of use. Nothing
//! is drawn ahead, so that nothing drawn can be copied by a clone of this host.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// `N` fresh bytes from getrandom(2).
///
/// # Errors
/// When the kernel refuses, which getrandom(2) knows only for bad arguments.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], Errno> {
    let mut bytes = [0u8; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            // A signal can cut a call short before the pool is initialised.
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// Exactly `N` bytes from lower-case hexadecimal digits.
#[must_use]
pub fn hexadecimal_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0u8; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_print_as_two_digits_each() {
        assert_eq!(hexadecimal(&[0x00, 0x0f, 0xa5]), "000fa5");
        assert_eq!(hexadecimal_bytes("000fa5"), Some([0x00, 0x0f, 0xa5]));
        for wrong in ["", "000fa", "000fa5a", "000FA5", "+00fa5"] {
            assert_eq!(hexadecimal_bytes::<3>(wrong), None);
        }
    }

    #[test]
    fn two_draws_differ() {
        assert_ne!(random_bytes::<16>().unwrap(), random_bytes::<16>().unwrap());
    }
}
