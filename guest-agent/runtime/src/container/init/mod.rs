//! The container's process, from its clone to its execve(2): it sets itself
//! up, says that it is ready, and becomes the workload.

mod copy_up;
mod credentials;
mod devices;
mod execute;
mod identity;
mod paths;
mod rootfs;
mod terminal;
mod working_directory;

use super::channel::{Channel, ChannelError};
use super::destination;
use super::error::{Failure, Step};
use super::hooks::{HookKind, inside};
use super::message::{Go, InitOrder, Report};
use super::seccomp::{Filter, SeccompProfile, refuse_vsock};
use super::security;
use super::spec::{ContainerSpec, ProcessSpec};
use super::stage::{CgroupView, Inheritance, Taken};
use super::sysctl;
use credentials::Filters;
use rustix::io::Errno;
use rustix::system::sethostname;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The exit status of a process that was never told to go on.
const NEVER_STARTED: i32 = 1;

/// Runs it; returns the exit status if it has failed or was given up.
pub(super) fn run(mut channel: Channel, inheritance: Inheritance) -> i32 {
    let failure = match serve(&mut channel, inheritance) {
        Ok(status) => return status,
        Err(failure) => failure,
    };
    // If the agent is gone there is nobody to tell.
    let _ = channel.send(&Report::Failed(failure), &[]);
    NEVER_STARTED
}

fn serve(channel: &mut Channel, inheritance: Inheritance) -> Result<i32, Failure> {
    let lost = |error| Failure::at(Step::Orders, "")(io::Error::other(error));
    let Some((order, stdio)) = channel.receive::<InitOrder>().map_err(lost)? else {
        return Ok(NEVER_STARTED);
    };
    if inheritance.has_own_users {
        credentials::become_root()?;
    }
    let proc = inheritance.proc;
    join_session_keyring()?;
    see_cgroups(&inheritance.view)?;
    match order {
        InitOrder::Create => {
            let missing = || Failure::at(Step::Orders, "")(Errno::INVAL.into());
            let (spec, taken) = inheritance.container.ok_or_else(missing)?;
            let filters = filters_of(&spec.process)?;
            let terminal = set_up_container(channel, &spec, taken)?;
            become_workload(channel, &spec.process, &filters, stdio, terminal)?;
            if channel.receive::<Go>().map_err(lost)?.is_none() {
                return Ok(NEVER_STARTED);
            }
            inside::run(&spec, HookKind::StartContainer)?;
            execute(channel, &spec.process, &filters, proc.as_ref())
        }
        InitOrder::Process(process) => {
            let filters = filters_of(&process)?;
            let terminal = process.terminal.then(|| open_terminal(&process));
            let terminal = terminal.transpose()?;
            become_workload(channel, &process, &filters, stdio, terminal)?;
            execute(channel, &process, &filters, proc.as_ref())
        }
    }
}

/// Made before anything is done: what is left to do then is a call each.
fn filters_of(process: &ProcessSpec) -> Result<Filters, Failure> {
    let made = |profile: Option<&SeccompProfile>| {
        profile.map(Filter::of).transpose().map_err(|refused| {
            let failed = Failure::at(Step::Seccomp, refused.0);
            failed(Errno::INVAL.into())
        })
    };
    let own = (!process.vsock).then(refuse_vsock);
    Ok(Filters {
        own: made(own.as_ref())?,
        profile: made(process.seccomp.as_ref())?,
    })
}

/// Everything of a container that is not its process's own; gives its
/// terminal.
fn set_up_container(
    channel: &mut Channel,
    spec: &ContainerSpec,
    taken: Taken,
) -> Result<Option<terminal::Pair>, Failure> {
    let Taken {
        root,
        mounts,
        identity,
        devices,
    } = taken;
    if let Some(hostname) = &spec.hostname {
        sethostname(hostname.as_bytes())
            .map_err(|error| Failure::at(Step::Hostname, hostname.as_str())(error.into()))?;
    }
    for (name, value) in &spec.sysctl {
        sysctl::set(name, value).map_err(Failure::at(Step::Sysctl, name.as_str()))?;
    }
    // Modes are meant as they are given, from here to the workload.
    rustix::process::umask(rustix::fs::Mode::empty());
    let propagation = spec.root.propagation.as_deref();
    rootfs::attach_root(root.as_fd(), &spec.root.path, propagation)?;
    rootfs::mount_all(root.as_fd(), spec, mounts, devices)?;
    identity::mount(root.as_fd(), &identity)?;
    let terminal = spec
        .process
        .terminal
        .then(|| open_container_terminal(root.as_fd(), &spec.process))
        .transpose()?;
    wait_for_hooks(channel, spec)?;
    inside::run(spec, HookKind::CreateContainer)?;
    working_directory::make(root.as_fd(), &spec.process.cwd)?;
    paths::make_readonly(root.as_fd(), &spec.readonly_paths)?;
    paths::mask(root.as_fd(), &spec.masked_paths)?;
    rootfs::finish(root.as_fd(), spec)?;
    rootfs::pivot(root.as_fd(), propagation)?;
    Ok(terminal)
}

