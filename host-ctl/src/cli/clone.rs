//! `clone` and `run`: sandboxes are made, each by a supervisor of its own, and
//! reported in a row each.

use super::arguments::{CloneArguments, CloneMemory, RunArguments};
use super::machine::share;
use super::ready::Readiness;
use super::text::{Table, escape};
use super::{CliError, Context, runtime};
use crate::config::{SandboxId, TemplateDigest};
use crate::host::explain;
use crate::store::{LEAKS, Store};
use crate::supervisor::client::{ClientError, Supervisors};
use crate::supervisor::order::{Handover, Making, Order};
use crate::timeline::{Report, Timeline, now};
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Sandboxes made at once for each CPU: more than one, because a sandbox waits
/// for its VMM and its guest. Many more would only wait for each other, each
/// with its deadlines running.
const AT_ONCE_PER_CPU: usize = 4;

/// What `clone` prints.
#[derive(Debug, Serialize)]
struct Clones {
    template: TemplateDigest,
    /// From the program's begin to the last clone.
    wall_ms: f64,
    /// In the order they were ready.
    clones: Vec<Row>,
    /// What was asked for and is not there, or not ready.
    failures: Vec<Failure>,
}

/// A sandbox that is there.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    handover: Handover,
    times: Times,
}

/// Since the program's begin, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Times {
    t_vmm_ms: f64,
    t_vcpu_ms: f64,
    t_agent_ms: f64,
    t_released_ms: f64,
    /// When the readiness command had succeeded, if one was to be run.
    t_app_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Failure {
    sandbox: SandboxId,
    error: String,
}

pub(super) fn clone(context: &Context, arguments: &CloneArguments) -> Result<ExitCode, CliError> {
    let timeline = Timeline::new();
    timeline.record("start of host-ctl", context.begun, now());
    let mut store = Store::open(context.paths())?;
    if arguments.share {
        store = store.shared();
    }
    let digest = {
        let _span = timeline.step("clone: resolve the template");
        store.resolve(&arguments.template)?
    };
    let wish = Wish {
        making: Making::Clone {
            template: digest.clone(),
            memory: arguments.memory.map(CloneMemory::mode),
            share: arguments.share,
        },
        insecure: arguments.insecure,
        readiness: if arguments.ready {
            Some(readiness(&store, &digest)?)
        } else {
            None
        },
    };
    let (clones, failures) = make_all(context, &wish, arguments.count.into(), &timeline)?;
    let outcome = Clones {
        template: digest,
        wall_ms: milliseconds(now().saturating_sub(context.begun)),
        clones,
        failures,
    };
    context.print(&outcome, |outcome| describe(outcome, arguments.timings))?;
    Ok(if outcome.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The readiness command a template was built with.
fn readiness(store: &Store, digest: &TemplateDigest) -> Result<Readiness, CliError> {
    let template = store.load(digest)?;
    let requirements = &template.manifest().requirements;
    let container = requirements.containers.first();
    match (container, &requirements.warm_up.ready) {
        (Some(container), Some(args)) => Ok(Readiness {
            container: container.id.clone(),
            args: args.clone(),
        }),
        _ => Err(CliError::Missing {
            what: format!("template {digest} has no readiness command"),
            hint: "leave --ready out, or build it with --ready COMMAND",
        }),
    }
}

pub(super) fn run(context: &Context, arguments: &RunArguments) -> Result<ExitCode, CliError> {
    let timeline = Timeline::new();
    timeline.record("start of host-ctl", context.begun, now());
    let mut spec = arguments.machine.spec(Some(&arguments.container))?;
    share(&mut spec, &arguments.directories)?;
    let store = Store::open(context.paths())?;
    let span = timeline.step("run: import the images");
    // The VM gets files nobody changes under it. Held until it has them open.
    let kernel = store.import(&spec.kernel)?;
    let initrd = store.import(&spec.initrd)?;
    let disks = spec.disks.iter().flatten().map(|disk| store.import(disk));
    let disks = disks.collect::<Result<Vec<_>, _>>()?;
    drop(span);
    spec.kernel = kernel.path().to_owned();
    spec.initrd = initrd.path().to_owned();
    spec.disks = disks
        .iter()
        .map(|disk| Some(disk.path().to_owned()))
        .collect();
    let wish = Wish {
        making: Making::Boot {
            spec,
            kernel: kernel.sha256().clone(),
        },
        insecure: arguments.machine.insecure,
        readiness: arguments.ready.as_ref().map(|words| Readiness {
            container: arguments.container.id.clone(),
            args: words.0.clone(),
        }),
    };
    let (rows, failures) = make_all(context, &wish, 1, &timeline)?;
    for row in &rows {
        context.print(row, |row| {
            let timings = if arguments.timings {
                timings(row)
            } else {
                String::new()
            };
            tables(std::slice::from_ref(row)) + &timings
        })?;
    }
    match failures.into_iter().next() {
        None => Ok(ExitCode::SUCCESS),
        Some(Failure { sandbox, error }) => Err(CliError::Supervisor(ClientError::Failed {
            id: sandbox,
            reason: error,
        })),
    }
}

/// What is to be made, and when it is ready.
struct Wish {
    making: Making,
    insecure: bool,
    readiness: Option<Readiness>,
}

/// Makes `count` sandboxes at once.
fn make_all(
    context: &Context,
    wish: &Wish,
    count: usize,
    timeline: &Timeline,
) -> Result<(Vec<Row>, Vec<Failure>), CliError> {
    let begun = now();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let room = Arc::new(Semaphore::new(AT_ONCE_PER_CPU * cpus));
    let ids = (0..count)
        .map(|_| SandboxId::random())
        .collect::<Result<Vec<_>, _>>()?;
    let runtime = runtime()?;
    timeline.record("start the runtime", begun, now());
    let prepared = timeline.report();
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for sandbox in ids {
            let (supervisors, room) = (context.supervisors.clone(), Arc::clone(&room));
            let (making, readiness) = (wish.making.clone(), wish.readiness.clone());
            let order = Order {
                sandbox,
                given: 0,
                insecure: wish.insecure,
                making,
            };
            tasks.spawn(async move {
                let made = make_one(&supervisors, order, &room).await;
                let ready = match (&made, readiness) {
                    (Ok((handover, _)), Some(readiness)) => {
                        Some(readiness.wait(&supervisors, &handover.sandbox).await)
                    }
                    _ => None,
                };
                (made, ready)
            });
        }
        // A task that panicked has nothing to say; its sandbox was taken back
        // when its end of the pipe was closed.
        while let Some(joined) = tasks.join_next().await {
            let Ok((made, ready)) = joined else { continue };
            let (handover, own) = match made {
                Ok(made) => made,
                Err(failure) => {
                    failures.push(failure);
                    continue;
                }
            };
            let ready = ready.transpose().unwrap_or_else(|error| {
                failures.push(Failure {
                    sandbox: handover.sandbox.clone(),
                    error: format!("readiness command: {error}"),
                });
                None
            });
            rows.push(row(handover, &[&prepared, &own], ready, context.begun));
        }
    });
    Ok((rows, failures))
}

