//! `doctor`: what this machine has and lacks, a line each, with what to do.

mod guest;

use super::CliError;
use super::arguments::{DoctorArguments, GuestImage, Output};
use super::machine::{INITRD_VARIABLE, KERNEL_VARIABLE, default_vmm};
use super::text::{Table, since};
use super::{print, runtime};
use crate::config::Paths;
use crate::host::{explain, sandboxes};
use crate::sandbox::driver::{
    Driver, DriverError, GuestKernel, fresh_driver, strictest, try_confinement,
};
use crate::sandbox::limits::try_limits;
use crate::sandbox::network::try_fence;
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::state::State;
use crate::sandbox::vmm::{Carrier, Vmm, memory_mode_name};
use crate::store::{Sha256, Store};
use hypervisor::{Accelerator, Confinement};
use serde::Serialize;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

/// Where the build puts the agent, seen from the directory of this program.
const AGENT: &str = "../x86_64-unknown-linux-musl/release/guest-agent";

/// What to do where a VMM cannot be confined.
const CONFINEMENT_ADVICE: &str = "set TARDIGRADE_UID_BASE to where 65536 users are free, and let \
                                  users have namespaces; --insecure does without";

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) what: String,
    pub(super) ok: bool,
    /// Whether nothing works without it.
    pub(super) needed: bool,
    /// What was found.
    pub(super) found: String,
    /// What to do, if it is not ok.
    pub(super) advice: &'static str,
}

pub(super) fn doctor(asked: &DoctorArguments, output: Output) -> Result<ExitCode, CliError> {
    let findings = if asked.guest {
        guest::findings(asked)?
    } else {
        machine_findings(&asked.image)?
    };
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

/// What this machine has for sandboxes, and what they are made of.
fn machine_findings(guest: &GuestImage) -> Result<Vec<Finding>, CliError> {
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
    findings.push(confinement()?);
    findings.push(limits());
    findings.push(agent());
    findings.push(virtiofsd()?);
    findings.push(taps()?);
    findings.extend(open_sandboxes());
    findings.extend(unused_templates());
    Ok(findings)
}

/// Each VMM and what it can do, and whether KVM runs this kernel: tried anew,
/// whatever was kept.
fn vmm_findings(kernel: Option<&Path>) -> Result<Vec<Finding>, CliError> {
    let digest = kernel
        .and_then(|path| File::open(path).ok())
        .and_then(|file| Sha256::of_file(&file).ok());
    let kernel = kernel.zip(digest.as_ref());
    let kernel = kernel.map(|(path, digest)| GuestKernel { path, digest });
    let default = default_vmm()?;
    let runtime = runtime()?;
    let mut findings = Vec::new();
    for vmm in Vmm::ALL {
        // None is started less confined than it would be to run a guest.
        let found =
            strictest().and_then(|confined| runtime.block_on(fresh_driver(vmm, kernel, confined)));
        findings.push(Finding {
            what: vmm.name().to_owned(),
            ok: found.is_ok(),
            needed: vmm == default,
            found: match &found {
                Ok(driver) => describe_vmm(driver),
                Err(error) => explain(error),
            },
            advice: found.as_ref().err().map_or("", advice_on),
        });
        // The others have nothing else.
        if let (Vmm::Qemu, Ok(driver)) = (vmm, &found) {
            let capabilities = driver.capabilities();
            findings.push(Finding {
                what: "kvm".to_owned(),
                ok: capabilities.accelerator == Accelerator::Kvm,
                needed: false,
                found: capabilities.accelerator_reason.clone(),
                advice: "qemu emulates instead; for kvm, a host whose /dev/kvm runs guests",
            });
        }
    }
    Ok(findings)
}

/// What is to be done about a VMM that cannot be used.
fn advice_on(error: &DriverError) -> &'static str {
    match error {
        DriverError::Users(_)
        | DriverError::Confinement(_)
        | DriverError::Vmm {
            source: hypervisor::Error::Confinement { .. },
            ..
        } => CONFINEMENT_ADVICE,
        DriverError::Vmm { .. } => "install it, or name its program by the variable",
    }
}

fn describe_vmm(driver: &Driver) -> String {
    let capabilities = driver.capabilities();
    let devices = capabilities.agent_devices;
    let devices = [
        ("virtio-serial", devices.serial),
        ("vsock", devices.vsock),
        ("hybrid vsock", devices.hybrid_vsock),
    ];
    let devices: Vec<_> = devices
        .into_iter()
        .filter_map(|(name, has)| has.then_some(name))
        .collect();
    let modes = capabilities.memory_modes.iter().copied();
    let modes: Vec<_> = modes.map(memory_mode_name).collect();
    format!(
        "{}, {}, {}; agent by {}; memory by {}",
        driver.program.display(),
        capabilities.version,
        capabilities.machine,
        devices.join(" or "),
        modes.join(", "),
    )
}

