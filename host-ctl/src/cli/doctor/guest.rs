//! `doctor --guest`: boots the guest's files, asks its agent, and holds its
//! kernel's configuration against what the guest needs.

use super::Finding;
use crate::cli::arguments::DoctorArguments;
use crate::cli::machine::{default_vmm, existing};
use crate::cli::{CliError, interrupted, runtime};
use crate::config::{Paths, SandboxId};
use crate::host::explain;
use crate::sandbox::network::NetworkKind;
use crate::sandbox::spec::SandboxSpec;
use crate::store::Store;
use crate::supervisor::client::Supervisors;
use crate::supervisor::order::{Handover, Making, Order};
use crate::timeline::now;
use agent_client::{AgentClient, ClientError, ExecConfig, ExecEvent, GuestDetails};
use hypervisor::Confined;
use kernel_config::config::MAX_CONFIG_BYTES;
use kernel_config::{Forbidden, KernelConfig, Requirement};
use protocols::Link;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

/// How long one call of the agent may take; of an emulated guest, too.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// What a small guest is given beside its initrd, in MiB: far more than an idle
/// one uses.
const MEMORY_MIB: u32 = 256;
/// Where a kernel with IKCONFIG_PROC tells its own configuration.
const OWN_CONFIG: &str = "/proc/config.gz";
/// How the builds here leave it, beside the kernel.
const CONFIG_NAME: &str = "config";

/// What a guest that was booted for it says of itself.
struct Heard {
    handover: Handover,
    details: GuestDetails,
    /// Its kernel's own configuration, or why it does not tell.
    config: Result<Vec<u8>, String>,
}

pub(super) fn findings(asked: &DoctorArguments) -> Result<Vec<Finding>, CliError> {
    let missing = |what: &str, hint| CliError::Missing {
        what: format!("no {what}"),
        hint,
    };
    let kernel = asked.image.kernel();
    let kernel =
        kernel.ok_or_else(|| missing("kernel", "give --kernel or set TARDIGRADE_KERNEL"))?;
    let initrd = asked.image.initrd();
    let initrd =
        initrd.ok_or_else(|| missing("initrd", "give --initrd or set TARDIGRADE_INITRD"))?;
    let (kernel, initrd) = (existing("kernel", &kernel)?, existing("initrd", &initrd)?);
    let mut findings = Vec::new();
    let told = match boot(&kernel, &initrd, asked.insecure)? {
        Ok(heard) => {
            findings.extend(of_the_guest(&heard));
            heard.config
        }
        Err(reason) => {
            // Where no VMM can be confined, none is started.
            let unconfined = !asked.insecure;
            let unconfined = unconfined.then(super::confinement).transpose()?;
            findings.extend(unconfined.filter(|finding| !finding.ok));
            findings.push(Finding {
                what: "boot".to_owned(),
                ok: false,
                needed: true,
                found: reason,
                advice: "see what its console said last; what is missing here may be why",
            });
            Err("it does not boot".to_owned())
        }
    };
    let beside = asked
        .kernel_config
        .clone()
        .unwrap_or_else(|| kernel.with_file_name(CONFIG_NAME));
    let (source, config) = match told {
        Ok(bytes) => (format!("the guest's {OWN_CONFIG}"), Ok(bytes)),
        Err(reason) => (
            // It is taken for this kernel's: nothing in it says so for sure.
            format!(
                "{}, for the guest does not tell ({reason})",
                beside.display()
            ),
            read(&beside).map_err(|error| format!("{}: {error}", beside.display())),
        ),
    };
    let config = config.and_then(|bytes| {
        KernelConfig::from_bytes(&bytes).map_err(|error| format!("{source}: {}", explain(&error)))
    });
    findings.extend(of_the_kernel(source, config));
    Ok(findings)
}

