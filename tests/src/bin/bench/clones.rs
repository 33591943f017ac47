//! Clones against the bare floor, against a cold boot, and eight at once.

use super::floor::Floor;
use super::sizes::{MEBIBYTE, Parts, proportional, status};
use super::{Failure, Goal, median, report};
use host_ctl::sandbox::vmm::Vmm;
use host_ctl::timeline::Report;
use serde_json::Value;
use std::path::Path;
use tardigrade_tests::{Home, sandbox};
use tokio::runtime::Runtime;

/// Turns of floor and clone.
const ROUNDS: usize = 15;
const COLD_BOOTS: usize = 3;
const AT_ONCE: usize = 8;
const ROUNDS_AT_ONCE: usize = 3;
const TEMPLATE: &str = "bench";
/// VMs by which the memory of the host is seen to grow.
const ONE_MORE: usize = 4;

/// Times of one clone, in milliseconds since host-ctl began.
pub(super) struct Times {
    pub(super) vmm: f64,
    pub(super) agent: f64,
    pub(super) wall: f64,
    /// How much of it the leaves of the timeline explain, in per cent.
    pub(super) coverage: f64,
    pub(super) timeline: Report,
}

pub(super) fn measure(home: &Home, rootfs: &Path, runtime: &Runtime) -> Result<(), Failure> {
    let built = home.build_template(TEMPLATE, rootfs, &["sleep", "100000"]);
    let floor = Floor::of(home, TEMPLATE, Vmm::Qemu, runtime)?;
    let touched = number(&built["touched_bytes"])? / f64::from(1 << 20);
    report(
        "publish_per_mib",
        number(&built["publish_ms"])? / touched,
        "ms",
        Goal::None,
    );

    let (mut floors, mut clones) = (Vec::new(), Vec::new());
    // One of each first: caches are warm for all that count.
    for round in 0..=ROUNDS {
        let bare = floor.restore()?.loaded;
        let clone = one_clone(home)?;
        if round > 0 {
            floors.push(bare);
            clones.push(clone);
        }
    }
    let floor_vmm = median(&floors);
    let of = |time: fn(&Times) -> f64| median(&clones.iter().map(time).collect::<Vec<_>>());
    let (vmm, agent) = (of(|clone| clone.vmm), of(|clone| clone.agent));
    report("floor_vmm", floor_vmm, "ms", Goal::None);
    report("t_vmm", vmm, "ms", Goal::None);
    report("t_agent", agent, "ms", Goal::None);
    report("t_vmm_ratio", vmm / floor_vmm, "x", Goal::AtMost(1.15));
    report("t_agent_ratio", agent / floor_vmm, "x", Goal::AtMost(2.5));
    report(
        "coverage",
        of(|clone| clone.coverage),
        "%",
        Goal::AtLeast(90.0),
    );

    let mut boots = Vec::new();
    for _ in 0..COLD_BOOTS {
        boots.push(cold_boot(home, rootfs)?);
    }
    report("t_agent_cold", median(&boots), "ms", Goal::None);
    report(
        "cold_ratio",
        median(&boots) / agent,
        "x",
        Goal::AtLeast(12.0),
    );

    let mut walls = Vec::new();
    for _ in 0..ROUNDS_AT_ONCE {
        let clones = home.json(["clone", TEMPLATE, "-n", &AT_ONCE.to_string()]);
        let failed = clones["failures"].as_array().map_or(AT_ONCE, Vec::len);
        report(
            "eight_at_once_failed",
            failed as f64,
            "clones",
            Goal::AtMost(0.0),
        );
        walls.push(number(&clones["wall_ms"])?);
        home.text(["rm", "--all"]);
    }
    let single = of(|clone| clone.wall) * AT_ONCE as f64;
    report(
        "eight_at_once",
        median(&walls) / single,
        "x",
        Goal::AtMost(0.75),
    );
    let held = memory(home, TEMPLATE, &floor)?;
    let supervisor = held.supervisor_resident / 1e6;
    report("supervisor_rss", supervisor, "MB", Goal::AtMost(6.0));
    report("clone_pss", held.vmm.sum() / MEBIBYTE, "MiB", Goal::None);
    report("bare_pss", held.bare.sum() / MEBIBYTE, "MiB", Goal::None);
    Ok(())
}

pub(super) fn number(value: &Value) -> Result<f64, Failure> {
    value
        .as_f64()
        .ok_or_else(|| format!("not a number: {value}").into())
}

