//! The stage: the short-lived process that enters the namespaces and clones
//! the container's process into them.
//!
//! It exists because a namespace is entered by a process with one thread, and
//! the agent has more; it is a fresh execution of the agent's program, so that
//! it holds no lock, no memory and no descriptor of the agent's.

use super::channel::Channel;
use super::error::{Failure, Step};
use super::init;
use super::message::{Place, Report, StageOrder};
use super::spec::NamespaceKind;
use guest_kernel::clone::{Cloned, Namespaces, sibling};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

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
        Ok((Cloned::Child, view)) => init::run(channel, &view),
        Err(failure) => {
            // If the agent is gone there is nobody to tell.
            let _ = channel.send(&Report::Failed(failure), &[]);
            1
        }
    }
}

fn clone(channel: &mut Channel) -> Result<(Cloned, CgroupView), Failure> {
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
    let (namespaces, view) = match order.place {
        Place::Guest => (Namespaces::default(), CgroupView::Guest),
        Place::Create { new, join } => {
            join_all(&join)?;
            let new = new.into_iter().map(to_clone);
            let new = new.fold(Namespaces::default(), Namespaces::with);
            (new, CgroupView::Own)
        }
        Place::Enter => {
            let init = descriptors.next().ok_or_else(missing)?;
            enter(init.as_fd())?;
            (Namespaces::default(), CgroupView::Of(init))
        }
    };
    let cloned = sibling(namespaces, cgroup.as_fd()).map_err(Failure::at(Step::Clone, ""))?;
    Ok((cloned, view))
}

fn missing() -> Failure {
    Failure::at(Step::Orders, "")(io::ErrorKind::UnexpectedEof.into())
}

/// All at once: half of a container's namespaces would be a place of its own.
/// Only the cgroup namespace is left to the clone: seen from inside it, this
/// process has no cgroup that one could be cloned from (`nsdelegate`).
fn enter(init: BorrowedFd<'_>) -> Result<(), Failure> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK;
    move_into_thread_name_spaces(init, all)
        .map_err(|error| Failure::at(Step::JoinNamespace, "of the init process")(error.into()))
}

/// All are opened before the first is entered: a path means what it means to
/// the agent.
fn join_all(join: &[(NamespaceKind, PathBuf)]) -> Result<(), Failure> {
    let opened = join
        .iter()
        .map(|(kind, path)| {
            let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| at_path(path)(error.into()))?;
            Ok((*kind, path, file))
        })
        .collect::<Result<Vec<(NamespaceKind, &PathBuf, OwnedFd)>, Failure>>()?;
    opened.iter().try_for_each(|(kind, path, file)| {
        move_into_link_name_space(file.as_fd(), to_join(*kind))
            .map_err(|error| at_path(path)(error.into()))
    })
}

fn at_path(path: &std::path::Path) -> impl FnOnce(io::Error) -> Failure {
    Failure::at(Step::JoinNamespace, path.to_string_lossy())
}

/// Cgroup namespaces are not made here: their root is the cgroup their maker
/// is in, which must be the container's.
fn to_clone(kind: NamespaceKind) -> Namespaces {
    match kind {
        NamespaceKind::Pid => Namespaces::PID,
        NamespaceKind::Mount => Namespaces::MOUNT,
        NamespaceKind::Ipc => Namespaces::IPC,
        NamespaceKind::Uts => Namespaces::UTS,
        NamespaceKind::Network => Namespaces::NETWORK,
        NamespaceKind::Cgroup => Namespaces::default(),
    }
}

fn to_join(kind: NamespaceKind) -> Option<LinkNameSpaceType> {
    Some(match kind {
        NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
        NamespaceKind::Mount => LinkNameSpaceType::Mount,
        NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NamespaceKind::Network => LinkNameSpaceType::Network,
        NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
    })
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