/// Hooks of the guest's find all mounted, and nothing read-only yet.
fn wait_for_hooks(channel: &mut Channel, spec: &ContainerSpec) -> Result<(), Failure> {
    if !spec.hooks.run_when_mounted() {
        return Ok(());
    }
    let lost = |error: ChannelError| Failure::at(Step::Orders, "")(io::Error::other(error));
    channel.send(&Report::Mounted, &[]).map_err(lost)?;
    match channel.receive::<Go>().map_err(lost)? {
        Some(_) => Ok(()),
        // It was given up.
        None => Err(Failure::at(Step::Orders, "")(
            io::ErrorKind::UnexpectedEof.into(),
        )),
    }
}

/// Whether a file is one of the kernel's interface.
pub(super) fn is_kernels(file: &OwnedFd) -> rustix::io::Result<bool> {
    destination::is_in_proc(file.as_fd())
}

fn open_terminal(process: &ProcessSpec) -> Result<terminal::Pair, Failure> {
    let root =
        destination::open_root().map_err(|error| Failure::at(Step::Terminal, "/")(error.into()))?;
    terminal::open(root.as_fd(), process.console_size)
}

fn open_container_terminal(
    root: std::os::fd::BorrowedFd<'_>,
    process: &ProcessSpec,
) -> Result<terminal::Pair, Failure> {
    let pair = terminal::open(root, process.console_size)?;
    devices::bind_console(root, pair.slave.as_fd())?;
    Ok(pair)
}

/// What is the process's own; it is told as ready in the middle, while it may
/// still send a descriptor and before its last privilege is gone.
fn become_workload(
    channel: &mut Channel,
    process: &ProcessSpec,
    filters: &Filters,
    stdio: Vec<OwnedFd>,
    terminal: Option<terminal::Pair>,
) -> Result<(), Failure> {
    terminal::new_session()?;
    let master = match terminal {
        Some(pair) => {
            terminal::control(&pair.slave)?;
            Some(pair.master)
        }
        None => {
            terminal::use_streams(&stdio)?;
            None
        }
    };
    drop(stdio);
    let settled = settle(process, filters);
    if settled.is_err() {
        // To close it is to hang up on this process, which has yet to tell.
        std::mem::forget(master);
        return settled;
    }
    let master: Vec<_> = master.iter().map(AsFd::as_fd).collect();
    channel
        .send(&Report::Ready, &master)
        .map_err(|error| Failure::at(Step::Orders, "")(io::Error::other(error)))
}

/// All but the last privilege is gone after it.
fn settle(process: &ProcessSpec, filters: &Filters) -> Result<(), Failure> {
    credentials::own_streams(&process.user)?;
    working_directory::enter(&process.cwd)?;
    execute::prepare(process.umask)?;
    credentials::drop_all(process, filters)
}

/// Returns only if it failed, and tells so.
fn execute(
    channel: &mut Channel,
    process: &ProcessSpec,
    filters: &Filters,
    proc: Option<&OwnedFd>,
) -> Result<i32, Failure> {
    // The hooks, which this process has executed before, are not held to it.
    security::apply(process, proc)?;
    // The others were installed before.
    let last = filters.last(process);
    let found = match last {
        Some(_) => execute::find(process),
        None => Ok(()),
    };
    let lost = |error| Failure::at(Step::Orders, "")(io::Error::other(error));
    // Before the filter, which need not let it be said.
    channel.send(&Report::Executing, &[]).map_err(lost)?;
    if let Some(filter) = last.filter(|_| found.is_ok()) {
        credentials::install(filter)?;
    }
    let errno = match found {
        Ok(()) => execute::execute(process),
        Err(errno) => errno,
    };
    let report = Report::ExecFailed {
        errno: errno as i32,
    };
    // If the agent is gone there is nobody to tell.
    let _ = channel.send(&report, &[]);
    Ok(match errno {
        nix::Error::ENOENT => 127,
        _ => 126,
    })
}

/// Keys of the agent's session are not the workload's (session-keyring(7)).
fn join_session_keyring() -> Result<(), Failure> {
    match guest_kernel::keyring::join_new_session() {
        // A kernel without keys.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOSYS) => Ok(()),
        outcome => outcome.map_err(Failure::at(Step::Keyring, "")),
    }
}

fn see_cgroups(view: &CgroupView) -> Result<(), Failure> {
    let seen = match view {
        CgroupView::Guest => Ok(()),
        CgroupView::Own => guest_kernel::namespace::unshare_cgroup(),
        CgroupView::Of(init) => rustix::thread::move_into_thread_name_spaces(
            init.as_fd(),
            rustix::thread::ThreadNameSpaceType::CONTROL_GROUP,
        ),
    };
    seen.map_err(|error| Failure::at(Step::CgroupNamespace, "")(error.into()))
}
