//! What a machine lacks that a test needs.

use std::fmt::Display;

/// Says that a test, or a part of one, does not run here, and why.
///
/// # Panics
/// With REQUIRE_ALL=1 in the environment: then nothing may be skipped.
pub fn skipped(why: impl Display) {
    eprintln!("skipped: {why}");
    assert!(
        !all_required(),
        "REQUIRE_ALL=1, and this was skipped: {why}"
    );
}

/// Whether a skip is an error.
#[must_use]
pub fn all_required() -> bool {
    std::env::var_os("REQUIRE_ALL").is_some_and(|all| all == "1")
}
