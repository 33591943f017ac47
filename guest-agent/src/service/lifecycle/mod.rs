//! Quiesce, Thaw and Release: the workload is frozen from the first to the
//! last, and nothing of it ever runs with borrowed entropy, clock or address.

mod copied;
mod state;

pub(crate) use state::{Lifecycle, Seal};

use super::error::ServiceError;
use super::identity::{Generation, Identity, random_bytes};
use super::recipes::blocking;
use super::recipes::detached;
use super::secret::Secret;
use super::{Agent, network};
use authz::Authorized;
use futures::FutureExt;
use guest_runtime::{clock, hostname};
use state::BegunRelease;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The least a thaw takes, in bytes of host entropy.
pub(crate) const ENTROPY_MINIMUM: usize = 32;
/// How long the workload may take to freeze, unless the request says.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
/// How long one after-thaw hook may take, unless the request says.
const HOOK_DEADLINE: Duration = Duration::from_secs(10);
/// Memory a thaw finds ready, bytes; it takes less than half of it.
const HEAP_RESERVE: usize = 256 * 1024;
/// What no thaw can make unique, told in every receipt; a client takes names
/// of up to 64 bytes.
const NOT_UNIQUE: [&str; 6] = [
    "random values drawn already, at most one in flight a thread",
    "random generators in the memory of processes",
    "address space layout and stack canaries",
    "secrets in the memory of processes",
    "established connections",
    "routing rules and packet filters",
];
/// Files a thaw may write; everything else is refused.
const THAW_FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// What the memory is frozen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A template: its warm page cache serves every clone.
    Template,
    /// Written out whole: caches are dropped first.
    Suspend,
}

/// The name of one freeze; the Thaw of every copy must know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuiesceId(pub(crate) [u8; 16]);

/// A request to freeze.
#[derive(Debug)]
pub(crate) struct Quiesce {
    pub(crate) purpose: Purpose,
    pub(crate) freeze_timeout: Option<Duration>,
}

/// The outcome of a freeze.
#[derive(Debug)]
pub(crate) struct Quiesced {
    pub(crate) id: QuiesceId,
    /// Whether the guest had any link beside the loopback one. A link that comes
    /// later has no address and no route until it is given one.
    has_links: bool,
    pub(crate) steps: Vec<Step>,
}

/// A file handed over at thaw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ThawFile {
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
}

/// A request to become unique.
#[derive(Debug)]
pub(crate) struct Thaw {
    pub(crate) order: ThawOrder,
    pub(crate) entropy: Secret,
    /// When the request arrived.
    pub(crate) received: Instant,
}

/// What a thaw makes of the copy; kept, to know a request that is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ThawOrder {
    pub(crate) quiesce_id: QuiesceId,
    pub(crate) generation: Generation,
    pub(crate) host_realtime_nanos: i64,
    pub(crate) identity: Identity,
    pub(crate) network: network::NetworkPlan,
    pub(crate) files: Vec<ThawFile>,
}

/// One step and what it took.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) took: Duration,
}

/// Proof of a thaw, and its price.
#[derive(Debug, Clone)]
pub(crate) struct Receipt {
    pub(crate) generation: Generation,
    pub(crate) steps: Vec<Step>,
    pub(crate) clock_step_nanos: i64,
    /// `CLOCK_REALTIME` when the receipt was written.
    pub(crate) guest_realtime_nanos: i64,
    /// What that clock showed, as it is set now, when the request arrived.
    pub(crate) guest_received_nanos: i64,
    pub(crate) identity: Identity,
    pub(crate) not_unique: Vec<&'static str>,
}

/// A request to run again.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) generation: Generation,
    pub(crate) hook_timeout: Option<Duration>,
    /// What the clock should have shown when the receipt was written.
    pub(crate) corrected_realtime_nanos: Option<i64>,
}

/// What an after-thaw hook came to.
#[derive(Debug)]
pub(crate) struct HookOutcome {
    pub(crate) container: String,
    pub(crate) path: String,
    pub(crate) exit_status: i32,
    pub(crate) timed_out: bool,
}

/// The outcome of a release.
#[derive(Debug)]
pub(crate) struct Released {
    pub(crate) steps: Vec<Step>,
    pub(crate) hooks: Vec<HookOutcome>,
}

/// Collects steps; each lasts from the end of the one before.
struct Steps {
    taken: Vec<Step>,
    last: Instant,
}

impl Steps {
    fn begin() -> Self {
        Self::begin_at(Instant::now())
    }

    fn begin_at(last: Instant) -> Self {
        Self {
            taken: Vec::new(),
            last,
        }
    }

    fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.taken.push(Step {
            name,
            took: now - self.last,
        });
        self.last = now;
    }
}

