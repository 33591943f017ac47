//! The save verb: independent of the size of the memory.

use super::{Failure, Goal, median, report};
use std::time::Duration;
use tardigrade_tests::machine::{self, Machine};

const ROUNDS: usize = 5;
const SMALL_MIB: u32 = 256;
const LARGE_MIB: u32 = 2048;

pub(super) async fn measure() -> Result<(), Failure> {
    let (mut small, mut large) = (Vec::new(), Vec::new());
    let (mut small_bytes, mut large_bytes) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        let (time, bytes) = save(SMALL_MIB).await?;
        small.push(time);
        small_bytes = bytes;
        let (time, bytes) = save(LARGE_MIB).await?;
        large.push(time);
        large_bytes = bytes;
    }
    report("save_256_mib", median(&small), "ms", Goal::None);
    report("save_2048_mib", median(&large), "ms", Goal::None);
    report(
        "save_time_ratio",
        median(&large) / median(&small),
        "x",
        Goal::AtMost(1.3),
    );
    report(
        "save_bytes_ratio",
        large_bytes / small_bytes,
        "x",
        Goal::AtMost(1.3),
    );
    Ok(())
}

/// Boots a VM of that size to its agent, saves it, and gives the time of the
/// verb in milliseconds and the bytes of device state.
async fn save(memory_mib: u32) -> Result<(f64, f64), Failure> {
    let (_kept, directory) = machine::directory();
    let spec = machine::spec(&directory, memory_mib, None);
    let booted = Machine::boot(&machine::qemu().await?, &spec).await?;
    let saved = booted.save(&directory).await?;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    Ok((milliseconds(saved.duration), saved.bytes as f64))
}
