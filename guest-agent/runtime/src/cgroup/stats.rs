//! What a container uses, from the files of cgroup v2
//! (Documentation/admin-guide/cgroup-v2.rst). A controller that is not there
//! counts nothing.

use super::{CgroupError, CgroupPath, failed};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The numbers of one cgroup and all below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupStats {
    /// CPU time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// What went to and came from block devices.
    pub io: Vec<IoStats>,
    /// Huge pages by their size, as the kernel writes it (`2MB`).
    pub hugetlb: BTreeMap<String, HugetlbStats>,
}

/// CPU time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// All of it.
    pub total: u64,
    /// Spent by the programs themselves.
    pub user: u64,
    /// Spent by the kernel for them.
    pub system: u64,
    /// Periods that a quota was enforced in.
    pub periods: u64,
    /// Those that used it up.
    pub throttled_periods: u64,
    /// Time waited for the next period.
    pub throttled: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// All of it.
    pub usage: u64,
    /// The most there ever was; 0 if the kernel does not say.
    pub peak: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
    /// The limit; none is `u64::MAX`.
    pub limit: u64,
    /// What is swapped out.
    pub swap: u64,
    /// How often swapping out failed for its limit.
    pub swap_limit_hits: u64,
    /// The limit of swap alone; none is `u64::MAX`.
    pub swap_limit: u64,
    /// What the kernel uses for it; 0 if the kernel does not say.
    pub kernel: u64,
    /// File contents.
    pub cache: u64,
    /// All that memory.stat says.
    pub details: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0 is no limit.
    pub limit: u64,
}

/// One device's transfers, in bytes and in requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Discards.
    pub discards: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugetlbStats {
    /// What is used.
    pub usage: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
}

const NANOS_PER_MICRO: u64 = 1000;

impl CgroupPath {
    /// Reads all numbers, of the outer cgroup: it is charged first for what both
    /// are limited in, and a container cannot change what it says. It may block.
    ///
    /// # Errors
    /// Those of the files: the cgroup may be gone.
    pub fn stats(&self) -> Result<CgroupStats, CgroupError> {
        let [outer, _] = self.both();
        let directory = Files(outer);
        Ok(CgroupStats {
            cpu: cpu(&directory.required("cpu.stat")?),
            memory: memory(&directory)?,
            pids: PidsStats {
                current: directory.number("pids.current")?,
                limit: match directory.number("pids.max")? {
                    u64::MAX => 0,
                    limit => limit,
                },
            },
            io: directory
                .text("io.stat")?
                .lines()
                .filter_map(io_line)
                .collect(),
            hugetlb: hugetlb(&directory)?,
        })
    }
}

/// The files of a cgroup.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn required(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.0.join(file);
        std::fs::read_to_string(&path).map_err(failed("read", &path))
    }

    /// Empty if there is no such file.
    fn text(&self, file: &str) -> Result<String, CgroupError> {
        match self.required(file) {
            Err(CgroupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(String::new())
            }
            outcome => outcome,
        }
    }

    /// `max` is the largest number, and no file is 0.
    fn number(&self, file: &str) -> Result<u64, CgroupError> {
        Ok(match self.text(file)?.trim() {
            "max" => u64::MAX,
            text => text.parse().unwrap_or_default(),
        })
    }
}

/// Each line a key and a number.
fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

fn value(text: &str, wanted: &str) -> u64 {
    let mut found = keyed(text).filter(|(key, _)| *key == wanted);
    found.next().map(|(_, value)| value).unwrap_or_default()
}

fn cpu(text: &str) -> CpuStats {
    let nanos = |key| value(text, key).saturating_mul(NANOS_PER_MICRO);
    CpuStats {
        total: nanos("usage_usec"),
        user: nanos("user_usec"),
        system: nanos("system_usec"),
        periods: value(text, "nr_periods"),
        throttled_periods: value(text, "nr_throttled"),
        throttled: nanos("throttled_usec"),
    }
}