impl Agent {
    /// Freezes the workload. `seal` was set before, so that nothing new is let
    /// in while the freeze is under way; it is kept until the thaw.
    pub(crate) async fn quiesce(
        self: &Arc<Self>,
        request: Authorized<Quiesce>,
        seal: Seal,
    ) -> Result<Quiesced, ServiceError> {
        self.require_guest("quiesce")?;
        self.lifecycle.begin_quiesce(seal)?;
        let agent = Arc::clone(self);
        let (outcome, answer) = oneshot::channel();
        tokio::spawn(async move {
            let freezer = Arc::clone(&agent);
            // A task of its own, so that even a panic is a failed freeze.
            let frozen = detached(async move { freezer.freeze(&request.into_inner()).await }).await;
            match frozen {
                Ok(quiesced) => {
                    let outcome_of = agent.lifecycle.quiesced(&quiesced);
                    if outcome.send(outcome_of.map(|()| quiesced)).is_err() {
                        // Nobody knows the id that would end this freeze.
                        agent.unfreeze();
                    }
                }
                Err(error) => {
                    agent.unfreeze();
                    outcome.send(Err(error)).ok();
                }
            }
        });
        answer.await.map_err(|_| ServiceError::RecipePanicked)?
    }

    /// Undoes a freeze, whole or half made; what was never frozen may be asked
    /// to run as well. A copy that nobody has thawed stays frozen.
    fn unfreeze(&self) {
        if !self.lifecycle.quiesce_undone() {
            return;
        }
        let unfrozen = self
            .launcher()
            .is_ok_and(|launcher| launcher.workload().unfreeze().is_ok());
        // A workload that stays frozen keeps its seal: nothing is served for it.
        if unfrozen {
            self.lifecycle.set_running();
        }
    }

    async fn freeze(&self, request: &Quiesce) -> Result<Quiesced, ServiceError> {
        let mut steps = Steps::begin();
        let id = random_bytes().map_err(ServiceError::system("getrandom"))?;
        let deadline = Instant::now() + request.freeze_timeout.unwrap_or(FREEZE_DEADLINE);
        let left = || deadline.saturating_duration_since(Instant::now());
        self.recipes.idle(left()).await?;
        // Streams whose tokens wait belong to this life, not to the copies'.
        self.tokens.revoke_all();
        steps.done("calls under way");
        // Before the freeze: what is dirty may be written by the workload's own
        // file system daemons.
        sync(left()).await?;
        steps.done("sync");
        self.launcher()?
            .workload()
            .freeze(left())
            .await
            .map_err(|source| ServiceError::System {
                call: "freeze the workload's cgroup",
                source: std::io::Error::other(source),
            })?;
        steps.done("cgroup.freeze");
        // Given back to the allocator, not to the kernel: what the copies need
        // to wake up is mapped, and no page of it is faulted in by each of them.
        drop(std::hint::black_box(vec![1_u8; HEAP_RESERVE]));
        if request.purpose == Purpose::Suspend {
            // 3: page cache, dentries and inodes; Documentation/admin-guide/sysctl/vm.rst.
            let drop_caches = tokio::fs::write("/proc/sys/vm/drop_caches", "3");
            tokio::time::timeout(left(), drop_caches)
                .await
                .map_err(|_| ServiceError::Deadline {
                    call: "drop caches",
                })?
                .map_err(ServiceError::system("drop caches"))?;
            steps.done("drop_caches");
        }
        Ok(Quiesced {
            id: QuiesceId(id),
            has_links: network::has_links(),
            steps: steps.taken,
        })
    }

    /// Makes this copy unique. The workload stays frozen, also when a step
    /// fails: the thaw can then be asked for again, with fresh entropy.
    pub(crate) async fn thaw(
        self: &Arc<Self>,
        request: Authorized<Thaw>,
    ) -> Result<Receipt, ServiceError> {
        self.require_guest("thaw")?;
        let request = request.into_inner();
        if let Some(receipt) = self.lifecycle.begin_thaw(&request)? {
            return Ok(receipt);
        }
        let agent = Arc::clone(self);
        detached(async move {
            let asked = agent.lifecycle.asked(&request);
            // Even a panic leaves the seal in place.
            let made = AssertUnwindSafe(agent.make_unique(&request));
            let made = made.catch_unwind().await;
            match made.unwrap_or(Err(ServiceError::RecipePanicked)) {
                Ok(receipt) => {
                    agent.lifecycle.thawed(asked, receipt.clone())?;
                    Ok(receipt)
                }
                Err(error) => {
                    agent.lifecycle.thaw_failed();
                    Err(error)
                }
            }
        })
        .await
    }

