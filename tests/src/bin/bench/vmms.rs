//! Clones on each VMM, against the bare floor of that VMM. For the nested host:
//! there all three have KVM.

use super::clones::{Times, added, memory, number, one_clone};
use super::floor::{Floor, kernel};
use super::sizes::MEBIBYTE;
use super::spawned::trace;
use super::{Failure, Goal, median, program, report};
use host_ctl::sandbox::vmm::Vmm;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use tardigrade_tests::{Home, images, lab};
use tokio::runtime::Runtime;

/// Turns of floor and clone.
const ROUNDS: usize = 5;
const AT_ONCE: usize = 32;
const ROUNDS_AT_ONCE: usize = 3;
const TEMPLATE: &str = "bench";
/// What a clone may add to the host's memory beside what the bare VM does, in
/// MiB.
const OWN_MEMORY: f64 = 4.0;

/// Measures each of them that is found, in a process of its own, so that one
/// that fails leaves the others their turn.
pub(super) fn all(wanted: &[Vmm]) -> Result<(), Failure> {
    lab::assert_nested_host();
    let mut missing = Vec::new();
    for &vmm in wanted {
        if !is_found(vmm)? {
            println!(
                "bench: SKIPPED {vmm} (${} names it, or PATH)",
                vmm.variable()
            );
            missing.push(vmm);
        }
    }
    if !missing.is_empty() && tardigrade_tests::skip::all_required() {
        return Err("REQUIRE_ALL=1: that is an error".into());
    }
    let mut failed = Vec::new();
    for &vmm in wanted {
        let turn = || {
            Command::new(std::env::current_exe()?)
                .arg(vmm.name())
                .status()
        };
        if !missing.contains(&vmm) && !turn()?.success() {
            failed.push(vmm.name());
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("not measured to the end: {}", failed.join(", ")).into())
    }
}

