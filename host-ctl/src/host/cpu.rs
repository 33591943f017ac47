//! What a guest that runs on the CPU itself sees of it.

use std::fs::{File, read_to_string};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::call::{CallFailed, failed};

/// One processor a block, as proc_cpuinfo(5) says; all are taken to be equal.
const CPUINFO: &str = "/proc/cpuinfo";
/// The lines of a block that tell what a CPU is, and not what it is doing.
const TELLING: [&str; 6] = [
    "vendor_id",
    "cpu family",
    "model",
    "stepping",
    "microcode",
    "flags",
];
/// Kernels that know the frequency of the time stamp counter may tell it here.
const TSC: &str = "/sys/devices/system/cpu/cpu0/tsc_freq_khz";
/// Most of the file that is looked at: a block is below 4 KiB.
const MOST: u64 = 64 << 10;

/// The first processor, as lines that change when it becomes another: its
/// maker, model and flags, in an order of our own.
///
/// # Errors
/// When /proc cannot be read.
pub fn cpu() -> Result<String, CallFailed> {
    let path = Path::new(CPUINFO);
    let described = File::open(path).and_then(|file| describe(file.take(MOST)));
    described.map_err(failed("read", path))
}

fn describe(cpuinfo: impl Read) -> io::Result<String> {
    let mut lines = Vec::new();
    for line in BufReader::new(cpuinfo).lines() {
        let line = line?;
        if line.trim().is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let name = name.trim();
        if TELLING.contains(&name) {
            let mut words: Vec<_> = value.split_whitespace().collect();
            words.sort_unstable();
            lines.push(format!("{name}: {}", words.join(" ")));
        }
    }
    lines.sort_unstable();
    Ok(lines.join("\n"))
}

/// The frequency of its time stamp counter in kHz, where the kernel tells.
#[must_use]
pub fn tsc_khz() -> Option<u64> {
    read_to_string(TSC).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "processor\t: 0\nvendor_id\t: Maker\ncpu MHz\t\t: 2000.1\nflags\t\t: b a c\n\n\
                       processor\t: 1\nvendor_id\t: Other\n";

    #[test]
    fn a_cpu_is_told_by_what_it_is_and_not_by_its_speed_of_the_moment() {
        let one = describe(ONE.as_bytes()).unwrap();
        assert_eq!(one, "flags: a b c\nvendor_id: Maker");
        let faster = ONE.replace("2000.1", "3000.7").replace("b a c", "c b a");
        assert_eq!(describe(faster.as_bytes()).unwrap(), one);
        let newer = ONE.replace("b a c", "b a c d");
        assert_ne!(describe(newer.as_bytes()).unwrap(), one);
    }

    #[test]
    fn this_cpu_has_flags() {
        let text = cpu().unwrap();
        assert!(text.contains("flags: "), "{text}");
        assert_eq!(cpu().unwrap(), text);
    }
}