async fn make_one(
    supervisors: &Supervisors,
    mut order: Order,
    room: &Semaphore,
) -> Result<(Handover, Report), Failure> {
    let timeline = Timeline::new();
    let _place = {
        let _span = timeline.span("wait for room on the host");
        room.acquire().await
    };
    let sandbox = order.sandbox.clone();
    order.given = now();
    crate::timeline::step("clone: start the supervisor");
    match supervisors.make(&order).await {
        Ok(handover) => {
            let handed = handover.timeline.spans.iter().map(|span| span.end).max();
            timeline.record("read the supervisor's report", handed.unwrap_or(0), now());
            Ok((handover, timeline.report()))
        }
        Err(error) => Err(Failure {
            sandbox,
            error: explain(&error),
        }),
    }
}

/// Puts the timelines of both processes together.
fn row(mut handover: Handover, before: &[&Report], ready: Option<u64>, begun: u64) -> Row {
    let whole = Timeline::new();
    for report in before {
        whole.absorb(report);
    }
    whole.absorb(&handover.timeline);
    handover.timeline = whole.report();
    let since = |moment: u64| milliseconds(moment.saturating_sub(begun));
    let moments = handover.moments;
    Row {
        times: Times {
            t_vmm_ms: since(moments.vmm),
            t_vcpu_ms: since(moments.vcpu),
            t_agent_ms: since(moments.agent),
            t_released_ms: since(moments.released),
            t_app_ms: ready.map(since),
        },
        handover,
    }
}

fn describe(outcome: &Clones, timed: bool) -> String {
    let mut text = tables(&outcome.clones);
    if timed {
        text.extend(outcome.clones.iter().map(timings));
    }
    // Writing to a String cannot fail.
    for failure in &outcome.failures {
        let error = escape(&failure.error);
        let _ = writeln!(text, "{}: failed: {error}", failure.sandbox);
    }
    let (ready, failed) = (outcome.clones.len(), outcome.failures.len());
    let wall = outcome.wall_ms;
    let _ = writeln!(text, "{ready} ready, {failed} failed, {wall:.1} ms");
    text
}

fn tables(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("{}\n{}\n", timeline_table(rows), uniqueness_table(rows));
    for Row { handover, .. } in rows {
        if let Some(reason) = &handover.fallback {
            let (id, reason) = (&handover.sandbox, escape(reason));
            let _ = writeln!(text, "{id}: cold boot instead, because {reason}");
        }
        if let Some(owner) = handover.shared_with {
            let id = &handover.sandbox;
            let _ = writeln!(
                text,
                "{id}: has in common with clones of uid {owner}: {LEAKS}"
            );
        }
    }
    text
}

fn timings(row: &Row) -> String {
    format!(
        "{}\n{}\n",
        row.handover.sandbox,
        row.handover.timeline.table()
    )
}