/// Boots a guest with no disk and no container, asks it, and removes it. The
/// inner error is what kept it from booting or answering.
fn boot(kernel: &Path, initrd: &Path, insecure: bool) -> Result<Result<Heard, String>, CliError> {
    let vmm = default_vmm()?;
    let paths = Paths::from_environment()?;
    let store = Store::open(&paths)?;
    // The VM gets files nobody changes under it. Held until it has them open.
    let (kernel, initrd) = (store.import(kernel)?, store.import(initrd)?);
    let size = std::fs::metadata(initrd.path()).map_err(CliError::io("stat the initrd"))?;
    // It lies in memory packed and unpacked at once.
    let initrd_mib = u32::try_from(size.len() >> 20).unwrap_or(u32::MAX);
    let memory_mib = initrd_mib.saturating_mul(3).saturating_add(MEMORY_MIB);
    let sandbox = SandboxId::random()?;
    let order = Order {
        sandbox: sandbox.clone(),
        given: now(),
        insecure,
        making: Making::Boot {
            spec: SandboxSpec {
                vmm,
                carrier: vmm.default_carrier(),
                network: NetworkKind::None,
                vcpus: 1,
                memory_mib,
                kernel: kernel.path().to_owned(),
                initrd: initrd.path().to_owned(),
                disks: Vec::new(),
                directories: Vec::new(),
                containers: Vec::new(),
            },
            kernel: kernel.sha256().clone(),
        },
    };
    let supervisors = Supervisors::of_this_program(paths);
    runtime()?.block_on(async {
        let mut interruption = pin!(interrupted());
        let made = tokio::select! {
            made = supervisors.make(&order) => made,
            // Its supervisor sees us gone, and takes it back.
            () = &mut interruption => return Err(CliError::Interrupted),
        };
        let handover = match made {
            Ok(handover) => handover,
            Err(error) => return Ok(Err(explain(&error))),
        };
        let heard = tokio::select! {
            heard = ask(&supervisors, handover) => heard,
            () = interruption => Err(CliError::Interrupted),
        };
        // Whatever it said, it is not kept.
        supervisors.remove(&sandbox).await?;
        match heard {
            Err(CliError::Interrupted) => Err(CliError::Interrupted),
            heard => Ok(heard.map_err(|error| explain(&error))),
        }
    })
}

async fn ask(supervisors: &Supervisors, handover: Handover) -> Result<Heard, CliError> {
    let failed = |call| move |source| CliError::Agent { call, source };
    let address = supervisors.agent(&handover.sandbox).await?;
    let link = Link::connect(&address, CALL_DEADLINE).await;
    let link = link.map_err(|source| CliError::Agent {
        call: "reach the agent",
        source: ClientError::Open {
            call: "connect",
            source,
        },
    })?;
    let client = AgentClient::connect(&link, CALL_DEADLINE)
        .await
        .map_err(failed("reach the agent"))?;
    let details = client
        .guest_details(CALL_DEADLINE)
        .await
        .map_err(failed("ask for the guest's details"))?;
    let config = tokio::time::timeout(CALL_DEADLINE, own_config(&client)).await;
    Ok(Heard {
        handover,
        details,
        config: config.unwrap_or_else(|_| Err(format!("no answer within {CALL_DEADLINE:?}"))),
    })
}

/// What a program of the image reads in the guest itself: one with nothing but
/// the agent has none, and its policy may not allow it.
async fn own_config(client: &AgentClient) -> Result<Vec<u8>, String> {
    let config = ExecConfig {
        args: vec!["/bin/cat".to_owned(), OWN_CONFIG.to_owned()],
        ..ExecConfig::default()
    };
    let stream = client.exec(&config, CALL_DEADLINE).await;
    let mut stream = stream.map_err(|error| explain(&error))?;
    let (mut bytes, mut complaint) = (Vec::new(), Vec::new());
    loop {
        let kept = match stream.next_event().await {
            Ok(ExecEvent::Stdout(data)) => (&mut bytes, data),
            Ok(ExecEvent::Stderr(data)) => (&mut complaint, data),
            Ok(ExecEvent::Exit(0)) => return Ok(bytes),
            Ok(ExecEvent::Exit(status)) => {
                let said = complaint.trim_ascii().escape_ascii();
                return Err(format!("/bin/cat ended with {status}: {said}"));
            }
            Ok(ExecEvent::Error(reason)) => return Err(reason),
            Err(error) => return Err(explain(&error)),
        };
        if kept.0.len() + kept.1.len() > MAX_CONFIG_BYTES {
            return Err(format!(
                "{OWN_CONFIG} has more than {MAX_CONFIG_BYTES} bytes"
            ));
        }
        kept.0.extend(kept.1);
    }
}

