//! Clones against the bare floor, against a cold boot, and eight at once.

use super::sizes::{proportional, status};
use super::{Failure, Goal, median, report};
use host_ctl::config::Paths;
use host_ctl::sandbox::driver::{GuestKernel, fresh_driver};
use host_ctl::sandbox::vmm::Vmm;
use host_ctl::store::{Sha256, Store};
use host_ctl::template::plan_clone;
use host_ctl::timeline::Report;
use hypervisor::qemu::RestoreInput;
use hypervisor::{Hypervisor, Rebind};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tardigrade_tests::{Home, built, machine, sandbox};
use tokio::runtime::Runtime;

/// Turns of floor and clone.
const ROUNDS: usize = 15;
const COLD_BOOTS: usize = 3;
const AT_ONCE: usize = 8;
const ROUNDS_AT_ONCE: usize = 3;
const TEMPLATE: &str = "bench";

/// Times of one clone, in milliseconds since host-ctl began.
struct Times {
    vmm: f64,
    agent: f64,
    wall: f64,
    coverage: f64,
}

pub(super) fn measure(
    home: &Home,
    rootfs: &Path,
    floor: &Path,
    runtime: &Runtime,
) -> Result<(), Failure> {
    let built = home.build_template(TEMPLATE, rootfs, &["sleep", "100000"]);
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
        let bare = run_floor(home, floor, runtime)?;
        let clone = one_clone(home)?;
        if round > 0 {
            floors.push(bare);
            clones.push(clone);
        }
    }
    let floor_vmm = median(&floors.iter().map(|floor| floor.loaded).collect::<Vec<_>>());
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
    memory(home, runtime)
}

fn number(value: &Value) -> Result<f64, Failure> {
    value
        .as_f64()
        .ok_or_else(|| format!("not a number: {value}").into())
}

fn one_clone(home: &Home) -> Result<Times, Failure> {
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

/// What the bare restore took, in milliseconds.
struct Bare {
    loaded: f64,
}

/// The template's restore input for the floor, with files in `directory`.
fn restore_input(
    home: &Home,
    directory: &Path,
    runtime: &Runtime,
) -> Result<RestoreInput, Failure> {
    let qemu = runtime.block_on(machine::qemu())?;
    let store = Store::open(&Paths::below(home.path())?)?;
    let template = store.find(TEMPLATE)?;
    let kernel = built("guest/vmlinuz");
    let digest = Sha256::of_file(&std::fs::File::open(&kernel)?)?;
    let kernel = GuestKernel {
        path: &kernel,
        digest: &digest,
    };
    let driver = runtime.block_on(fresh_driver(Vmm::Qemu, Some(kernel)))?;
    let plan = plan_clone(&store, template.digest(), &driver)?;
    let spec = machine::copy_of(&plan.vm, &plan.template.memory(), directory)?;
    Ok(qemu.restore_input(plan.template.directory(), &spec))
}

fn run_floor(home: &Home, floor: &Path, runtime: &Runtime) -> Result<Bare, Failure> {
    let (_kept, directory) = machine::directory();
    let input = directory.join("input.json");
    let restore = restore_input(home, &directory, runtime)?;
    std::fs::write(&input, serde_json::to_vec(&restore)?)?;
    let output = Command::new(floor).arg(&input).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let loaded = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("incoming_us="))
        .ok_or_else(|| format!("floor: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Bare {
        loaded: loaded.parse::<f64>()? / 1e3,
    })
}

/// What a clone adds to the memory of the host, beside what its VMM alone does.
fn memory(home: &Home, runtime: &Runtime) -> Result<(), Failure> {
    let clones = home.clone_template(TEMPLATE, 2);
    let inspected = home.json(["inspect", sandbox(&clones[0])]);
    let pid = |who: &str| {
        let pid = inspected[who]["pid"].as_u64();
        pid.and_then(|pid| u32::try_from(pid).ok())
            .ok_or_else(|| format!("no {who}"))
    };
    let mebibyte = f64::from(1 << 20);
    let supervisor = status(pid("supervisor")?, "VmRSS:")? / 1e6;
    report("supervisor_rss", supervisor, "MB", Goal::AtMost(6.0));
    let pss = proportional(pid("vmm")?)? / mebibyte;

    let (_kept, directory) = machine::directory();
    let input = restore_input(home, &directory, runtime)?;
    let bare = runtime.block_on(async {
        let qemu = machine::qemu().await?;
        let vm = qemu
            .restore(&input.state, &input.spec, &Rebind::default())
            .await?;
        vm.resume().await?;
        let pss = proportional(u32::try_from(vm.record().pid)?)? / mebibyte;
        vm.kill().await?;
        Ok::<_, Failure>(pss)
    })?;
    report("clone_pss", pss, "MiB", Goal::None);
    report("bare_pss", bare, "MiB", Goal::None);
    home.text(["rm", "--all"]);
    Ok(())
}
