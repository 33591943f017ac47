//! Quiesce, Thaw and Release: the workload is frozen from the first to the
//! last, and nothing of it ever runs with borrowed entropy, clock or address.

use super::error::ServiceError;
use super::identity::{Generation, Identity, random_bytes};
use super::recipes::detached;
use super::{Agent, network};
use authz::Authorized;
use guest_runtime::{clock, entropy, hostname};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The least a thaw takes, in bytes of host entropy.
pub(crate) const ENTROPY_MINIMUM: usize = 32;
/// How long the workload may take to freeze, unless the request says.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
/// How long one after-thaw hook may take, unless the request says.
const HOOK_DEADLINE: Duration = Duration::from_secs(10);
/// What no thaw can make unique, told in every receipt; a client takes names
/// of up to 64 bytes.
const NOT_UNIQUE: [&str; 5] = [
    "random values drawn already, at most one in flight a thread",
    "random generators in the memory of processes",
    "address space layout and stack canaries",
    "secrets in the memory of processes",
    "established connections",
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
    pub(crate) quiesce_id: QuiesceId,
    pub(crate) generation: Generation,
    pub(crate) entropy: Vec<u8>,
    pub(crate) host_realtime_nanos: i64,
    pub(crate) identity: Identity,
    pub(crate) network: network::NetworkPlan,
    pub(crate) files: Vec<ThawFile>,
    /// When the request arrived.
    pub(crate) received: Instant,
    /// What tells this request from another of the same generation: a keyed
    /// digest of its bytes would do, the bytes themselves do better.
    pub(crate) encoded: Vec<u8>,
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
    pub(crate) guest_realtime_nanos: i64,
    pub(crate) elapsed: Duration,
    pub(crate) identity: Identity,
    pub(crate) not_unique: Vec<&'static str>,
}

/// A request to run again.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) generation: Generation,
    pub(crate) hook_timeout: Option<Duration>,
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

/// While it lives the gate lets nothing pass but Health, GetGuestDetails and
/// Thaw; dropping it opens the gate.
pub(crate) type Seal = Box<dyn std::fmt::Debug + Send>;

#[derive(Debug)]
enum Phase {
    Running,
    /// A transition is under way; nobody else may begin one.
    Busy,
    Quiesced(QuiesceId, Seal),
    Thawed {
        generation: Generation,
        encoded: Vec<u8>,
        receipt: Box<Receipt>,
    },
}

/// What a request to thaw meets.
enum Thawing {
    Begun(Seal),
    /// The same request again: its receipt.
    Repeated(Receipt),
}

/// Where the sandbox stands between Quiesce and Release.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    phase: Mutex<Phase>,
}

