//! Capability sets of the calling thread, capabilities(7). A set is 64 bits,
//! bit N for capability number N.

use rustix::io::{Errno, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// The permitted set.
///
/// # Errors
/// Those of capget(2).
pub fn permitted() -> Result<u64> {
    capabilities(None).map(|sets| sets.permitted.bits())
}

/// Sets the three sets at once.
///
/// # Errors
/// Those of capset(2): `EPERM` for what is not permitted now.
pub fn set(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::from_bits_retain(effective),
            permitted: CapabilitySet::from_bits_retain(permitted),
            inheritable: CapabilitySet::from_bits_retain(inheritable),
        },
    )
}

/// Takes everything that is not in `kept` out of the bounding set, also what
/// this program has no name for.
///
/// # Errors
/// Those of prctl(2) PR_CAPBSET_DROP: `EPERM` without CAP_SETPCAP.
pub fn limit_bounding(kept: u64) -> Result<()> {
    for bit in single_bits() {
        match capability_is_in_bounding_set(bit) {
            Ok(true) if kept & bit.bits() == 0 => remove_capability_from_bounding_set(bit)?,
            Ok(_) => {}
            // The kernel knows no capability of that number.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes the ambient set `wanted`.
///
/// # Errors
/// Those of prctl(2) PR_CAP_AMBIENT: `EPERM` for what is not both permitted
/// and inheritable.
pub fn set_ambient(wanted: u64) -> Result<()> {
    clear_ambient_capability_set()?;
    single_bits()
        .filter(|bit| wanted & bit.bits() != 0)
        .try_for_each(|bit| configure_capability_in_ambient_set(bit, true))
}

fn single_bits() -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number))
}
