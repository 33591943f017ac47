//! The signed identity of an SEV-SNP guest: what must have been measured, and
//! the security version number that reports will show (SEV Secure Nested Paging
//! Firmware ABI Specification, "Guest Identity Information").

use super::measure::LaunchDigest;
use igvm::IgvmDirectiveHeader;
use igvm_defs::{IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY, IGVM_VHS_SNP_ID_BLOCK_SIGNATURE};
use p384::SecretKey;
use p384::ecdsa::signature::Signer;
use p384::ecdsa::{Signature, SigningKey};

/// ECDSA on P-384 with SHA-384, the only one there is.
const ALGORITHM: u32 = 1;
/// The number of P-384.
const CURVE: u32 = 2;
/// The version of the block.
const VERSION: u32 = 1;
/// The size of a number of the curve, and of the field that has it.
const NUMBER: usize = 48;
const FIELD: usize = 72;
/// The size of a key as the firmware takes its digest.
const KEY: usize = 0x404;

/// A file that has no key for an identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a private key on the curve P-384 in pem, as openssl ecparam or genpkey writes one")]
pub struct KeyError;

/// What signs identities. A signature is a function of key and block: the same
/// inputs give the same file.
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// Reads a key, in SEC1 or PKCS#8.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_pem(bytes: &[u8]) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(bytes).map_err(|_| KeyError)?;
        // Before the key openssl ecparam writes the curve's parameters.
        let start = text.find("-----BEGIN EC PRIVATE KEY").unwrap_or(0);
        let key = SecretKey::from_sec1_pem(&text[start..])
            .ok()
            .or_else(|| text.parse().ok());
        key.map(|key| Self(SigningKey::from(key))).ok_or(KeyError)
    }

    /// The identity of a guest with that measurement.
    pub(crate) fn sign(
        &self,
        measurement: LaunchDigest,
        svn: u32,
        policy: u64,
        compatibility_mask: u32,
    ) -> IgvmDirectiveHeader {
        let signature: Signature = self.0.sign(&block(measurement, svn, policy));
        let mut numbers = IGVM_VHS_SNP_ID_BLOCK_SIGNATURE {
            r_comp: [0; FIELD],
            s_comp: [0; FIELD],
        };
        let (r, s) = signature.split_bytes();
        put_reversed(&mut numbers.r_comp, &r);
        put_reversed(&mut numbers.s_comp, &s);
        let none = IGVM_VHS_SNP_ID_BLOCK_SIGNATURE {
            r_comp: [0; FIELD],
            s_comp: [0; FIELD],
        };
        IgvmDirectiveHeader::SnpIdBlock {
            compatibility_mask,
            author_key_enabled: 0,
            reserved: [0; 3],
            ld: *measurement.as_bytes(),
            family_id: [0; 16],
            image_id: [0; 16],
            version: VERSION,
            guest_svn: svn,
            id_key_algorithm: ALGORITHM,
            author_key_algorithm: 0,
            id_key_signature: Box::new(numbers),
            id_public_key: Box::new(self.public()),
            author_key_signature: Box::new(none),
            author_public_key: Box::new(IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY {
                curve: 0,
                reserved: 0,
                qx: [0; FIELD],
                qy: [0; FIELD],
            }),
        }
    }

    /// The public half.
    pub(crate) fn public(&self) -> IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY {
        let point = self.0.verifying_key().to_sec1_point(false);
        // A byte that says that both coordinates follow, then these.
        let (x, y) = point.as_bytes()[1..].split_at(NUMBER);
        let mut key = IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY {
            curve: CURVE,
            reserved: 0,
            qx: [0; FIELD],
            qy: [0; FIELD],
        };
        put_reversed(&mut key.qx, x);
        put_reversed(&mut key.qy, y);
        key
    }
}

/// What is signed: the ABI's `ID_BLOCK`, family and image of which are zero.
fn block(measurement: LaunchDigest, svn: u32, policy: u64) -> Vec<u8> {
    let mut block = measurement.as_bytes().to_vec();
    block.extend([0; 32]);
    block.extend(VERSION.to_le_bytes());
    block.extend(svn.to_le_bytes());
    block.extend(policy.to_le_bytes());
    block
}

/// The digest that reports show of a key. The firmware has no reserved field
/// behind the curve, and more room behind the coordinates than a file.
pub(crate) fn key_digest(key: &IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY) -> LaunchDigest {
    let mut bytes = key.curve.to_le_bytes().to_vec();
    bytes.extend(key.qx);
    bytes.extend(key.qy);
    bytes.resize(KEY, 0);
    LaunchDigest::of(&bytes)
}

/// The firmware's numbers begin with the lowest byte.
fn put_reversed(field: &mut [u8; FIELD], number: &[u8]) {
    for (to, from) in field.iter_mut().zip(number.iter().rev()) {
        *to = *from;
    }
}
