//! The memory agent: takes memory back from containers that do not need it, and
//! has free memory put together, each once a period of its own.
//!
//! It is there where the command line asks for it. It works beside the agent's
//! one thread, in pieces, and not at all from a Quiesce to its Release: a freeze
//! waits for the piece under way, and a compaction is killed for it.

use super::Agent;
use super::error::{ServiceError, with_causes};
use super::recipes::blocking;
use authz::Authorized;
use guest_runtime::container::ProcessSpec;
use guest_runtime::memory::{
    self, COMPACT_WORD, Compaction, CompactionChange, CompactionSettings, MemoryError, OutOfRange,
    PRESSURE, PressureAlarm, Reading, Reclaim, ReclaimChange, ReclaimSettings,
};
use guest_runtime::process::{ExitStatus, Process};
use slog::{debug, info, warn};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const SIGKILL: i32 = 9;
const UNNUMBERED: i32 = memory::UNNUMBERED as i32;
/// The agent itself, for a process of its: a copy of what it was started from.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// How long a killed compaction may take to be gone: the kernel looks for the
/// signal between two blocks of pages. One that hangs there for longer is left
/// behind, in the workload's cgroup as all that the agent starts in the guest. It
/// does not stand still when that is frozen: until it is gone every freeze comes
/// to its deadline and is refused, and no compaction is begun.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Other settings for the reclaim of the workload's memory.
#[derive(Debug)]
pub(crate) struct SetMemoryReclaim {
    pub(crate) change: ReclaimChange,
}

/// Other settings for the compaction of the guest's memory.
#[derive(Debug)]
pub(crate) struct SetMemoryCompaction {
    pub(crate) change: CompactionChange,
}

/// What each of the two jobs goes by, or why it cannot be done.
#[derive(Debug)]
pub(crate) struct MemoryAgent {
    reclaim: Result<watch::Sender<ReclaimSettings>, MemoryError>,
    compaction: Result<watch::Sender<CompactionSettings>, MemoryError>,
    /// Until the job begins.
    reclaimer: Mutex<Option<Reclaim>>,
}

impl MemoryAgent {
    /// One for the workload below the cgroup `workload`, in the hierarchy that
    /// is mounted at `hierarchy`.
    pub(crate) fn open(
        hierarchy: &Path,
        workload: &Path,
        reclaim: ReclaimSettings,
        compaction: CompactionSettings,
    ) -> Self {
        let (reclaimer, reclaim) = match Reclaim::open(hierarchy, workload) {
            Ok(reclaimer) => (Some(reclaimer), Ok(watch::Sender::new(reclaim))),
            Err(error) => (None, Err(error)),
        };
        let compaction = memory::compaction_is_there().map(|()| watch::Sender::new(compaction));
        Self {
            reclaim,
            compaction,
            reclaimer: Mutex::new(reclaimer),
        }
    }
}

impl Agent {
    /// Changes the settings that are named; the others stay.
    pub(crate) fn set_memory_reclaim(
        &self,
        request: Authorized<SetMemoryReclaim>,
    ) -> Result<(), ServiceError> {
        let change = request.into_inner().change;
        let settings = self.memory_agent().map(|agent| &agent.reclaim)?;
        merge(settings, |settings| settings.change(&change))
    }

    /// As [`Agent::set_memory_reclaim`].
    pub(crate) fn set_memory_compaction(
        &self,
        request: Authorized<SetMemoryCompaction>,
    ) -> Result<(), ServiceError> {
        let change = request.into_inner().change;
        let settings = self.memory_agent().map(|agent| &agent.compaction)?;
        merge(settings, |settings| settings.change(&change))
    }

    fn memory_agent(&self) -> Result<&MemoryAgent, ServiceError> {
        let agent = self.memory_agent.as_ref();
        agent.ok_or(ServiceError::MemoryAgentDisabled)
    }

