//! The figures, a line each: `bench NAME VALUE UNIT goal OP NUMBER ok|short`.
//!
//! What can be a ratio is one, against a floor measured in the same run and in
//! turns with it: absolute times of a shared or emulated machine say little.
//! Nothing here passes or fails; `short` says that a goal was not met.
//!
//! `bench` measures this machine, `bench containers` its containers alone, `bench
//! image` guest images, `bench fragments` what the guest's own kernel is made of,
//! `bench vmms` every VMM there is in the nested host, `bench vmms VMM` that one, if
//! it is found; `bench VMM` measures it, and fails where it is not.

mod clones;
mod containers;
mod floor;
mod fragments;
mod guests;
mod saves;
mod sizes;
mod spawned;
mod vmms;

use host_ctl::sandbox::vmm::Vmm;
use std::error::Error;
use std::process::ExitCode;
use tardigrade_tests::{Home, images};

/// Anything that keeps a figure from being measured.
type Failure = Box<dyn Error + Send + Sync>;

/// How a value is held against its goal.
#[derive(Debug, Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Printed to be looked at; there is no goal.
    None,
}

/// Prints one figure.
fn report(name: &str, value: f64, unit: &str, goal: Goal) {
    let verdict = |met: bool| if met { "ok" } else { "short" };
    match goal {
        Goal::AtMost(limit) => println!(
            "bench {name} {value:.3} {unit} goal <= {limit} {}",
            verdict(value <= limit)
        ),
        Goal::AtLeast(limit) => println!(
            "bench {name} {value:.3} {unit} goal >= {limit} {}",
            verdict(value >= limit)
        ),
        Goal::None => println!("bench {name} {value:.3} {unit} goal - - -"),
    }
}

/// Says of a figure that it could not be measured, and why: its goal is not met.
fn absent(name: &str, unit: &str, goal: Goal, why: &str) {
    eprintln!("bench: {name}: {why}");
    match goal {
        Goal::AtMost(limit) => println!("bench {name} - {unit} goal <= {limit} short"),
        Goal::AtLeast(limit) => println!("bench {name} - {unit} goal >= {limit} short"),
        Goal::None => println!("bench {name} - {unit} goal - - -"),
    }
}

/// The middle one of the values; of an even number, the mean of the middle two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// A file that the Makefile has built and named in the environment.
fn program(variable: &str) -> Result<std::path::PathBuf, Failure> {
    let path = std::env::var_os(variable)
        .ok_or_else(|| format!("{variable} is not set; `make bench` sets it"))?;
    Ok(path.into())
}

fn measure() -> Result<(), Failure> {
    let wish = std::env::args().nth(1);
    match wish.as_deref() {
        Some("vmms") => {
            let named: Option<Vmm> = std::env::args()
                .nth(2)
                .map(|name| name.parse())
                .transpose()?;
            return vmms::all(named.as_ref().map_or(&Vmm::ALL, std::slice::from_ref));
        }
        Some("containers") => return containers::all(),
        Some("fragments") => {
            return fragments::measure(&Home::with_program(program("HOST_CTL")?));
        }
        Some("image") => return guests::measure(&Home::with_program(program("HOST_CTL")?)),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if wish.as_deref() == Some(containers::WORD) {
        return containers::measure(&runtime);
    }
    if let Some(vmm) = wish {
        return vmms::measure(vmm.parse()?, &runtime);
    }
    let home = Home::with_program(program("HOST_CTL")?);
    let rootfs = images::busybox();
    sizes::agent(&program("GUEST_AGENT")?)?;
    containers::all()?;
    clones::measure(&home, &rootfs, &runtime)?;
    runtime.block_on(saves::measure())
}

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
