//! `doctor`: what this machine has and lacks, a line each, with what to do.

use super::CliError;
use super::arguments::{GuestImage, Output};
use super::machine::{INITRD_VARIABLE, KERNEL_VARIABLE};
use super::text::Table;
use super::{print, runtime};
use crate::config::Paths;
use crate::host::explain;
use crate::store::Sha256;
use hypervisor::Accelerator;
use hypervisor::qemu::{ProbeRequest, probe};
use serde::Serialize;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

/// Where the build puts the agent, seen from the directory of this program.
const AGENT: &str = "../x86_64-unknown-linux-musl/release/guest-agent";

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    /// Whether nothing works without it.
    needed: bool,
    /// What was found.
    found: String,
    /// What to do, if it is not ok.
    advice: &'static str,
}

pub(super) fn doctor(guest: &GuestImage, output: Output) -> Result<ExitCode, CliError> {
    let kernel = guest.kernel();
    let mut findings = vmm_findings(kernel.as_deref())?;
    findings.push(file(
        "guest kernel",
        kernel.as_deref(),
        KERNEL_VARIABLE,
        "`make image` makes one; then give --kernel or set TARDIGRADE_KERNEL",
    ));
    findings.push(file(
        "guest initrd",
        guest.initrd().as_deref(),
        INITRD_VARIABLE,
        "`make image` makes one; then give --initrd or set TARDIGRADE_INITRD",
    ));
    findings.push(state_directory());
    findings.push(agent());
    print(output, &serde_json::json!({ "findings": findings }), |_| {
        describe(&findings)
    })?;
    Ok(
        if findings.iter().all(|finding| finding.ok || !finding.needed) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        },
    )
}

/// QEMU, and whether KVM runs this kernel: tried anew, whatever was kept.
fn vmm_findings(kernel: Option<&Path>) -> Result<Vec<Finding>, CliError> {
    let digest = kernel
        .and_then(|path| File::open(path).ok())
        .and_then(|file| Sha256::of_file(&file).ok());
    let request = ProbeRequest {
        program: None,
        kernel: kernel.filter(|_| digest.is_some()),
        kernel_digest: digest.as_ref().map_or("", Sha256::as_str),
    };
    let vmm = |ok, found| Finding {
        what: "qemu",
        ok,
        needed: true,
        found,
        advice: "install qemu-system-x86, or name the program by QEMU",
    };
    Ok(match runtime()?.block_on(probe(&request, None)) {
        Err(error) => vec![vmm(false, explain(&error))],
        Ok(found) => vec![
            vmm(
                true,
                format!("{}, {}", found.program.display(), found.version_text),
            ),
            Finding {
                what: "kvm",
                ok: found.accelerator.accelerator == Accelerator::Kvm,
                needed: false,
                found: found.accelerator.reason,
                advice: "emulation is used instead; for kvm, a host whose /dev/kvm runs guests",
            },
        ],
    })
}

fn file(
    what: &'static str,
    path: Option<&Path>,
    variable: &'static str,
    advice: &'static str,
) -> Finding {
    let (ok, found) = match path {
        Some(path) if path.is_file() => (true, path.display().to_string()),
        Some(path) => (false, format!("{} is not there", path.display())),
        None => (false, format!("not named; {variable} is not set")),
    };
    Finding {
        what,
        ok,
        needed: true,
        found,
        advice,
    }
}

fn state_directory() -> Finding {
    let (ok, found) = match Paths::from_environment() {
        Ok(paths) => {
            let root = paths.run.parent().unwrap_or(&paths.run);
            (true, root.display().to_string())
        }
        Err(error) => (false, explain(&error)),
    };
    Finding {
        what: "state directory",
        ok,
        needed: true,
        found,
        advice: "set TARDIGRADE_HOME to a directory of yours that nobody else may enter",
    }
}

/// Not needed to run sandboxes, whose initrd has it.
fn agent() -> Finding {
    let agent = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.join(AGENT).canonicalize()))
        .and_then(Result::ok);
    Finding {
        what: "static agent",
        ok: agent.is_some(),
        needed: false,
        found: agent.map_or_else(
            || "not beside this program".to_owned(),
            |path| path.display().to_string(),
        ),
        advice: "`make agent` builds it; only building an initrd needs it",
    }
}

fn describe(findings: &[Finding]) -> String {
    let mut table = Table::new(&["WHAT", "STATE", "FOUND", "TO DO"]);
    for finding in findings {
        let state = if finding.ok { "ok" } else { "missing" };
        let advice = if finding.ok { "" } else { finding.advice };
        table.row([finding.what, state, &finding.found, advice].map(str::to_owned));
    }
    table.to_string()
}