    /// Begins the jobs, if they were asked for; what cannot be done is logged,
    /// and told to whoever changes its settings.
    pub(crate) fn start_memory_agent(self: &Arc<Self>) {
        let Some(memory_agent) = &self.memory_agent else {
            return;
        };
        match &memory_agent.reclaim {
            Ok(settings) => {
                let reclaimer = memory_agent.reclaimer.lock();
                let reclaimer = reclaimer.unwrap_or_else(PoisonError::into_inner).take();
                if let Some(reclaimer) = reclaimer {
                    info!(self.log, "memory is reclaimed"; "by" => reclaimer.by());
                    tokio::spawn(
                        self.clone()
                            .reclaim_for_ever(reclaimer, settings.subscribe()),
                    );
                }
            }
            Err(error) => {
                warn!(self.log, "memory is not reclaimed"; "error" => with_causes(error));
            }
        }
        match &memory_agent.compaction {
            Ok(settings) => {
                info!(self.log, "memory is compacted");
                tokio::spawn(self.clone().compact_for_ever(settings.subscribe()));
            }
            Err(error) => {
                warn!(self.log, "memory is not compacted"; "error" => with_causes(error));
            }
        }
    }

    async fn reclaim_for_ever(
        self: Arc<Self>,
        reclaimer: Reclaim,
        mut settings: watch::Receiver<ReclaimSettings>,
    ) {
        let reclaimer = Arc::new(Mutex::new(reclaimer));
        let due = |settings: &ReclaimSettings| (!settings.disabled).then_some(settings.period);
        let mut last = Instant::now();
        while let Some(settings) = next_period(&mut settings, due, &mut last).await {
            if let Err(error) = self.reclaim(&reclaimer, settings).await {
                self.log_failure("reclaim memory", &error);
            }
        }
    }

    /// One round, as a recipe: a freeze waits for it, and it ends for a freeze.
    async fn reclaim(
        self: &Arc<Self>,
        reclaimer: &Arc<Mutex<Reclaim>>,
        settings: ReclaimSettings,
    ) -> Result<(), ServiceError> {
        self.lifecycle.require_running("reclaim memory")?;
        let containers: Vec<PathBuf> = self.registry.all().iter().map(outer).collect();
        let (agent, reclaimer) = (Arc::clone(self), Arc::clone(reclaimer));
        let round = move || {
            let mut reclaimer = reclaimer.lock().unwrap_or_else(PoisonError::into_inner);
            reclaimer.round(&settings, &containers, &|| agent.lifecycle.is_running())
        };
        let log = self.log.clone();
        let recipe = async move {
            let reclaimed = blocking(round).await?.map_err(failed("reclaim memory"))?;
            debug!(log, "reclaimed memory"; "seen" => reclaimed.seen, "from" => reclaimed.taken_from);
            Ok(())
        };
        self.recipes.run(recipe).await
    }

    async fn compact_for_ever(self: Arc<Self>, mut settings: watch::Receiver<CompactionSettings>) {
        let due = |settings: &CompactionSettings| (!settings.disabled).then_some(settings.period);
        let mut last = Instant::now();
        let compactor = Arc::new(tokio::sync::Mutex::new(Compactor::default()));
        // How the first period begins.
        let mut outcome = self.compact(&compactor, None).await;
        loop {
            if let Err(error) = outcome {
                self.log_failure("compact memory", &error);
            }
            let Some(settings) = next_period(&mut settings, due, &mut last).await else {
                return;
            };
            outcome = self.compact(&compactor, Some(settings)).await;
        }
    }

    /// What there is to be done after a period, as a recipe: a freeze waits for
    /// it, and it ends for a freeze. Without settings nothing but to look at how
    /// the next period begins.
    async fn compact(
        self: &Arc<Self>,
        compactor: &Arc<tokio::sync::Mutex<Compactor>>,
        settings: Option<CompactionSettings>,
    ) -> Result<(), ServiceError> {
        let (agent, compactor) = (Arc::clone(self), Arc::clone(compactor));
        let recipe = async move {
            let mut compactor = compactor.lock().await;
            agent.compact_if_due(&mut compactor, settings).await
        };
        self.recipes.run(recipe).await
    }