fn of_the_guest(heard: &Heard) -> [Finding; 3] {
    let Heard {
        handover, details, ..
    } = heard;
    let seconds =
        Duration::from_nanos(handover.moments.agent.saturating_sub(handover.moments.vcpu));
    let list = |names: &[String]| match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let finding = |what: &str, ok, found, advice| Finding {
        what: what.to_owned(),
        ok,
        needed: true,
        found,
        advice,
    };
    [
        finding(
            "boot",
            true,
            format!(
                "agent {} after {:.2} s by {}",
                details.agent_version,
                seconds.as_secs_f64(),
                handover.accelerator
            ),
            "",
        ),
        Finding {
            what: "confinement".to_owned(),
            ok: handover.confined != Confined::Insecure,
            needed: false,
            found: match handover.confined {
                Confined::Insecure => "none, as was asked for".to_owned(),
                Confined::Namespaces => "mounts, processes and network of its own".to_owned(),
                Confined::User { uid } => {
                    format!("mounts, processes and network of its own, and user {uid}")
                }
            },
            advice: "leave --insecure out",
        },
        finding(
            "agent",
            details.init_daemon,
            format!(
                "storage: {}; features: {}",
                list(&details.storage_drivers),
                list(&details.extra_features)
            ),
            "it is not the guest's first process: is this an initrd of rootfs-builder?",
        ),
    ]
}

/// What a kernel lacks for what, and what it has and must not have.
fn of_the_kernel(source: String, config: Result<KernelConfig, String>) -> Vec<Finding> {
    let known = config.is_ok();
    let mut findings = vec![Finding {
        what: "kernel configuration".to_owned(),
        ok: known,
        needed: true,
        found: config.as_ref().err().cloned().unwrap_or(source),
        advice: "give --kernel-config",
    }];
    let Ok(config) = config else { return findings };
    let report = kernel_config::check(&config);
    let lacking = |requirement: &Requirement, needed| Finding {
        what: format!("CONFIG_{}", requirement.option),
        ok: false,
        needed,
        found: format!("not there: {}", requirement.why),
        advice: "build a kernel that has it: docs/guest-image.md",
    };
    findings.extend(report.missing.iter().map(|each| lacking(each, true)));
    findings.extend(
        report
            .forbidden
            .iter()
            .map(|Forbidden { option, why, .. }| Finding {
                what: format!("CONFIG_{option}"),
                ok: false,
                needed: true,
                found: format!("built in: {why}"),
                advice: "build a kernel without it, or with it as a module",
            }),
    );
    findings.extend(
        report
            .optional_missing
            .iter()
            .map(|each| lacking(each, false)),
    );
    findings
}

/// A configuration's file, of bounded size.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(MAX_CONFIG_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_config::requirement::{FORBIDDEN, GUEST};
    use kernel_config::{Necessity, Presence};

    /// All that is needed, as modules where that will do.
    fn config(without: &str, further: &str) -> KernelConfig {
        let lines = GUEST.iter().filter(|each| each.option != without);
        let line = |each: &Requirement| {
            let modular = matches!(each.presence, Presence::BuiltInOrModules(_));
            format!(
                "CONFIG_{}={}\n",
                each.option,
                if modular { "m" } else { "y" }
            )
        };
        let text: String = lines.map(line).chain([further.to_owned()]).collect();
        text.parse().unwrap()
    }

    fn named(config: KernelConfig) -> Vec<Finding> {
        let mut findings = of_the_kernel("a file".to_owned(), Ok(config));
        let first = findings.remove(0);
        assert!(first.ok && first.found == "a file", "{first:?}");
        findings
    }

    #[test]
    fn each_option_a_kernel_lacks_is_named_with_what_it_is_for() {
        assert!(named(config("", "CONFIG_X=y\n")).is_empty());
        for each in GUEST {
            let findings = named(config(each.option, "CONFIG_X=y\n"));
            if each.necessity == Necessity::Dependency {
                assert!(findings.is_empty(), "{findings:?}");
                continue;
            }
            let [finding] = findings.as_slice() else {
                panic!("{}: {findings:?}", each.option)
            };
            assert_eq!(finding.what, format!("CONFIG_{}", each.option));
            assert!(finding.found.contains(each.why) && !finding.ok);
            assert_eq!(finding.needed, each.necessity == Necessity::Required);
        }
    }

    #[test]
    fn what_no_guest_may_have_is_needed_to_be_gone() {
        for each in FORBIDDEN {
            let findings = named(config("", &format!("CONFIG_{}=y\n", each.option)));
            let [finding] = findings.as_slice() else {
                panic!("{findings:?}")
            };
            assert!(finding.needed && finding.found.contains(each.why));
        }
    }

    #[test]
    fn a_kernel_nobody_knows_of_is_not_called_right() {
        let findings = of_the_kernel("a file".to_owned(), Err("no such file".to_owned()));
        let [finding] = findings.as_slice() else {
            panic!("{findings:?}")
        };
        assert!(!finding.ok && finding.needed && finding.found == "no such file");
    }
}
