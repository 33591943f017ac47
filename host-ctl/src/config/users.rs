//! The users that VMMs are given, one each.

use super::ConfigError;

/// Names the first number of the range.
const VARIABLE: &str = "TARDIGRADE_UID_BASE";
/// Where nobody gives numbers to people, services or containers (systemd's
/// "Users, Groups, UIDs and GIDs").
const DEFAULT: u32 = 0x7e00_0000;
/// Below it are people's and services' own.
const LEAST: u32 = 1 << 16;

/// The number of the group that every VMM with a user of its own is in; their
/// users follow it.
///
/// # Errors
/// When the variable holds none that can be one.
pub fn first_vmm_user() -> Result<u32, ConfigError> {
    let Some(value) = std::env::var_os(VARIABLE) else {
        return Ok(DEFAULT);
    };
    let value = value.to_string_lossy().into_owned();
    let number = value.parse().ok();
    let fits = |number: &u32| (LEAST..=u32::MAX - LEAST).contains(number);
    number.filter(fits).ok_or(ConfigError::Users {
        variable: VARIABLE,
        value,
    })
}