    async fn compact_if_due(
        &self,
        compactor: &mut Compactor,
        settings: Option<CompactionSettings>,
    ) -> Result<(), ServiceError> {
        // No period is judged by a reading from before a freeze, nor by one from
        // before another that failed.
        let before = compactor.pressure.take();
        if !self.lifecycle.is_running() {
            return Ok(());
        }
        let now = pressure().await?;
        compactor.pressure = Some(now);
        let (Some(before), Some(settings)) = (before, settings) else {
            return Ok(());
        };
        if now.exceeds(&before, settings.period_pressure_limit) || compactor.is_stuck() {
            return Ok(());
        }
        let small = in_small_pieces(settings.order).await?;
        if !compactor.compaction.is_due(small, &settings) {
            return Ok(());
        }
        let (ended, process) = self
            .compact_once(settings.pressure_limit, settings.time_max)
            .await?;
        let has_ended = process.has_ended();
        compactor.last = Some(process);
        if !has_ended {
            return Err(ServiceError::Deadline {
                call: "kill a compaction",
            });
        }
        // A freeze does not wait for a count as well: it is taken to have moved
        // nothing.
        let left = if self.lifecycle.is_running() {
            in_small_pieces(settings.order).await?
        } else {
            small
        };
        compactor.compaction.ended(left);
        debug!(self.log, "compacted memory"; "small" => small, "left" => left, "ended" => ended);
        Ok(())
    }

    /// Has a process do it, and kills that when it takes too long, when others
    /// wait for memory, and for a freeze. Which of them it was, and the process,
    /// which has ended unless it hangs in the kernel.
    async fn compact_once(
        &self,
        pressure_limit: u8,
        time_max: Duration,
    ) -> Result<(&'static str, Process), ServiceError> {
        self.lifecycle.require_running("compact memory")?;
        let alarm = blocking(move || PressureAlarm::set(pressure_limit)).await?;
        let alarm = alarm.map_err(failed("watch for pressure"))?;
        let outcome = self.compact_unless(&alarm, time_max).await;
        blocking(move || drop(alarm)).await?;
        outcome
    }

    async fn compact_unless(
        &self,
        alarm: &PressureAlarm,
        time_max: Duration,
    ) -> Result<(&'static str, Process), ServiceError> {
        let mut process = ProcessSpec::guest_root();
        process.args = [OWN_PROGRAM, COMPACT_WORD].map(String::from).into();
        let started = self.launcher()?.exec_in_guest(&process, false).await;
        let compactor = started
            .map_err(|source| ServiceError::System {
                call: "start a compaction",
                source: std::io::Error::other(source),
            })?
            .process;
        debug!(self.log, "compacting memory"; "pid" => compactor.pid());
        let ended = tokio::select! {
            status = compactor.wait() => compacted(status)?,
            () = alarm.rings() => "pressure",
            () = tokio::time::sleep(time_max) => "time",
            () = self.lifecycle.quiesce_begins() => "quiesce",
        };
        // It may have ended by itself.
        let _ = compactor.signal(SIGKILL);
        let _ = tokio::time::timeout(KILL_DEADLINE, compactor.wait()).await;
        Ok((ended, compactor))
    }

    fn log_failure(&self, job: &'static str, error: &ServiceError) {
        match error {
            // A freeze was faster.
            ServiceError::WrongState { .. } => {
                debug!(self.log, "not now"; "job" => job, "error" => %error);
            }
            error => warn!(self.log, "failed"; "job" => job, "error" => with_causes(error)),
        }
    }
}

/// What the job knows from one period to the next.
#[derive(Debug, Default)]
struct Compactor {
    compaction: Compaction,
    /// How the period began; unknown after a freeze, and if it could not be read.
    pressure: Option<Reading>,
    /// The process that did it last.
    last: Option<Process>,
}

impl Compactor {
    /// Whether the last one was killed and hangs in the kernel: another would
    /// only join it.
    fn is_stuck(&self) -> bool {
        self.last.as_ref().is_some_and(|last| !last.has_ended())
    }
}

