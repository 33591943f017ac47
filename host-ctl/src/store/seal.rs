//! Seals manifests with a key that only this user can read, so that a template
//! whose bytes and digests were rewritten together is still found out.

use std::path::PathBuf;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};

use super::{CloneRefusal, Manifest, Sha256, Store, StoreError};
use crate::config::{hexadecimal, hexadecimal_bytes, random_bytes};
use crate::host::{Lock, RecordError, read_bounded, write_atomically};

/// One block of SHA-256, so that the key is used as it is (RFC 2104).
const KEY_BYTES: usize = 64;
/// How long another process may take to make the key.
const KEY_WAIT: Duration = Duration::from_secs(10);

/// A manifest as it lies on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sealed {
    /// HMAC-SHA-256 (RFC 2104) over the manifest's canonical JSON.
    seal: Sha256,
    manifest: Manifest,
}

impl Store {
    pub(super) fn seal(&self, manifest: Manifest) -> Result<Sealed, StoreError> {
        let seal = mac(&self.key()?, &manifest)?.finalize().into_bytes();
        Ok(Sealed {
            seal: Sha256::from_hash(&seal),
            manifest,
        })
    }

    pub(super) fn unseal(&self, sealed: Sealed) -> Result<Manifest, CloneRefusal> {
        let key = self.key().map_err(Box::new)?;
        let found = mac(&key, &sealed.manifest).map_err(Box::new)?;
        let found = Sha256::from_hash(&found.finalize().into_bytes());
        // Both are digests, and who could time this could read the key.
        if found == sealed.seal {
            Ok(sealed.manifest)
        } else {
            Err(CloneRefusal::Forged)
        }
    }

    fn key_path(&self) -> PathBuf {
        self.root().join("key")
    }

    /// The store's key, drawn when there is none yet.
    fn key(&self) -> Result<[u8; KEY_BYTES], StoreError> {
        if let Some(key) = self.read_key()? {
            return Ok(key);
        }
        let lock = self.locks().join("key.lock");
        let _lock = Lock::acquire(&lock, "make the store's key", KEY_WAIT)?;
        if let Some(key) = self.read_key()? {
            return Ok(key);
        }
        let key = random_bytes::<KEY_BYTES>()?;
        write_atomically(&self.key_path(), hexadecimal(&key).as_bytes(), 0o600)?;
        Ok(key)
    }

    fn read_key(&self) -> Result<Option<[u8; KEY_BYTES]>, StoreError> {
        let text = match read_bounded(&self.key_path()) {
            Ok(text) => text,
            Err(RecordError::Missing(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        parse_key(&text)
            .map(Some)
            .ok_or_else(|| StoreError::Key(self.key_path()))
    }
}

fn parse_key(text: &[u8]) -> Option<[u8; KEY_BYTES]> {
    hexadecimal_bytes(std::str::from_utf8(text).ok()?)
}

fn mac(key: &[u8; KEY_BYTES], manifest: &Manifest) -> Result<Hmac<sha2::Sha256>, StoreError> {
    let value = serde_json::to_value(manifest).map_err(StoreError::Serialize)?;
    let text = serde_json::to_vec(&value).map_err(StoreError::Serialize)?;
    let mut mac = Hmac::<sha2::Sha256>::new(key.into());
    mac.update(&text);
    Ok(mac)
}