    /// Entropy before everything else: whatever a later step draws is already
    /// this copy's own. The generation file last: once software sees the new
    /// generation, all the rest holds.
    async fn make_unique(&self, request: &Thaw) -> Result<Receipt, ServiceError> {
        let mut steps = Steps::begin_at(request.received);
        let order = &request.order;
        steps.done("read the request");
        self.generator
            .reseed(request.entropy.bytes())
            .map_err(ServiceError::system("reseed the kernel"))?;
        steps.done("ioctl RNDADDENTROPY, RNDRESEEDCRNG");
        // The stamp was taken when the request was sent; what has passed here
        // since its arrival is known and added.
        let waited = nanos(request.received.elapsed());
        let clock_step_nanos =
            clock::step_realtime(order.host_realtime_nanos.saturating_add(waited))
                .map_err(ServiceError::system("clock_settime"))?;
        steps.done("clock_settime");
        let hostname = self.set_hostnames(&order.identity.hostname)?;
        steps.done("sethostname");
        let (machine_id, boot_id) = self
            .identity
            .set(&order.identity)
            .map_err(ServiceError::system("write the identity files"))?;
        write_files(&order.files).map_err(ServiceError::system("write the thaw's files"))?;
        steps.done("write identity files");
        // Nothing given is as much of an answer: the template's is not this copy's.
        if !order.network.is_empty() || self.lifecycle.has_links() {
            self.network.replace(&order.network).await?;
            steps.done("netlink");
        }
        self.identity
            .set_generation(order.generation)
            .map_err(ServiceError::system("write the generation file"))?;
        steps.done("write generation file");
        // Read at once, so that the difference of the two is what has passed.
        let (elapsed, guest_realtime_nanos) = (request.received.elapsed(), clock::realtime_nanos());
        Ok(Receipt {
            generation: order.generation,
            steps: steps.taken,
            clock_step_nanos,
            guest_realtime_nanos,
            guest_received_nanos: guest_realtime_nanos.saturating_sub(nanos(elapsed)),
            identity: Identity {
                hostname,
                machine_id,
                boot_id,
            },
            not_unique: NOT_UNIQUE.to_vec(),
        })
    }

    /// The guest's hostname and that of every container with a UTS namespace
    /// of its own; gives the guest's, read back.
    fn set_hostnames(&self, name: &str) -> Result<String, ServiceError> {
        hostname::set(name).map_err(ServiceError::system("sethostname"))?;
        for container in self.registry.all() {
            let init = &container.processes.init().process;
            if container.spec.has_own_hostname() && !init.has_ended() {
                hostname::set_in(init, name)
                    .map_err(ServiceError::system("sethostname in a container"))?;
            }
        }
        Ok(rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned())
    }

    /// Moves the clock while nothing of the workload can see it move.
    fn correct_clock(&self, correct: Option<i64>) -> Result<(), ServiceError> {
        let Some(nanos) = correct else {
            return Ok(());
        };
        if nanos != 0 {
            clock::move_realtime(nanos).map_err(ServiceError::system("clock_adjtime"))?;
        }
        self.lifecycle.corrected(nanos);
        Ok(())
    }

    fn run_workload(&self) -> Result<(), ServiceError> {
        self.lifecycle.may_run()?;
        let unfrozen = self.launcher()?.workload().unfreeze();
        unfrozen.map_err(|error| ServiceError::System {
            call: "unfreeze the workload's cgroup",
            source: std::io::Error::other(error),
        })
    }

    /// Corrects the clock by what the host found out since the thaw, lets the
    /// workload run, then runs the containers' after-thaw hooks. Asked again
    /// for a copy that runs already, it does nothing.
    pub(crate) async fn release(
        self: &Arc<Self>,
        request: Authorized<Release>,
    ) -> Result<Released, ServiceError> {
        let request = request.into_inner();
        let correct = match self.lifecycle.begin_release(&request)? {
            BegunRelease::Correct(correct) => correct,
            BegunRelease::Done => {
                return Ok(Released {
                    steps: Vec::new(),
                    hooks: Vec::new(),
                });
            }
        };
        let agent = Arc::clone(self);
        // Counted: a freeze that comes next waits for the hooks.
        self.recipes
            .run(async move {
                let mut steps = Steps::begin();
                let corrected = agent.correct_clock(correct);
                steps.done("clock_adjtime");
                if let Err(error) = corrected.and_then(|()| agent.run_workload()) {
                    agent.lifecycle.release_failed();
                    return Err(error);
                }
                agent.lifecycle.released();
                steps.done("cgroup.freeze");
                let deadline = request.hook_timeout.unwrap_or(HOOK_DEADLINE);
                let hooks = agent.run_hooks(deadline).await;
                if !hooks.is_empty() {
                    steps.done("after-thaw hooks");
                }
                Ok(Released {
                    steps: steps.taken,
                    hooks,
                })
            })
            .await
    }
}

/// As the clocks count, which no request lasts long enough to exceed.
fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// sync(2) on a thread of its own: a dead file system keeps that thread, and
/// nobody else.
async fn sync(deadline: Duration) -> Result<(), ServiceError> {
    match tokio::time::timeout(deadline, blocking(rustix::fs::sync)).await {
        Ok(done) => done,
        Err(_) => Err(ServiceError::Deadline { call: "sync" }),
    }
}

/// Writes the files of a thaw; their paths were checked when the request was
/// converted. They lie on the guest's own root, which no container can reach.
fn write_files(files: &[ThawFile]) -> std::io::Result<()> {
    files
        .iter()
        .try_for_each(|file| std::fs::write(&file.path, &file.content))
}

/// Whether a thaw may write that path.
pub(crate) fn is_thaw_file(path: &str) -> bool {
    THAW_FILES.contains(&path)
}