fn memory(files: &Files<'_>) -> Result<MemoryStats, CgroupError> {
    let details = files.text("memory.stat")?;
    Ok(MemoryStats {
        usage: files.number("memory.current")?,
        peak: files.number("memory.peak")?,
        limit_hits: value(&files.text("memory.events")?, "max"),
        limit: files.number("memory.max")?,
        swap: files.number("memory.swap.current")?,
        swap_limit_hits: value(&files.text("memory.swap.events")?, "max"),
        swap_limit: files.number("memory.swap.max")?,
        kernel: value(&details, "kernel"),
        cache: value(&details, "file"),
        details: keyed(&details)
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io_line(line: &str) -> Option<IoStats> {
    let (device, counters) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let counter = |wanted: &str| {
        let mut pairs = counters
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(key, _)| *key == wanted);
        found
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or_default()
    };
    Some(IoStats {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        read_bytes: counter("rbytes"),
        written_bytes: counter("wbytes"),
        discarded_bytes: counter("dbytes"),
        reads: counter("rios"),
        writes: counter("wios"),
        discards: counter("dios"),
    })
}

fn hugetlb(files: &Files<'_>) -> Result<BTreeMap<String, HugetlbStats>, CgroupError> {
    let mut found = BTreeMap::new();
    let entries = std::fs::read_dir(files.0).map_err(failed("list", files.0))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name
            .strip_prefix("hugetlb.")
            .and_then(|name| name.strip_suffix(".current"));
        // `hugetlb.2MB.rsvd.current` is what is reserved, not what is used.
        let Some(size) = size.filter(|size| !size.contains('.')) else {
            continue;
        };
        let stats = HugetlbStats {
            usage: files.number(&name)?,
            limit_hits: value(&files.text(&format!("hugetlb.{size}.events"))?, "max"),
        };
        found.insert(size.to_owned(), stats);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_of_the_kernel_are_nanoseconds_here() {
        let text = "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\n\
                    throttled_usec 9\nnr_bursts 0\n";
        let stats = cpu(text);
        assert_eq!((stats.total, stats.user, stats.system), (5000, 3000, 2000));
        assert_eq!((stats.periods, stats.throttled_periods), (7, 1));
        assert_eq!(stats.throttled, 9000);
    }

    #[test]
    fn reads_writes_and_discards_are_told_apart() {
        let line = "254:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6";
        let expected = IoStats {
            major: 254,
            minor: 16,
            read_bytes: 1,
            written_bytes: 2,
            discarded_bytes: 5,
            reads: 3,
            writes: 4,
            discards: 6,
        };
        assert_eq!(io_line(line), Some(expected));
    }

    #[test]
    fn a_cgroup_is_read_whole_and_a_missing_controller_counts_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            std::fs::write(directory.path().join(file), text).unwrap();
        };
        write("cpu.stat", "usage_usec 1\n");
        write("pids.current", "3\n");
        write("pids.max", "max\n");
        write("memory.current", "4096\n");
        write("memory.max", "max\n");
        write("memory.stat", "anon 1\nfile 7\nkernel 2\n");
        write("memory.events", "low 0\nmax 4\noom_kill 1\n");
        write("hugetlb.2MB.current", "2097152\n");
        write("hugetlb.2MB.rsvd.current", "0\n");
        write("hugetlb.2MB.events", "max 3\n");
        let stats = CgroupPath::for_tests(directory.path()).stats().unwrap();
        assert_eq!((stats.pids.current, stats.pids.limit), (3, 0));
        let memory = &stats.memory;
        assert_eq!(
            (memory.usage, memory.limit, memory.cache),
            (4096, u64::MAX, 7)
        );
        assert_eq!((memory.kernel, memory.limit_hits, memory.swap), (2, 4, 0));
        assert_eq!(memory.details.len(), 3);
        let huge = HugetlbStats {
            usage: 2_097_152,
            limit_hits: 3,
        };
        assert_eq!(stats.hugetlb, [("2MB".to_owned(), huge)].into());
        assert!(stats.io.is_empty());
        let gone = directory.path().join("gone");
        assert!(CgroupPath::for_tests(&gone).stats().is_err());
    }

    proptest! {
        #[test]
        fn no_text_of_the_kernel_is_a_panic(text: String) {
            let _ = (cpu(&text), io_line(&text), value(&text, "max"));
        }
    }
}
