//! What a report of a guest will say, if the guest was started from this file
//! and from nothing else.

use super::measure::{LaunchDigest, Snp, SnpPage, Tdx};
use super::read::{File, Launch, PageKind, ReadError, Step};
use super::{KVM_CONTEXT, Platform, identity};
use igvm_defs::IgvmPlatformType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a file's measurement is not known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// It can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its launch is not one of the platform's.
    #[error("measure for {platform}: the file has {what}, which the platform has not")]
    Foreign {
        /// The platform.
        platform: Platform,
        /// What it has not.
        what: &'static str,
    },
    /// It is for other platforms.
    #[error("it is for no platform that measures: neither sev-snp nor tdx")]
    NoPlatform,
}

/// What a report will say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Whose report: MEASUREMENT of SEV-SNP, MRTD of TDX.
    pub platform: Platform,
    /// Of all that is loaded, by KVM.
    pub measurement: LaunchDigest,
    /// Of the same, where the loader has the firmware make zeros of pages that
    /// have no data in the file, instead of loading zeros (Cloud Hypervisor on
    /// KVM). None if there are no such pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement_if_zeroed: Option<LaunchDigest>,
    /// `POLICY` of SEV-SNP, which a report shows, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// How many processors have a state in the file: with another count of
    /// virtual processors KVM measures something else.
    pub vcpus: u32,
    /// `GUEST_SVN` of SEV-SNP: 0 without a signed identity.
    pub guest_svn: u32,
    /// The signed identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// A signed identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What must have been measured, or the guest is not started.
    pub measurement: LaunchDigest,
    /// `ID_KEY_DIGEST`: of the key that signed it.
    pub id_key_digest: LaunchDigest,
}

/// A policy as its maker writes it; shown in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Policy(pub u64);

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        format!("{:#x}", policy.0)
    }
}

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix("0x");
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no number of 64 bits that begins with 0x"))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::SevSnp => "sev-snp",
            Self::Tdx => "tdx",
            Self::Native => "native",
        })
    }
}

impl Expected {
    /// What is wrong with the file, if its identity is another one's.
    #[must_use]
    pub fn finding(&self) -> Option<String> {
        let insisted = self.identity.as_ref()?.measurement;
        let known = [Some(self.measurement), self.measurement_if_zeroed];
        (!known.contains(&Some(insisted))).then(|| {
            format!("no guest starts: the signed identity insists on the measurement {insisted}")
        })
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "platform: {}", self.platform)?;
        writeln!(to, "measurement: {}", self.measurement)?;
        if let Some(zeroed) = &self.measurement_if_zeroed {
            writeln!(
                to,
                "measurement, pages without data zeroed by the firmware: {zeroed}"
            )?;
        }
        if self.platform == Platform::SevSnp {
            if let Some(Policy(policy)) = self.policy {
                writeln!(to, "policy: {policy:#x}")?;
            }
            writeln!(to, "vcpus: {}", self.vcpus)?;
            writeln!(to, "guest svn: {}", self.guest_svn)?;
        }
        if let Some(identity) = &self.identity {
            writeln!(to, "id key digest: {}", identity.id_key_digest)?;
        }
        Ok(())
    }
}

/// What is expected of a file, on each platform that measures.
///
/// # Errors
/// See [`MeasureError`]; [`MeasureError::NoPlatform`] is [`measure`]'s.
pub(super) fn expected(bytes: &[u8]) -> Result<Vec<Expected>, MeasureError> {
    let file = File::parse(bytes)?;
    let mut all = Vec::new();
    for platform in file.platforms() {
        let measure = match platform.platform_type {
            IgvmPlatformType::SEV_SNP => snp,
            IgvmPlatformType::TDX => tdx,
            _ => continue,
        };
        all.push(measure(&file.launch(platform)?)?);
    }
    Ok(all)
}

/// What is expected of a file, on each platform that measures; at least one.
///
/// # Errors
/// See [`MeasureError`].
pub fn measure(bytes: &[u8]) -> Result<Vec<Expected>, MeasureError> {
    let all = expected(bytes)?;
    if all.is_empty() {
        return Err(MeasureError::NoPlatform);
    }
    Ok(all)
}

