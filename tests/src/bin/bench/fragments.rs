//! What each fragment of the guest's own kernel costs: how much smaller is the
//! kernel without it, and how much sooner is the agent ready, where that kernel
//! still boots. `make kernel-table` builds the kernels.

use super::guests::{MEGABYTE, agent_alone, size};
use super::{Failure, Goal, absent, median, report};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tardigrade_tests::{Home, target};

/// Turns of all the kernels that count; one before them warms caches, and finds
/// those that do not boot.
const ROUNDS: usize = 5;
/// The kernel with all of them.
const WHOLE: &str = "whole";

struct Kernel {
    name: String,
    image: PathBuf,
    /// Milliseconds, of each turn.
    ready: Vec<f64>,
    boots: bool,
}

pub(super) fn measure(home: &Home) -> Result<(), Failure> {
    let mut kernels = kernels(&target().join("guest/table"))?;
    let directory = tempfile::tempdir()?;
    let initrd = agent_alone(&directory.path().join("initrd"), "none")?;
    for round in 0..=ROUNDS {
        for kernel in kernels.iter_mut().filter(|kernel| kernel.boots) {
            match ready(home, &kernel.image, &initrd)? {
                Some(millis) if round > 0 => kernel.ready.push(millis),
                Some(_) => {}
                None => kernel.boots = false,
            }
        }
    }
    let whole = kernels.iter().find(|kernel| kernel.name == WHOLE);
    let whole = whole.filter(|kernel| kernel.boots);
    let whole = whole.ok_or("the kernel with all fragments does not boot")?;
    let (bytes, millis) = (size(&whole.image)?, median(&whole.ready));
    report("fragments_size", bytes, "MB", Goal::None);
    report("fragments_ready", millis, "ms", Goal::None);
    for kernel in kernels.iter().filter(|kernel| kernel.name != WHOLE) {
        let name = kernel.name.replace('-', "_");
        let saved = (bytes - size(&kernel.image)?) * MEGABYTE / 1e3;
        report(
            &format!("without_{name}_size_saved"),
            saved,
            "kB",
            Goal::None,
        );
        let figure = format!("without_{name}_ready_saved");
        if kernel.boots {
            report(&figure, millis - median(&kernel.ready), "ms", Goal::None);
        } else {
            absent(
                &figure,
                "ms",
                Goal::None,
                "no agent answers on such a kernel",
            );
        }
    }
    Ok(())
}

/// Those that could be built, by name.
fn kernels(directory: &Path) -> Result<Vec<Kernel>, Failure> {
    let entries = std::fs::read_dir(directory)
        .map_err(|error| format!("{}: {error}; `make kernel-table`", directory.display()))?;
    let mut kernels = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let image = path.join("bzImage");
        if let (true, Some(name)) = (image.is_file(), path.file_name()) {
            kernels.push(Kernel {
                name: name.to_string_lossy().into_owned(),
                image,
                ready: Vec::new(),
                boots: true,
            });
        }
    }
    kernels.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(kernels)
}

/// How long a guest with nothing but the agent takes until that answers, in
/// milliseconds; none if it never does.
fn ready(home: &Home, kernel: &Path, initrd: &Path) -> Result<Option<f64>, Failure> {
    let output = home
        .command(["--output", "json", "doctor", "--guest", "--kernel"])
        .arg(kernel)
        .arg("--initrd")
        .arg(initrd)
        .output()?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let findings = told["findings"].as_array().ok_or("doctor found nothing")?;
    let boot = findings.iter().find(|finding| finding["what"] == "boot");
    let boot = boot.ok_or("doctor has booted nothing")?;
    if boot["ok"] != true {
        return Ok(None);
    }
    let found = boot["found"].as_str().ok_or("doctor says no time")?;
    seconds(found)
        .map(|seconds| Some(seconds * 1e3))
        .ok_or_else(|| format!("not a time: {found}").into())
}

/// Of `agent VERSION after SECONDS s by ACCELERATOR`.
fn seconds(found: &str) -> Option<f64> {
    let (_, rest) = found.split_once(" after ")?;
    rest.split_once(" s ")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_out_of_doctors_words() {
        assert_eq!(seconds("agent 0.1.0 after 1.25 s by tcg"), Some(1.25));
        assert_eq!(seconds("agent 0.1.0 by tcg"), None);
    }
}
