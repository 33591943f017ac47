//! The stage: the short-lived process that enters the namespaces and clones
//! the container's process into them.
//!
//! It exists because a namespace is entered by a process with one thread, and
//! the agent has more; it is a fresh execution of the agent's program, so that
//! it holds no lock, no memory and no descriptor of the agent's.

mod namespaces;
mod taken;

use super::channel::Channel;
use super::error::{Failure, Step};
use super::init;
use super::message::{Place, Report, StageOrder};
use super::rlimit::RlimitSpec;
use super::spec::ContainerSpec;
use guest_kernel::clone::{Cloned, Namespaces, sibling};
use namespaces::{Entrance, enter_all};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

pub(super) use taken::Taken;

/// Which cgroup namespace the clone is to be in. A namespace's root is the
/// cgroup its maker is in: the clone, not the stage, has to do it.
#[derive(Debug)]
pub(super) enum CgroupView {
    /// The agent's.
    Guest,
    /// A new one.
    Own,
    /// That of the process this pidfd refers to.
    Of(OwnedFd),
}

/// What the clone has of the stage.
#[derive(Debug)]
pub(super) struct Inheritance {
    pub(super) view: CgroupView,
    /// Whether it is in another user namespace than the agent, and nobody there
    /// yet.
    pub(super) has_own_users: bool,
    /// The container it is to set up, if it is to be one's first process.
    pub(super) container: Option<(Box<ContainerSpec>, Taken)>,
    /// The guest's procfs, if there will be something to be told by it.
    pub(super) proc: Option<OwnedFd>,
}

/// Runs the stage, and the process it clones. The socket to the agent is this
/// process's stdin. Never returns.
pub fn stage_main() -> ! {
    let outcome = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(Failure::at(Step::Orders, ""))
        .map(|socket| run(Channel::new(UnixStream::from(socket))));
    // Whatever there was to tell was told over the socket.
    std::process::exit(outcome.unwrap_or(1))
}

fn run(mut channel: Channel) -> i32 {
    match clone(&mut channel) {
        Ok((Cloned::Caller { pid, pidfd }, _)) => {
            let report = Report::Cloned { pid };
            if channel.send(&report, &[pidfd.as_fd()]).is_err() {
                // Nobody would ever reap it by name: it must not run on.
                let _ = guest_kernel::signal::send(pidfd.as_fd(), nix::libc::SIGKILL);
                return 1;
            }
            0
        }
        Ok((Cloned::Child, inheritance)) => init::run(channel, inheritance),
        Err(failure) => {
            // If the agent is gone there is nobody to tell.
            let _ = channel.send(&Report::Failed(failure), &[]);
            1
        }
    }
}

fn clone(channel: &mut Channel) -> Result<(Cloned, Inheritance), Failure> {
    // A process of the container may see this one as soon as it has entered:
    // it must not trace it, nor open its files in /proc.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| Failure::at(Step::Orders, "PR_SET_DUMPABLE")(error.into()))?;
    let received = channel
        .receive::<StageOrder>()
        .map_err(|error| Failure::at(Step::Orders, "")(io::Error::other(error)))?;
    let (order, descriptors) = received.ok_or_else(missing)?;
    let mut descriptors = descriptors.into_iter();
    let cgroup = descriptors.next().ok_or_else(missing)?;
    // Here, because the clone may see a /proc that a container has made.
    let score = order.oom_score_adj.to_string();
    std::fs::write("/proc/self/oom_score_adj", &score)
        .map_err(Failure::at(Step::OomScore, score))?;
    // Also for the clone, and before the tree is another's.
    let proc = order.is_held.then(open_proc).transpose()?;
    let (namespaces, mut inheritance) = match order.place {
        Place::Guest => {
            let inheritance = Inheritance {
                view: CgroupView::Guest,
                has_own_users: false,
                container: None,
                proc: None,
            };
            (Namespaces::default(), inheritance)
        }
        Place::Create(spec) => {
            let has_own_users = spec.has_own(super::spec::NamespaceKind::User);
            allow(&order.rlimits, has_own_users)?;
            let entrance = Entrance::open(&spec)?;
            entrance.enter()?;
            let taken = Taken::take(&spec, &entrance)?;
            let namespaces = entrance.enter_users()?;
            let inheritance = Inheritance {
                view: CgroupView::Own,
                has_own_users,
                container: Some((spec, taken)),
                proc: None,
            };
            (namespaces, inheritance)
        }
        Place::Enter { users, time } => {
            let init = descriptors.next().ok_or_else(missing)?;
            allow(&order.rlimits, users)?;
            enter_all(init.as_fd(), users, time)?;
            let inheritance = Inheritance {
                view: CgroupView::Of(init),
                has_own_users: users,
                container: None,
                proc: None,
            };
            (Namespaces::default(), inheritance)
        }
    };
    inheritance.proc = proc;
    let cloned = sibling(namespaces, cgroup.as_fd()).map_err(Failure::at(Step::Clone, ""))?;
    Ok((cloned, inheritance))
}

fn open_proc() -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open("/proc", flags, Mode::empty())
        .map_err(|error| Failure::at(Step::Security, "/proc")(error.into()))
}

fn missing() -> Failure {
    Failure::at(Step::Orders, "")(io::ErrorKind::UnexpectedEof.into())
}

/// Lets the clone have limits that, in a user namespace, it could not raise.
fn allow(rlimits: &[RlimitSpec], has_own_users: bool) -> Result<(), Failure> {
    for rlimit in rlimits.iter().filter(|_| has_own_users) {
        let failed = Failure::at(Step::Rlimit, rlimit.kind.to_string());
        rlimit.allow().map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

impl Failure {
    /// For `map_err` on a step.
    pub(super) fn at(step: Step, subject: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let subject = subject.into();
        move |error| Self {
            step,
            subject,
            errno: error.raw_os_error().unwrap_or(nix::libc::EIO),
        }
    }
}
