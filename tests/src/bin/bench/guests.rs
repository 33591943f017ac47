//! Guest images: how large, how soon their agent is ready, and what an idle
//! guest holds of its memory.
//!
//! Times are a ratio of the guest's own kernel to the distribution's, booted in
//! turns in one run. What needs the own kernel is `short` where there is none.

use super::clones::number;
use super::sizes::MEBIBYTE;
use super::{Failure, Goal, absent, median, program, report};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tardigrade_tests::{Home, images, sandbox, target};

/// Turns of the two kernels that count; one of each before them warms caches,
/// and has it found out what runs this kernel.
const ROUNDS: usize = 5;
/// Bytes.
pub(super) const MEGABYTE: f64 = 1e6;
/// Of the VM whose idle guest is looked at.
const MEMORY_MIB: f64 = 128.0;
const SIZE: Goal = Goal::AtMost(4.0);
const READY: Goal = Goal::AtMost(0.6);
const IDLE: Goal = Goal::AtMost(32.0);

/// A kernel with the initrd for it.
struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
}

pub(super) fn measure(home: &Home) -> Result<(), Failure> {
    let rootfs = images::busybox();
    let directory = tempfile::tempdir()?;
    let packed = agent_alone(&directory.path().join("packed"), "zstd")?;
    report("agent_initrd_size", size(&packed)?, "MB", SIZE);
    let distribution = Guest {
        kernel: target().join("guest/vmlinuz"),
        initrd: target().join("guest/initrd.img"),
    };
    let own = target().join("guest/own/bzImage");
    if !own.is_file() {
        let why = "there is no own kernel; `make kernel` builds it";
        absent("own_kernel_size", "MB", SIZE, why);
        let times = boots(home, &rootfs, &[&distribution])?;
        report("distribution_ready", median(&times[0]), "ms", Goal::None);
        absent("own_ready_ratio", "x", READY, why);
        idle(
            "distribution_idle",
            home,
            &rootfs,
            &distribution,
            Goal::None,
        )?;
        absent("own_idle", "MiB", IDLE, why);
        return Ok(());
    }
    report("own_kernel_size", size(&own)?, "MB", SIZE);
    let own = Guest {
        kernel: own,
        initrd: agent_alone(&directory.path().join("plain"), "none")?,
    };
    let times = boots(home, &rootfs, &[&distribution, &own])?;
    let (floor, ready) = (median(&times[0]), median(&times[1]));
    report("distribution_ready", floor, "ms", Goal::None);
    report("own_ready", ready, "ms", Goal::None);
    report("own_ready_ratio", ready / floor, "x", READY);
    idle(
        "distribution_idle",
        home,
        &rootfs,
        &distribution,
        Goal::None,
    )?;
    idle("own_idle", home, &rootfs, &own, IDLE)
}

/// An initrd with the agent and nothing else.
pub(super) fn agent_alone(output: &Path, compression: &str) -> Result<PathBuf, Failure> {
    let status = Command::new(program("ROOTFS_BUILDER")?)
        .arg("initrd")
        .arg("--agent")
        .arg(program("GUEST_AGENT")?)
        .args(["--compression", compression, "--output"])
        .arg(output)
        .stdout(Stdio::null())
        .status()?;
    if status.success() {
        Ok(output.into())
    } else {
        Err(format!("rootfs-builder: {status}").into())
    }
}

/// In megabytes.
pub(super) fn size(path: &Path) -> Result<f64, Failure> {
    Ok(std::fs::metadata(path)?.len() as f64 / MEGABYTE)
}

/// From the VM's start to its agent's first answer, in milliseconds, of each
/// guest in turn.
fn boots(home: &Home, rootfs: &Path, guests: &[&Guest]) -> Result<Vec<Vec<f64>>, Failure> {
    let mut times = vec![Vec::new(); guests.len()];
    for round in 0..=ROUNDS {
        for (guest, times) in guests.iter().zip(&mut times) {
            let booted = boot(home, rootfs, guest)?;
            home.text(["rm", sandbox(&booted)]);
            let moment = |name: &str| number(&booted["times"][name]);
            if round > 0 {
                times.push(moment("t_agent_ms")? - moment("t_vmm_ms")?);
            }
        }
    }
    Ok(times)
}