impl Lifecycle {
    pub(crate) fn running() -> Self {
        Self {
            phase: Mutex::new(Phase::Running),
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, phase: Phase) {
        *self.phase() = phase;
    }

    /// Begins a quiesce: only from Running.
    fn begin_quiesce(&self) -> Result<(), ServiceError> {
        let mut phase = self.phase();
        match *phase {
            Phase::Running => {
                *phase = Phase::Busy;
                Ok(())
            }
            _ => Err(wrong_state("quiesce", "the sandbox is not running")),
        }
    }

    /// Begins a thaw, or gives the receipt of the very same request again.
    fn begin_thaw(&self, request: &Thaw) -> Result<Thawing, ServiceError> {
        let mut phase = self.phase();
        match &*phase {
            Phase::Quiesced(id, _) if *id == request.quiesce_id => {
                match std::mem::replace(&mut *phase, Phase::Busy) {
                    Phase::Quiesced(_, seal) => Ok(Thawing::Begun(seal)),
                    _ => Err(wrong_state("thaw", "the sandbox is not quiesced")),
                }
            }
            Phase::Quiesced(..) => Err(wrong_state("thaw", "another quiesce id is expected")),
            Phase::Thawed {
                generation,
                encoded,
                receipt,
            } if *generation == request.generation && *encoded == request.encoded => {
                Ok(Thawing::Repeated(receipt.as_ref().clone()))
            }
            Phase::Thawed { .. } => Err(wrong_state("thaw", "this copy was thawed already")),
            Phase::Running => Err(wrong_state("thaw", "the sandbox is not quiesced")),
            Phase::Busy => Err(wrong_state("thaw", "another transition is under way")),
        }
    }

    /// Begins a release: only of the generation that was thawed.
    fn begin_release(&self, generation: Generation) -> Result<Phase, ServiceError> {
        let mut phase = self.phase();
        match &*phase {
            Phase::Thawed {
                generation: thawed, ..
            } if *thawed == generation => Ok(std::mem::replace(&mut phase, Phase::Busy)),
            Phase::Thawed { .. } => Err(wrong_state("release", "another generation was thawed")),
            _ => Err(wrong_state("release", "the sandbox was not thawed")),
        }
    }
}

fn wrong_state(call: &'static str, reason: &str) -> ServiceError {
    ServiceError::WrongState {
        call,
        reason: reason.into(),
    }
}

/// Collects steps; each lasts from the end of the one before.
struct Steps {
    taken: Vec<Step>,
    last: Instant,
}

impl Steps {
    fn begin() -> Self {
        Self {
            taken: Vec::new(),
            last: Instant::now(),
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
        self.lifecycle.begin_quiesce()?;
        let agent = Arc::clone(self);
        detached(async move {
            let outcome = agent.freeze(&request.into_inner()).await;
            let phase = match &outcome {
                Ok(quiesced) => Phase::Quiesced(quiesced.id, seal),
                Err(_) => Phase::Running,
            };
            agent.lifecycle.set(phase);
            outcome
        })
        .await
    }

    /// Undoes itself: when a step fails, the workload runs on.
    async fn freeze(&self, request: &Quiesce) -> Result<Quiesced, ServiceError> {
        let mut steps = Steps::begin();
        let id = random_bytes().map_err(ServiceError::system("getrandom"))?;
        let workload = self.launcher()?.workload();
        let deadline = request.freeze_timeout.unwrap_or(FREEZE_DEADLINE);
        self.recipes.idle(deadline).await?;
        steps.done("calls under way");
        if let Err(error) = workload.freeze(deadline).await {
            // Thawing what was never frozen is no error.
            workload.unfreeze().ok();
            return Err(ServiceError::System {
                call: "freeze the workload's cgroup",
                source: std::io::Error::other(error),
            });
        }
        steps.done("cgroup.freeze");
        rustix::fs::sync();
        steps.done("sync");
        if request.purpose == Purpose::Suspend {
            // 3: page cache, dentries and inodes; Documentation/admin-guide/sysctl/vm.rst.
            if let Err(source) = tokio::fs::write("/proc/sys/vm/drop_caches", "3").await {
                workload.unfreeze().ok();
                let call = "drop caches";
                return Err(ServiceError::System { call, source });
            }
            steps.done("drop_caches");
        }
        Ok(Quiesced {
            id: QuiesceId(id),
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
        let seal = match self.lifecycle.begin_thaw(&request)? {
            Thawing::Begun(seal) => seal,
            Thawing::Repeated(receipt) => return Ok(receipt),
        };
        let agent = Arc::clone(self);
        detached(async move {
            let quiesce_id = request.quiesce_id;
            match agent.make_unique(&request).await {
                Ok(receipt) => {
                    agent.lifecycle.set(Phase::Thawed {
                        generation: request.generation,
                        encoded: request.encoded,
                        receipt: Box::new(receipt.clone()),
                    });
                    Ok(receipt)
                }
                Err(error) => {
                    agent.lifecycle.set(Phase::Quiesced(quiesce_id, seal));
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
        let mut steps = Steps::begin();
        entropy::reseed(&request.entropy).map_err(ServiceError::system("reseed the kernel"))?;
        steps.done("ioctl RNDADDENTROPY, RNDRESEEDCRNG");
        // The stamp was taken when the request was sent; what has passed here
        // since its arrival is known and added.
        let waited = i64::try_from(request.received.elapsed().as_nanos()).unwrap_or(0);
        let clock_step_nanos = clock::step_realtime(request.host_realtime_nanos + waited)
            .map_err(ServiceError::system("clock_settime"))?;
        steps.done("clock_settime");
        let hostname = self.set_hostnames(&request.identity.hostname)?;
        steps.done("sethostname");
        let (machine_id, boot_id) = self
            .identity
            .set(&request.identity)
            .map_err(ServiceError::system("write the identity files"))?;
        write_files(&request.files).map_err(ServiceError::system("write the thaw's files"))?;
        steps.done("write identity files");
        if !request.network.is_empty() {
            self.network.apply(&request.network).await?;
            steps.done("netlink");
        }
        self.identity
            .set_generation(request.generation)
            .map_err(ServiceError::system("write the generation file"))?;
        steps.done("write generation file");
        Ok(Receipt {
            generation: request.generation,
            steps: steps.taken,
            clock_step_nanos,
            guest_realtime_nanos: clock::realtime_nanos(),
            elapsed: request.received.elapsed(),
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
            if !init.has_ended() {
                hostname::set_in(init, name)
                    .map_err(ServiceError::system("sethostname in a container"))?;
            }
        }
        Ok(rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned())
    }

    /// Lets the workload run, then runs the containers' after-thaw hooks.
    pub(crate) async fn release(
        self: &Arc<Self>,
        request: Authorized<Release>,
    ) -> Result<Released, ServiceError> {
        let request = request.into_inner();
        let thawed = self.lifecycle.begin_release(request.generation)?;
        let agent = Arc::clone(self);
        detached(async move {
            let mut steps = Steps::begin();
            if let Err(error) = agent.launcher()?.workload().unfreeze() {
                agent.lifecycle.set(thawed);
                return Err(ServiceError::System {
                    call: "unfreeze the workload's cgroup",
                    source: std::io::Error::other(error),
                });
            }
            agent.lifecycle.set(Phase::Running);
            steps.done("cgroup.freeze");
            let hooks = agent
                .run_hooks(request.hook_timeout.unwrap_or(HOOK_DEADLINE))
                .await;
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