/// Whether there is a program for a VMM. A variable that names none is an error.
fn is_found(vmm: Vmm) -> Result<bool, Failure> {
    let runs = |path: &Path| {
        let found = std::fs::metadata(path);
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if let Some(named) = std::env::var_os(vmm.variable()).filter(|named| !named.is_empty()) {
        if runs(named.as_ref()) {
            return Ok(true);
        }
        return Err(format!("{}={named:?}: there is no such program", vmm.variable()).into());
    }
    let name = match vmm {
        Vmm::Qemu => "qemu-system-x86_64",
        Vmm::CloudHypervisor | Vmm::Firecracker => vmm.name(),
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::split_paths(&path).any(|directory| runs(&directory.join(name))))
}

/// Measures one VMM.
pub(super) fn measure(vmm: Vmm, runtime: &Runtime) -> Result<(), Failure> {
    lab::assert_nested_host();
    let home = Home::with_program(program("HOST_CTL")?);
    build(&home, vmm)?;
    let floor = Floor::of(&home, TEMPLATE, vmm, runtime)?;
    let prefix = vmm.name().replace('-', "_");
    let report = |name: &str, value, unit, goal| {
        report(&format!("{prefix}_{name}"), value, unit, goal);
    };

    let (mut floors, mut clones) = (Vec::new(), Vec::new());
    // One of each first: caches are warm for all that count.
    for round in 0..=ROUNDS {
        let bare = floor.restore()?.ran;
        let clone = one_clone(&home)?;
        if round > 0 {
            floors.push(bare);
            clones.push(clone);
        }
    }
    let bare = median(&floors);
    let of = |time: fn(&Times) -> f64| median(&clones.iter().map(time).collect::<Vec<_>>());
    let (vmm_ratio, agent_ratio) = (of(|clone| clone.vmm) / bare, of(|clone| clone.agent) / bare);
    report("floor", bare, "ms", Goal::None);
    report("t_vmm", of(|clone| clone.vmm), "ms", Goal::None);
    report("t_agent", of(|clone| clone.agent), "ms", Goal::None);
    report("t_vmm_ratio", vmm_ratio, "x", Goal::AtMost(1.2));
    report("t_agent_ratio", agent_ratio, "x", Goal::AtMost(2.0));
    let coverage = of(|clone| clone.coverage);
    report("coverage", coverage, "%", Goal::AtLeast(98.0));
    if vmm_ratio > 1.2 || agent_ratio > 2.0 || coverage < 98.0 {
        explain(&clones);
    }

    let (output, spawned) = trace(&mut home.command(["clone", TEMPLATE]))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    home.text(["rm", "--all"]);
    let processes = spawned.processes as f64;
    report("spawned", processes, "processes", Goal::AtMost(3.0));
    let shells = spawned.shells() as f64;
    report("spawned_shells", shells, "processes", Goal::AtMost(0.0));

    let held = memory(&home, TEMPLATE, &floor)?;
    let mebibytes = |name: &str, bytes| report(name, bytes / MEBIBYTE, "MiB", Goal::None);
    mebibytes("bare_pss", held.bare.sum());
    mebibytes("clone_pss", held.supervisor + held.vmm.sum());
    mebibytes("supervisor_pss", held.supervisor);
    let added = added(&home, TEMPLATE, &floor)?;
    mebibytes("bare_adds_ram", added.bare.ram);
    mebibytes("clone_adds_ram", added.clone.ram);
    mebibytes("bare_adds", added.bare.sum());
    let limit = Goal::AtMost(added.bare.sum() / MEBIBYTE + OWN_MEMORY);
    report("clone_adds", added.clone.sum() / MEBIBYTE, "MiB", limit);

    let (mut walls, mut failures) = (Vec::new(), 0.0);
    for _ in 0..ROUNDS_AT_ONCE {
        let (wall, failed) = at_once(&home)?;
        walls.push(wall);
        failures += failed;
    }
    report("32_at_once_failed", failures, "clones", Goal::AtMost(0.0));
    let one_by_one = of(|clone| clone.wall) * AT_ONCE as f64;
    report(
        "32_at_once",
        median(&walls) / one_by_one,
        "x",
        Goal::AtMost(0.8),
    );
    Ok(())
}

fn build(home: &Home, vmm: Vmm) -> Result<(), Failure> {
    let (kernel, rootfs) = (kernel(vmm), images::busybox());
    let options = [
        ("--vmm", vmm.name()),
        ("--kernel", kernel.to_str().ok_or("a path that is no text")?),
        ("--rootfs", rootfs.to_str().ok_or("a path that is no text")?),
        ("--memory", "128"),
    ];
    let mut arguments = vec!["template", "build", TEMPLATE];
    arguments.extend(options.iter().flat_map(|(name, value)| [*name, *value]));
    arguments.extend(["--", "sleep", "100000"]);
    home.json(arguments);
    Ok(())
}

/// Tells where the time of the clone in the middle went.
fn explain(clones: &[Times]) {
    let mut clones: Vec<&Times> = clones.iter().collect();
    clones.sort_by(|one, other| one.agent.total_cmp(&other.agent));
    if let Some(middle) = clones.get(clones.len() / 2) {
        eprintln!("{}", middle.timeline.table());
    }
}

/// Many clones at once: how long all took, in milliseconds, and how many there
/// are not.
fn at_once(home: &Home) -> Result<(f64, f64), Failure> {
    let count = AT_ONCE.to_string();
    let output = home.run(["--output", "json", "clone", TEMPLATE, "-n", &count]);
    let outcome: Value = serde_json::from_slice(&output.stdout)?;
    let made = outcome["clones"].as_array().map_or(0, |clones| {
        let restored = clones.iter().filter(|clone| clone["booted"] == false);
        restored.count()
    });
    for failure in outcome["failures"].as_array().into_iter().flatten() {
        eprintln!("bench: {}", failure["error"]);
    }
    for clone in outcome["clones"].as_array().into_iter().flatten() {
        if let Some(reason) = clone["fallback"].as_str() {
            eprintln!("bench: booted cold: {reason}");
        }
    }
    home.text(["rm", "--all"]);
    Ok((number(&outcome["wall_ms"])?, (AT_ONCE - made) as f64))
}