fn boot(home: &Home, rootfs: &Path, guest: &Guest) -> Result<serde_json::Value, Failure> {
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or("a path that is no text")
    };
    let memory = MEMORY_MIB.to_string();
    Ok(home.json([
        "run",
        "--kernel",
        &text(&guest.kernel)?,
        "--initrd",
        &text(&guest.initrd)?,
        "--rootfs",
        &text(rootfs)?,
        "--memory",
        &memory,
        "--",
        "sleep",
        "100000",
    ]))
}

/// What a guest holds that has one sleeping container and nothing to do.
fn idle(name: &str, home: &Home, rootfs: &Path, guest: &Guest, goal: Goal) -> Result<(), Failure> {
    let booted = boot(home, rootfs, guest)?;
    let told = home.text(["exec", sandbox(&booted), "--", "cat", "/proc/meminfo"]);
    home.text(["rm", sandbox(&booted)]);
    let parts = parts(&told, MEMORY_MIB * MEBIBYTE)?;
    for (part, bytes) in parts {
        report(
            &format!("{name}_{part}"),
            bytes / MEBIBYTE,
            "MiB",
            Goal::None,
        );
    }
    let sum: f64 = parts.iter().map(|(_, bytes)| bytes).sum();
    report(name, sum / MEBIBYTE, "MiB", goal);
    Ok(())
}

/// The parts of what is used, in bytes, of a guest with so much memory: all
/// that is not free and cannot be freed at once. Names are those of
/// proc_meminfo(5).
fn parts(meminfo: &str, memory: f64) -> Result<[(&'static str, f64); 7], Failure> {
    let field = |name: &str| super::sizes::kibibytes(meminfo, &format!("{name}:"));
    let total = field("MemTotal")?;
    // The files of an initrd cannot be given up; those of a disk can.
    let kept = field("Shmem")?.max(field("Unevictable")?);
    let cache = field("Cached")? + field("Buffers")? - kept + field("SReclaimable")?;
    let used = total - field("MemFree")? - cache.max(0.0);
    let known = [
        ("files", kept),
        ("processes", field("AnonPages")?),
        ("slab", field("SUnreclaim")?),
        (
            "stacks_and_tables",
            field("KernelStack")? + field("PageTables")?,
        ),
        ("per_cpu", field("Percpu")?),
    ];
    let rest = used - known.iter().map(|(_, bytes)| bytes).sum::<f64>();
    let [files, processes, slab, stacks, per_cpu] = known;
    // The kernel itself, and what it set aside before it counted.
    let kernel = ("kernel", memory - total);
    Ok([
        kernel,
        files,
        processes,
        slab,
        stacks,
        per_cpu,
        ("rest", rest),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "\
MemTotal:         120000 kB
MemFree:           90000 kB
MemAvailable:      95000 kB
Buffers:               0 kB
Cached:            10000 kB
Unevictable:        6000 kB
AnonPages:          5000 kB
Shmem:               100 kB
KReclaimable:       1000 kB
Slab:               6000 kB
SReclaimable:       1000 kB
SUnreclaim:         5000 kB
KernelStack:         800 kB
PageTables:          200 kB
Percpu:              500 kB
";

    #[test]
    fn the_parts_of_what_is_used_are_its_sum() {
        let parts = parts(MEMINFO, MEMORY_MIB * MEBIBYTE).unwrap();
        let of = |name: &str| {
            let part = parts.iter().find(|(part, _)| *part == name);
            part.map(|(_, bytes)| bytes / 1024.0)
        };
        assert_eq!(of("kernel"), Some(131_072.0 - 120_000.0));
        assert_eq!(of("files"), Some(6000.0));
        // 120000 - 90000 - (10000 - 6000 + 1000) are used.
        assert_eq!(of("rest"), Some(25_000.0 - 17_500.0));
        let sum: f64 = parts.iter().map(|(_, bytes)| bytes / 1024.0).sum();
        assert_eq!(sum, 131_072.0 - 90_000.0 - 5000.0);
    }
}