/// What the process that did it has told by its end.
fn compacted(status: ExitStatus) -> Result<&'static str, ServiceError> {
    let source = match status {
        ExitStatus::Exited(0) => return Ok("whole"),
        ExitStatus::Exited(UNNUMBERED) => std::io::Error::other("an error without a number"),
        ExitStatus::Exited(errno) => std::io::Error::from_raw_os_error(errno),
        other => std::io::Error::other(format!("the process ended with {}", other.code())),
    };
    Err(ServiceError::System {
        call: "have the kernel compact memory",
        source,
    })
}

async fn pressure() -> Result<Reading, ServiceError> {
    let reading = blocking(|| Reading::of(Path::new(PRESSURE))).await?;
    reading.map_err(failed("read the pressure"))
}

async fn in_small_pieces(order: u32) -> Result<u64, ServiceError> {
    let pages = blocking(move || Compaction::in_small_pieces(order)).await?;
    pages.map_err(failed("count free memory"))
}

fn outer(container: &Arc<super::container::Container>) -> PathBuf {
    container.cgroup.outer().into()
}

/// Waits until a period has passed since the last one, by the settings as they
/// are then; while there is none to wait for, until there is. None when nobody
/// can change them any more.
async fn next_period<T: Clone>(
    settings: &mut watch::Receiver<T>,
    period: impl Fn(&T) -> Option<Duration>,
    last: &mut Instant,
) -> Option<T> {
    loop {
        let current = settings.borrow_and_update().clone();
        let passed = async {
            match period(&current) {
                Some(period) => tokio::time::sleep_until(*last + period).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = settings.changed() => changed.ok()?,
            () = passed => {
                *last = Instant::now();
                return Some(current);
            }
        }
    }
}

fn merge<T: Clone>(
    settings: &Result<watch::Sender<T>, MemoryError>,
    change: impl FnOnce(&mut T) -> Result<(), OutOfRange>,
) -> Result<(), ServiceError> {
    let sender = settings
        .as_ref()
        .map_err(|error| ServiceError::MemoryAgentUnavailable {
            reason: with_causes(error),
        })?;
    let mut outcome = Ok(());
    sender.send_if_modified(|settings| {
        outcome = change(settings);
        outcome.is_ok()
    });
    outcome.map_err(|error| ServiceError::System {
        call: "change the settings",
        source: std::io::Error::other(error),
    })
}

fn failed(call: &'static str) -> impl FnOnce(MemoryError) -> ServiceError {
    move |source| ServiceError::System {
        call,
        source: std::io::Error::other(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Settings = Option<Duration>;

    #[test]
    fn a_compaction_tells_by_its_end_what_became_of_it() {
        assert_eq!(compacted(ExitStatus::Exited(0)).unwrap(), "whole");
        for (status, words) in [
            (ExitStatus::Exited(12), "os error 12"),
            (ExitStatus::Exited(UNNUMBERED), "an error without a number"),
            (ExitStatus::Signalled(SIGKILL), "the process ended with 137"),
        ] {
            let error = compacted(status).unwrap_err();
            let text = with_causes(&error);
            assert!(text.contains(words), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_period_counts_from_the_last_one_whatever_is_changed_meanwhile() {
        let second = Duration::from_secs(1);
        let sender = watch::Sender::new(Some(10 * second));
        let mut settings = sender.subscribe();
        let (begun, mut last) = (Instant::now(), Instant::now());
        let same = |settings: &Settings| *settings;
        next_period(&mut settings, same, &mut last).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 10);
        // Off, then on again with less time: after that, and not twice.
        let changes = async {
            tokio::time::sleep(2 * second).await;
            sender.send_replace(None);
            tokio::time::sleep(20 * second).await;
            sender.send_replace(Some(5 * second));
        };
        let (_, next) = tokio::join!(changes, next_period(&mut settings, same, &mut last));
        assert_eq!(next, Some(Some(5 * second)));
        assert_eq!(begun.elapsed().as_secs(), 32);
        next_period(&mut settings, same, &mut last).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 37);
        drop(sender);
        assert_eq!(next_period(&mut settings, same, &mut last).await, None);
    }
}