pub(super) fn one_clone(home: &Home) -> Result<Times, Failure> {
    let outcome = home.json(["clone", TEMPLATE]);
    let clone = &outcome["clones"][0];
    if clone["booted"] != false {
        return Err(format!("booted cold: {}", clone["fallback"]).into());
    }
    let timeline: Report = serde_json::from_value(clone["timeline"].clone())?;
    let times = Times {
        vmm: number(&clone["times"]["t_vmm_ms"])?,
        agent: number(&clone["times"]["t_agent_ms"])?,
        wall: number(&outcome["wall_ms"])?,
        coverage: timeline.coverage(),
        timeline,
    };
    home.text(["rm", sandbox(clone)]);
    Ok(times)
}

/// From the start of host-ctl to the first answer of a cold booted agent.
fn cold_boot(home: &Home, rootfs: &Path) -> Result<f64, Failure> {
    let rootfs = rootfs.to_str().ok_or("a path that is no text")?;
    let options = ["run", "--rootfs", rootfs, "--memory", "128", "--"];
    let booted = home.json(options.into_iter().chain(["sleep", "100000"]));
    home.text(["rm", sandbox(&booted)]);
    number(&booted["times"]["t_agent_ms"])
}

/// What VMs hold of the host's memory.
pub(super) struct Held {
    /// The bare VM, beside two clones.
    pub(super) bare: Parts,
    /// A clone's VMM, beside another and the bare VM.
    pub(super) vmm: Parts,
    /// A clone's supervisor, in bytes.
    pub(super) supervisor: f64,
    /// All that the supervisor has in memory, whoever else has it too, in bytes.
    pub(super) supervisor_resident: f64,
}

/// What clones and a bare VM hold. All live at once: what they share counts the
/// same for each.
pub(super) fn memory(home: &Home, template: &str, floor: &Floor) -> Result<Held, Failure> {
    let bare = floor.restore()?;
    let clones = home.clone_template(template, 2);
    let [vmm, supervisor] = processes(home, &clones[0])?;
    let ram = floor.ram();
    let held = Held {
        bare: Parts::of(bare.pid, &ram)?,
        vmm: Parts::of(vmm, &ram)?,
        supervisor: proportional(supervisor)?,
        supervisor_resident: status(supervisor, "VmRSS:")?,
    };
    home.text(["rm", "--all"]);
    Ok(held)
}

/// What one more adds to the host's memory.
pub(super) struct Added {
    /// One more bare VM.
    pub(super) bare: Parts,
    /// One more clone, with its supervisor.
    pub(super) clone: Parts,
}

/// What one more bare VM adds to the memory of the host, and what one more clone
/// does: the sum over all processes of their proportional set sizes is what they
/// hold together, each page once. The first of each kind counts for none: what
/// it has in memory, all others share.
pub(super) fn added(home: &Home, template: &str, floor: &Floor) -> Result<Added, Failure> {
    let ram = floor.ram();
    let sum = |processes: &[u32]| {
        let mut parts = processes.iter().map(|pid| Parts::of(*pid, &ram));
        parts.try_fold(Parts::default(), |sum, parts| {
            parts.map(|parts| sum + parts)
        })
    };
    let count = ONE_MORE as f64;
    let mut alive = Vec::new();
    let mut bare = vec![floor.restore()?];
    alive.push(bare[0].pid);
    let before = sum(&alive)?;
    for _ in 0..ONE_MORE {
        let more = floor.restore()?;
        alive.push(more.pid);
        bare.push(more);
    }
    let bare_adds = sum(&alive)?.growth(before, count);

    let clones = |count: usize| -> Result<Vec<u32>, Failure> {
        let clones = home.clone_template(template, count);
        let processes = clones.iter().map(|clone| processes(home, clone));
        Ok(processes.collect::<Result<Vec<_>, _>>()?.concat())
    };
    alive.extend(clones(1)?);
    let before = sum(&alive)?;
    alive.extend(clones(ONE_MORE)?);
    let clone_adds = sum(&alive)?.growth(before, count);
    home.text(["rm", "--all"]);
    Ok(Added {
        bare: bare_adds,
        clone: clone_adds,
    })
}

/// The processes of a clone: VMM and supervisor.
fn processes(home: &Home, clone: &Value) -> Result<[u32; 2], Failure> {
    let inspected = home.json(["inspect", sandbox(clone)]);
    let pid = |who: &str| {
        let pid = inspected[who]["pid"].as_u64();
        pid.and_then(|pid| u32::try_from(pid).ok())
            .ok_or_else(|| format!("no {who}"))
    };
    Ok([pid("vmm")?, pid("supervisor")?])
}