/// When each got where, in milliseconds since the program's begin.
fn timeline_table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "SANDBOX",
        "HOW",
        "ACCEL",
        "T_VMM",
        "T_VCPU",
        "T_AGENT",
        "T_RELEASED",
        "T_APP",
    ]);
    for Row { handover, times } in rows {
        let how = if handover.booted { "boot" } else { "clone" };
        let cell = |time: f64| format!("{time:.1} ms");
        let app = times.t_app_ms.map_or_else(|| "-".to_owned(), cell);
        table.row([
            handover.sandbox.to_string(),
            how.to_owned(),
            handover.accelerator.to_string(),
            cell(times.t_vmm_ms),
            cell(times.t_vcpu_ms),
            cell(times.t_agent_ms),
            cell(times.t_released_ms),
            app,
        ]);
    }
    table
}

/// Who each is.
fn uniqueness_table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "SANDBOX",
        "HOSTNAME",
        "UUID",
        "MACHINE-ID",
        "BOOT_ID",
        "CLOCK ERROR",
    ]);
    for Row { handover, .. } in rows {
        let own = || "its own".to_owned();
        let identity = handover.identity.as_ref();
        table.row([
            handover.sandbox.to_string(),
            identity.map_or_else(|| handover.sandbox.vm_name(), |who| who.hostname.clone()),
            handover.uuid.to_string(),
            identity.map_or_else(own, |who| who.machine_id.clone()),
            identity.map_or_else(own, |who| who.boot_id.clone()),
            handover.clock_error_nanos.map_or_else(
                || "-".to_owned(),
                |bound| format!("<= {:.2} ms", milliseconds(bound)),
            ),
        ]);
    }
    table
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a double holds 104 days of nanoseconds exactly"
)]
fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Moments;
    use crate::sandbox::identity::{Uuid, draw_identity};
    use crate::sandbox::limits::Limited;

    fn some_row(reason: Option<&str>) -> Row {
        let sandbox = SandboxId::random().unwrap();
        let mut identity = draw_identity(&sandbox).unwrap();
        identity.hostname = "evil\x1b[2J".into();
        let handover = Handover {
            uuid: Uuid::draw().unwrap(),
            identity: Some(identity),
            generation: None,
            booted: reason.is_some(),
            fallback: reason.map(str::to_owned),
            accelerator: hypervisor::Accelerator::Tcg,
            addresses: None,
            clock_error_nanos: Some(1_500_000),
            round_trip_nanos: Some(1_000_000),
            not_unique: Vec::new(),
            moments: Moments {
                vmm: 2_000_000,
                vcpu: 3_000_000,
                agent: 4_000_000,
                released: 5_000_000,
            },
            timeline: Report::default(),
            sandbox,
            confined: hypervisor::Confined::Namespaces,
            limited: Limited::Nothing("here".to_owned()),
            shared_with: None,
        };
        row(handover, &[], None, 1_000_000)
    }

    fn some_outcome(clones: Vec<Row>) -> Clones {
        Clones {
            template: "a".repeat(64).parse().unwrap(),
            wall_ms: 10.0,
            clones,
            failures: Vec::new(),
        }
    }

    #[test]
    fn times_count_from_the_programs_begin() {
        let times = some_row(None).times;
        assert!((times.t_vmm_ms - 1.0).abs() < 1e-9);
        assert!((times.t_released_ms - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_cold_boot_in_place_of_a_clone_says_why() {
        let text = describe(
            &some_outcome(vec![some_row(Some("memory is missing"))]),
            true,
        );
        assert!(
            text.contains("cold boot instead, because memory is missing"),
            "{text}"
        );
        assert!(text.contains("1 ready, 0 failed"), "{text}");
        assert!(text.contains("<= 1.50 ms"), "{text}");
    }

    #[test]
    fn a_clone_of_another_owners_template_says_what_that_leaks() {
        let mut row = some_row(None);
        row.handover.shared_with = Some(1234);
        let text = describe(&some_outcome(vec![row]), false);
        assert!(text.contains("uid 1234"), "{text}");
        for leak in ["cache", "addresses of kernel", "canaries", "tcp sequence"] {
            assert!(text.contains(leak), "{leak}: {text}");
        }
    }

    #[test]
    fn a_guests_words_do_nothing_to_a_terminal() {
        let text = describe(&some_outcome(vec![some_row(None)]), false);
        assert!(!text.contains('\x1b'), "{text}");
        assert!(text.contains("evil\\u{1b}[2J"), "{text}");
    }

    #[test]
    fn json_has_what_a_script_needs() {
        let json = serde_json::to_value(some_outcome(vec![some_row(None)])).unwrap();
        let row = &json["clones"][0];
        for field in [
            "sandbox", "uuid", "identity", "times", "timeline", "fallback",
        ] {
            assert!(row.get(field).is_some(), "{field}: {row}");
        }
        assert_eq!(row["accelerator"], "tcg");
    }
}
