//! As whom a process runs, and with which privileges: every step gives some
//! up, in the order in which the remaining ones still allow it.

use crate::container::capability::mask;
use crate::container::error::{Failure, Step};
use crate::container::seccomp::Filter;
use crate::container::spec::{ProcessSpec, UserSpec};
use guest_kernel::capability::{limit_bounding, permitted, set, set_ambient};
use rustix::fs::{FileType, Gid, Uid, fchown, fstat};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// Gives the process its streams, so that it can open /dev/stdout: pipes and
/// terminals made for it, never a device of all.
pub(super) fn own_streams(user: &UserSpec) -> Result<(), Failure> {
    let failed = |error: Errno| {
        Failure::at(Step::Stdio, format!("fchown to user {}", user.uid))(error.into())
    };
    for stream in [stdin(), stdout(), stderr()] {
        let stat = fstat(stream).map_err(failed)?;
        let own = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Fifo => true,
            _ => rustix::termios::isatty(stream),
        };
        if own && stat.st_uid != user.uid {
            fchown(stream, Some(Uid::from_raw(user.uid)), None).map_err(failed)?;
        }
    }
    Ok(())
}

/// What judges the calls of a process.
pub(super) struct Filters {
    /// The agent's own.
    pub(super) own: Option<Filter>,
    /// The container's.
    pub(super) profile: Option<Filter>,
}

impl Filters {
    /// The container's, if it waits for the last moment: with no_new_privs it
    /// can, and need not let the call be made that starts the workload.
    pub(super) fn last(&self, process: &ProcessSpec) -> Option<&Filter> {
        self.profile.as_ref().filter(|_| process.no_new_privileges)
    }
}

/// Limits, scheduling, user, capabilities and no_new_privs, in this order. The
/// filters come before the capabilities are gone: that takes CAP_SYS_ADMIN,
/// seccomp(2). But for [`Filters::last`], which comes with [`install`]: the
/// agent's own one judges the container's start hooks, too.
pub(super) fn drop_all(process: &ProcessSpec, filters: &Filters) -> Result<(), Failure> {
    for rlimit in &process.rlimits {
        rlimit
            .apply()
            .map_err(|error| Failure::at(Step::Rlimit, rlimit.kind.to_string())(error.into()))?;
    }
    if let Some(scheduler) = &process.scheduler {
        let failed = Failure::at(Step::Scheduling, "scheduler");
        scheduler.apply().map_err(failed)?;
    }
    if let Some(priority) = process.io_priority {
        let failed = Failure::at(Step::Scheduling, "ioPriority");
        priority.apply().map_err(failed)?;
    }
    let sets = &process.capabilities;
    // While CAP_SETPCAP is there.
    limit_bounding(mask(&sets.bounding)).map_err(capabilities("bounding"))?;
    become_user(&process.user).map_err(|error| {
        let subject = format!("{}:{}", process.user.uid, process.user.gid);
        Failure::at(Step::User, subject)(error.into())
    })?;
    let profile = match filters.last(process) {
        Some(_) => None,
        None => filters.profile.as_ref(),
    };
    // The agent's own is the first, since the profile need not let another be
    // installed.
    let early: Vec<&Filter> = filters.own.iter().chain(profile).collect();
    if !early.is_empty() {
        // To be another user has taken them out of the effective set.
        let kept = permitted().map_err(capabilities("permitted"))?;
        set(kept, kept, 0).map_err(capabilities("effective"))?;
        early.into_iter().try_for_each(install)?;
    }
    set(
        mask(&sets.effective),
        mask(&sets.permitted),
        mask(&sets.inheritable),
    )
    .map_err(capabilities("effective, permitted, inheritable"))?;
    set_ambient(mask(&sets.ambient)).map_err(capabilities("ambient"))?;
    if process.no_new_privileges {
        set_no_new_privs(true)
            .map_err(|error| Failure::at(Step::Attributes, "no_new_privs")(error.into()))?;
    }
    Ok(())
}

/// Makes this process root of the user namespace it has come into, where it was
/// nobody: with the ids of nobody it could make no file.
pub(super) fn become_root() -> Result<(), Failure> {
    let failed = |error: Errno| Failure::at(Step::User, "root of the user namespace")(error.into());
    set_thread_groups(&[]).map_err(failed)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(failed)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(failed)
}

/// Has a filter judge every call from here on.
pub(super) fn install(filter: &Filter) -> Result<(), Failure> {
    filter.install().map_err(Failure::at(Step::Seccomp, ""))
}

fn capabilities(set: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |error| Failure::at(Step::Capabilities, set)(error.into())
}

/// The permitted set is kept over it, to be cut to what the spec says.
fn become_user(user: &UserSpec) -> rustix::io::Result<()> {
    let groups: Vec<Gid> = user
        .additional_gids
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let gid = Gid::from_raw(user.gid);
    let uid = Uid::from_raw(user.uid);
    set_keep_capabilities(true)?;
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_keep_capabilities(false)
}
