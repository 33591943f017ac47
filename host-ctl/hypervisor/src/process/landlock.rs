//! How much of Landlock the kernel has, for a VMM that confines itself by it.
#![expect(unsafe_code, reason = "landlock_create_ruleset has no safe interface")]

/// The version of Landlock's interface (landlock_create_ruleset(2)); 0 where the
/// kernel has none, or has it turned off.
pub(crate) fn landlock_version() -> u32 {
    // LANDLOCK_CREATE_RULESET_VERSION, linux/landlock.h.
    const ASK_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag and no attributes the call only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            ASK_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}
