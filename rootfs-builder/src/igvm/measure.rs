//! What a processor's firmware measures while a guest's memory is put together.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha384};
use std::fmt;
use std::str::FromStr;

/// A SHA-384 digest; shown as 96 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LaunchDigest([u8; 48]);

impl LaunchDigest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha384::digest(bytes).into())
    }

    /// A digest that is known already.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 48]) -> Self {
        Self(bytes)
    }

    /// The 48 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 48] {
        &self.0
    }
}

impl fmt::Display for LaunchDigest {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(to, "{byte:02x}"))
    }
}

impl fmt::Debug for LaunchDigest {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "sha384:{self}")
    }
}

/// A text that is no digest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 96 lower-case hex digits")]
pub struct LaunchDigestError;

impl FromStr for LaunchDigest {
    type Err = LaunchDigestError;

    fn from_str(text: &str) -> Result<Self, LaunchDigestError> {
        let mut bytes = [0; 48];
        let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 96 || !text.bytes().all(lower) {
            return Err(LaunchDigestError);
        }
        for (number, byte) in bytes.iter_mut().enumerate() {
            let digits = &text[number * 2..number * 2 + 2];
            *byte = u8::from_str_radix(digits, 16).map_err(|_| LaunchDigestError)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for LaunchDigest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LaunchDigest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a page is to SEV-SNP (SEV Secure Nested Paging Firmware ABI
/// Specification, "`SNP_LAUNCH_UPDATE`").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnpPage {
    /// Bytes that are measured.
    Normal = 1,
    /// A processor's state.
    Vmsa = 2,
    /// Zeros that the firmware writes.
    Zero = 3,
    /// Bytes that are not measured.
    Unmeasured = 4,
    /// What the firmware writes for the guest.
    Secrets = 5,
    /// The answers to CPUID.
    Cpuid = 6,
}

/// The launch digest of SEV-SNP: each page is hashed together with what was
/// measured before it.
#[derive(Debug)]
pub struct Snp {
    digest: [u8; 48],
    /// Most pages of a guest are empty.
    empty: [u8; 48],
}

impl Default for Snp {
    fn default() -> Self {
        Self::from(LaunchDigest([0; 48]))
    }
}

impl From<LaunchDigest> for Snp {
    /// After some pages were measured.
    fn from(digest: LaunchDigest) -> Self {
        Self {
            digest: digest.0,
            empty: LaunchDigest::of(&[0; 4096]).0,
        }
    }
}

impl Snp {
    /// Measures a page whose bytes count.
    pub fn page(&mut self, kind: SnpPage, address: u64, bytes: &[u8; 4096]) {
        let contents = if bytes.iter().all(|&byte| byte == 0) {
            self.empty
        } else {
            LaunchDigest::of(bytes).0
        };
        self.extend(kind, address, &contents);
    }

    /// Measures that there is a page, whose bytes do not count.
    pub fn place(&mut self, kind: SnpPage, address: u64) {
        self.extend(kind, address, &[0; 48]);
    }

    /// The ABI's `PAGE_INFO`: what was measured so far, the page's digest, this
    /// structure's length, the page's type, four fields for what is not used
    /// here, its address.
    fn extend(&mut self, kind: SnpPage, address: u64, contents: &[u8; 48]) {
        const LENGTH: usize = 0x70;
        let mut info = [0; LENGTH];
        info[..48].copy_from_slice(&self.digest);
        info[48..96].copy_from_slice(contents);
        info[96..98].copy_from_slice(&(LENGTH as u16).to_le_bytes());
        info[98] = kind as u8;
        info[104..].copy_from_slice(&address.to_le_bytes());
        self.digest = LaunchDigest::of(&info).0;
    }

    /// What was measured.
    #[must_use]
    pub fn finish(self) -> LaunchDigest {
        LaunchDigest(self.digest)
    }
}

/// The measurement of a trust domain (Intel TDX Module Base Specification,
/// "MRTD"): one hash of all that is done.
#[derive(Debug, Default)]
pub struct Tdx(Sha384);

impl Tdx {
    /// `TDH.MEM.PAGE.ADD`: measures that there is a page.
    pub fn add(&mut self, address: u64) {
        self.operation(b"MEM.PAGE.ADD", address);
    }

    /// `TDH.MR.EXTEND` for all of a page: measures its bytes, 256 at a time.
    pub fn extend(&mut self, address: u64, bytes: &[u8; 4096]) {
        for (number, chunk) in (0..).zip(bytes.chunks_exact(256)) {
            self.operation(b"MR.EXTEND", address + number * 256);
            self.0.update(chunk);
        }
    }

    fn operation(&mut self, name: &[u8], address: u64) {
        let mut block = [0; 128];
        block[..name.len()].copy_from_slice(name);
        block[16..24].copy_from_slice(&address.to_le_bytes());
        self.0.update(block);
    }

    /// What was measured.
    #[must_use]
    pub fn finish(self) -> LaunchDigest {
        LaunchDigest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use igvm::snp_defs::{SevSelector, SevVmsa};
    use zerocopy::{FromZeros, IntoBytes};

    /// The state after a reset of QEMU's model EPYC-v4, whose identity is in
    /// RDX.
    fn reset_state() -> SevVmsa {
        let segment = |selector, attrib, base| SevSelector {
            selector,
            attrib,
            limit: 0xffff,
            base,
        };
        let data = segment(0, 0x93, 0);
        let table = segment(0, 0, 0);
        SevVmsa {
            es: data,
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            cs: segment(0xf000, 0x9b, 0xffff_0000),
            gdtr: table,
            idtr: table,
            ldtr: segment(0, 0x82, 0),
            tr: segment(0, 0x8b, 0),
            efer: 0x1000,
            cr4: 0x40,
            cr0: 0x10,
            dr7: 0x400,
            dr6: 0xffff_0ff0,
            rflags: 2,
            rip: 0xfff0,
            pat: 0x0007_0406_0007_0406,
            rdx: 0x0080_0f12,
            sev_features: igvm::snp_defs::SevFeatures::new().with_snp(true),
            xcr0: 1,
            mxcsr: 0x1f80,
            x87_fcw: 0x37f,
            ..SevVmsa::new_zeroed()
        }
    }

    /// From the tests of virtee's sev-snp-measure 0.0.13
    /// (test_snp_without_kernel_feature_snp_only): an OVMF, known by the digest
    /// of its pages, the ranges that it asks for, and one processor.
    #[test]
    fn a_published_launch_digest_is_found_again() {
        let firmware = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa\
                        16aff8c374c2a55c467a50da6d466b74";
        let mut launch = Snp::from(firmware.parse::<LaunchDigest>().unwrap());
        let pages = (0x80_0000..0x82_0000).step_by(4096);
        for page in pages.filter(|&page| page != 0x80_9000) {
            let kind = match page {
                0x80_d000 => SnpPage::Secrets,
                0x80_e000 => SnpPage::Cpuid,
                _ => SnpPage::Zero,
            };
            launch.place(kind, page);
        }
        let mut vmsa = [0; 4096];
        let state = reset_state();
        vmsa[..state.as_bytes().len()].copy_from_slice(state.as_bytes());
        launch.page(SnpPage::Vmsa, 0xffff_ffff_f000, &vmsa);
        assert_eq!(
            launch.finish().to_string(),
            "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6\
             013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"
        );
    }

    #[test]
    fn an_empty_page_is_measured_as_any_other() {
        let mut launch = Snp::default();
        launch.page(SnpPage::Normal, 0x1000, &[0; 4096]);
        let mut info = vec![0; 48];
        info.extend(Sha384::digest([0; 4096]));
        info.extend([0x70, 0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(launch.finish(), LaunchDigest::of(&info));
    }

    #[test]
    fn a_digest_is_read_as_it_is_shown() {
        let digest = LaunchDigest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in ["", &"0".repeat(95), &"A".repeat(96), &"é".repeat(48)] {
            assert_eq!(bad.parse::<LaunchDigest>(), Err(LaunchDigestError));
        }
    }
}