/// Templates in whose place something was booted.
fn unused_templates() -> Vec<Finding> {
    // What cannot be opened or read is told by other commands.
    let store = Paths::from_environment().map(|paths| Store::open(&paths));
    let Ok(Ok(store)) = store else {
        return Vec::new();
    };
    let templates = store.list().unwrap_or_default().into_iter();
    let counted = templates.filter_map(|template| {
        let counted = store.cold_boots(&template.digest).ok()?;
        (counted.count > 0).then_some((template, counted))
    });
    counted
        .map(|(template, counted)| Finding {
            what: format!("template {}", template.digest.short()),
            ok: false,
            needed: false,
            found: format!(
                "{} cold boots in place of clones, the last {} because {}",
                counted.count,
                since(counted.last),
                counted.reason
            ),
            advice: "build it again if this goes on",
        })
        .collect()
}

/// Whether directories of this host can be shared, and what serves them.
fn virtiofsd() -> Result<Finding, CliError> {
    let (found, advice) = match strictest() {
        Ok(confinement) => {
            let found = runtime()?.block_on(hypervisor::virtiofsd::find(&confinement));
            let advice =
                "for --directory: install virtiofsd 1.13 or newer, or name it by VIRTIOFSD";
            (found.map_err(|error| explain(&error)), advice)
        }
        Err(error) => (Err(explain(&error)), CONFINEMENT_ADVICE),
    };
    Ok(Finding {
        what: "virtiofsd".to_owned(),
        ok: found.is_ok(),
        needed: false,
        found: match found {
            Ok(found) => format!("{}, {}", found.program.display(), found.version),
            Err(reason) => reason,
        },
        advice,
    })
}

/// Whether sandboxes can have taps whose frames are filtered: tried on one.
fn taps() -> Result<Finding, CliError> {
    let tried = runtime()?.block_on(try_fence());
    Ok(Finding {
        what: "taps".to_owned(),
        ok: tried.is_ok(),
        needed: false,
        found: match &tried {
            Ok(()) => "made and fenced".to_owned(),
            Err(error) => explain(error),
        },
        advice: "for --network tap: be root, with the modules tun, sch_ingress and cls_bpf",
    })
}

/// Sandboxes whose agent takes every process of this host.
fn open_sandboxes() -> Vec<Finding> {
    let Ok(paths) = Paths::from_environment() else {
        // Told by the finding about it.
        return Vec::new();
    };
    let known = sandboxes(&paths).unwrap_or_default();
    let records = known
        .iter()
        .filter_map(|id| SandboxRecord::read(&paths, id).ok());
    let open = records.filter(|record| {
        let carrier = record.spec.carrier;
        carrier == Carrier::Vsock { privileged: false } && record.present_state() != State::Stopped
    });
    open.map(|record| Finding {
        what: format!("sandbox {}", record.id),
        ok: false,
        needed: false,
        found: "any process of this host can reach its agent".to_owned(),
        advice: "run it by --agent-link serial, or as root",
    })
    .collect()
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
        what: what.to_owned(),
        ok,
        needed: true,
        found,
        advice,
    }
}

/// What confines the VMMs that this user starts: tried on this program.
fn confinement() -> Result<Finding, CliError> {
    let tried = match strictest() {
        Ok(confinement) => runtime()?
            .block_on(try_confinement(&confinement))
            .map(|()| confinement)
            .map_err(|error| explain(&error)),
        Err(error) => Err(explain(&error)),
    };
    Ok(Finding {
        what: "confinement of a VMM".to_owned(),
        ok: tried.is_ok(),
        needed: false,
        found: match tried {
            Ok(Confinement::User(_)) => {
                "mounts, processes and network of its own, and a user".to_owned()
            }
            Ok(_) => "mounts, processes and network of its own".to_owned(),
            Err(reason) => reason,
        },
        advice: CONFINEMENT_ADVICE,
    })
}

/// Whether the VMMs that this user starts have cgroups of their own: tried up to
/// the one below which they lie.
fn limits() -> Finding {
    let tried = try_limits();
    Finding {
        what: "limits of a VMM".to_owned(),
        ok: tried.is_ok(),
        needed: false,
        found: match &tried {
            Ok(()) => "memory and threads, in a cgroup of its own".to_owned(),
            Err(reason) => explain(reason),
        },
        advice: "mount cgroup v2 with the memory and pids controllers; ordinary users: start \
                 host-ctl below a cgroup of yours (systemd-run --user --scope)",
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
        what: "state directory".to_owned(),
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
        what: "static agent".to_owned(),
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
        table.row([&finding.what, state, &finding.found, advice].map(str::to_owned));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_confine_a_vmm_is_not_told_to_install_it() {
        let failed = |source| {
            let vmm = Vmm::Qemu;
            advice_on(&DriverError::Vmm { vmm, source })
        };
        let refused = hypervisor::Error::Confinement {
            reason: "clone with namespaces of its own: not permitted".to_owned(),
        };
        assert!(failed(refused).contains("namespaces"));
        let missing = hypervisor::Error::Probe {
            program: "qemu-system-x86_64".into(),
            reason: "not on PATH".to_owned(),
        };
        assert!(failed(missing).contains("install"));
    }
}