/// As KVM launches a guest: the processors' states last, wherever the file has
/// them, and at one address of its own.
fn snp(launch: &Launch<'_>) -> Result<Expected, MeasureError> {
    let measurement = snp_digest(launch, SnpPage::Normal);
    let without_data = |step: &Step<'_>| {
        let kind = PageKind::Measured;
        matches!(step, Step::Page { kind: found, bytes: None, .. } if *found == kind)
    };
    let zeroed = launch.steps.iter().any(without_data);
    let identity = launch.identity.as_ref().map(|identity| Identity {
        measurement: LaunchDigest::from_bytes(identity.measurement),
        id_key_digest: identity::key_digest(&identity.key),
    });
    let contexts = launch.steps.iter();
    let contexts = contexts.filter(|step| matches!(step, Step::Context { .. }));
    Ok(Expected {
        platform: Platform::SevSnp,
        measurement,
        measurement_if_zeroed: zeroed.then(|| snp_digest(launch, SnpPage::Zero)),
        policy: launch.policy.map(Policy),
        vcpus: contexts.count() as u32,
        guest_svn: launch.identity.as_ref().map_or(0, |identity| identity.svn),
        identity,
    })
}

/// `without_data` is what a page without data is.
fn snp_digest(launch: &Launch<'_>, without_data: SnpPage) -> LaunchDigest {
    let mut digest = Snp::default();
    let mut contexts = Vec::new();
    for step in &launch.steps {
        match *step {
            Step::Page {
                address,
                kind,
                bytes,
            } => match (kind, bytes) {
                (PageKind::Measured, Some(bytes)) => digest.page(SnpPage::Normal, address, bytes),
                (PageKind::Measured, None) if without_data == SnpPage::Zero => {
                    digest.place(SnpPage::Zero, address);
                }
                (PageKind::Measured, None) => digest.page(SnpPage::Normal, address, &[0; 4096]),
                (PageKind::Unmeasured, _) => digest.place(SnpPage::Unmeasured, address),
                (PageKind::Secrets, _) => digest.place(SnpPage::Secrets, address),
                (PageKind::Cpuid, _) => digest.place(SnpPage::Cpuid, address),
                (PageKind::Shared, _) => {}
            },
            Step::Parameters { address, pages } => {
                for number in 0..pages {
                    digest.place(SnpPage::Unmeasured, address + number * 4096);
                }
            }
            Step::Context { index, bytes, .. } => contexts.push((index, bytes)),
        }
    }
    contexts.sort_by_key(|context| context.0);
    for (_, bytes) in contexts {
        digest.page(SnpPage::Vmsa, KVM_CONTEXT, bytes);
    }
    digest.finish()
}

/// Page by page, each added and then measured.
fn tdx(launch: &Launch<'_>) -> Result<Expected, MeasureError> {
    let foreign = |what| MeasureError::Foreign {
        platform: Platform::Tdx,
        what,
    };
    let mut digest = Tdx::default();
    for step in &launch.steps {
        match *step {
            Step::Page {
                address,
                kind,
                bytes,
            } => match kind {
                PageKind::Measured => {
                    digest.add(address);
                    digest.extend(address, bytes.unwrap_or(&[0; 4096]));
                }
                PageKind::Unmeasured => digest.add(address),
                PageKind::Shared => {}
                PageKind::Secrets => return Err(foreign("a page of secrets")),
                PageKind::Cpuid => return Err(foreign("a page of CPUID")),
            },
            Step::Parameters { address, pages } => {
                (0..pages).for_each(|number| digest.add(address + number * 4096));
            }
            Step::Context { .. } => return Err(foreign("a processor's state")),
        }
    }
    Ok(Expected {
        platform: Platform::Tdx,
        measurement: digest.finish(),
        measurement_if_zeroed: None,
        policy: None,
        vcpus: 0,
        guest_svn: 0,
        identity: None,
    })
}
