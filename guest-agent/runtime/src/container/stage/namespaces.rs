//! The namespaces of a container to be: those it joins are entered, those that
//! a process makes for its children are made.

use crate::container::error::{Failure, Step};
use crate::container::id_mapping::{IdMapping, IdMappings, lines, outside, parse};
use crate::container::spec::{ContainerSpec, NamespaceKind, TimeOffset};
use guest_kernel::clone::Namespaces;
use guest_kernel::namespace::unshare_time_of_children;
use guest_kernel::user_namespace::Holder;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Kinds every container has of its own, asked for or not: without them it
/// could reach the agent's mounts, processes and cgroups.
const ALWAYS_OWN: [NamespaceKind; 3] = [
    NamespaceKind::Mount,
    NamespaceKind::Pid,
    NamespaceKind::Cgroup,
];

/// Namespaces that are open and not yet entered.
#[derive(Debug)]
pub(super) struct Entrance<'a> {
    spec: &'a ContainerSpec,
    joined: Vec<(NamespaceKind, &'a Path, OwnedFd)>,
    /// Its user namespace, if it has one of its own.
    users: Option<OwnedFd>,
    /// Those that mounts have their owners mapped by, by their place in the
    /// spec.
    owners: BTreeMap<usize, OwnedFd>,
}

impl<'a> Entrance<'a> {
    /// Opens all before the first is entered: a path means what it means to the
    /// agent. New user namespaces are made here, with their mappings: what holds
    /// them is a child, and once a pid namespace is entered children are in it.
    pub(super) fn open(spec: &'a ContainerSpec) -> Result<Self, Failure> {
        let mut joined = Vec::new();
        let mut users = None;
        for namespace in &spec.namespaces {
            let file = namespace.path.as_deref().map(|path| {
                open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map(|file| (path, file))
                    .map_err(|error| at_path(path)(error.into()))
            });
            match (namespace.kind, file.transpose()?) {
                (NamespaceKind::User, Some((_, file))) => users = Some(file),
                (NamespaceKind::User, None) => users = Some(user_namespace(&spec.id_mappings)?),
                (kind, Some((path, file))) => joined.push((kind, path, file)),
                (_, None) => {}
            }
        }
        let mut owners = BTreeMap::new();
        for (index, mount) in spec.mounts.iter().enumerate() {
            if let Some(mappings) = &mount.id_mappings {
                owners.insert(index, user_namespace(mappings)?);
            }
        }
        Ok(Self {
            spec,
            joined,
            users,
            owners,
        })
    }

    /// The user namespace that the owners of a mount are mapped by, if they are
    /// to be: its own, or the container's.
    pub(super) fn owners(&self, mount: usize) -> Option<BorrowedFd<'_>> {
        let own = self.owners.get(&mount).or(self.users.as_ref());
        own.map(AsFd::as_fd)
    }

    /// Enters those that are joined, but for the user namespace, and makes the
    /// time namespace, whose clocks nobody has seen yet.
    pub(super) fn enter(&self) -> Result<(), Failure> {
        for (kind, path, file) in &self.joined {
            move_into_link_name_space(file.as_fd(), to_join(*kind))
                .map_err(|error| at_path(path)(error.into()))?;
        }
        if self.spec.makes(NamespaceKind::Time) {
            let failed = |subject: &str| Failure::at(Step::TimeNamespace, subject.to_owned());
            unshare_time_of_children().map_err(|error| failed("unshare")(error.into()))?;
            for (clock, offset) in &self.spec.time_offsets {
                let TimeOffset { secs, nanosecs } = offset;
                let line = format!("{clock} {secs} {nanosecs}");
                fs::write("/proc/self/timens_offsets", &line).map_err(failed(&line))?;
            }
        }
        Ok(())
    }

    /// Enters the user namespace: what this process may from now on, it may
    /// there. Gives what is left to be made by the clone.
    pub(super) fn enter_users(self) -> Result<Namespaces, Failure> {
        if let Some(users) = &self.users {
            let failed = |error: Errno| Failure::at(Step::JoinNamespace, "user")(error.into());
            let kind = Some(LinkNameSpaceType::User);
            move_into_link_name_space(users.as_fd(), kind).map_err(failed)?;
            let expected = &self.spec.id_mappings;
            let found = own_mappings()?;
            let refused = |subject| Failure::at(Step::JoinNamespace, subject)(Errno::INVAL.into());
            if !expected.is_empty() && expected.clone().sorted() != found {
                return Err(refused("user: its mappings are not those of the spec"));
            }
            // It is set up by root, who has to be someone.
            if outside(&found.users, 0).is_none() || outside(&found.groups, 0).is_none() {
                return Err(refused("user: nobody in it is user and group 0"));
            }
        }
        let asked = self.spec.namespaces.iter().map(|one| one.kind);
        let new = asked
            .chain(ALWAYS_OWN)
            .filter(|kind| !self.spec.joins(*kind));
        Ok(new
            .map(to_clone)
            .fold(Namespaces::default(), Namespaces::with))
    }
}

/// All of a container's at once: half of them would be a place of its own. Only
/// the cgroup namespace is left to the clone: seen from inside it, this process
/// has no cgroup that one could be cloned from (`nsdelegate`). One cannot join
/// the user namespace one is in.
pub(super) fn enter_all(init: BorrowedFd<'_>, users: bool, time: bool) -> Result<(), Failure> {
    let mut all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK;
    all.set(ThreadNameSpaceType::USER, users);
    // Not every kernel has these.
    all.set(ThreadNameSpaceType::TIME, time);
    move_into_thread_name_spaces(init, all)
        .map_err(|error| Failure::at(Step::JoinNamespace, "of the init process")(error.into()))
}

fn at_path(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    Failure::at(Step::JoinNamespace, path.to_string_lossy())
}

/// A new user namespace that nobody is in.
fn user_namespace(mappings: &IdMappings) -> Result<OwnedFd, Failure> {
    let failed = |subject| Failure::at(Step::UserNamespace, subject);
    let holder = Holder::new().map_err(failed("clone3"))?;
    let process = format!("/proc/{}", holder.pid());
    let write = |file, mappings: &[IdMapping]| {
        fs::write(format!("{process}/{file}"), lines(mappings)).map_err(failed(file))
    };
    write("uid_map", &mappings.users)?;
    write("gid_map", &mappings.groups)?;
    let path = format!("{process}/ns/user");
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed("open")(error.into()))
}

/// Those of the user namespace this process is in, as its parent sees it.
fn own_mappings() -> Result<IdMappings, Failure> {
    let own = |file: &str| {
        let text = fs::read_to_string(format!("/proc/self/{file}"));
        text.and_then(|text| parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into()))
            .map_err(Failure::at(Step::JoinNamespace, file))
    };
    let mappings = IdMappings {
        users: own("uid_map")?,
        groups: own("gid_map")?,
    };
    Ok(mappings.sorted())
}

/// Cgroup namespaces are not made by the clone: their root is the cgroup their
/// maker is in, which must be the container's.
fn to_clone(kind: NamespaceKind) -> Namespaces {
    match kind {
        NamespaceKind::Pid => Namespaces::PID,
        NamespaceKind::Mount => Namespaces::MOUNT,
        NamespaceKind::Ipc => Namespaces::IPC,
        NamespaceKind::Uts => Namespaces::UTS,
        NamespaceKind::Network => Namespaces::NETWORK,
        NamespaceKind::Cgroup | NamespaceKind::User | NamespaceKind::Time => Namespaces::default(),
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
        NamespaceKind::User => LinkNameSpaceType::User,
        NamespaceKind::Time => LinkNameSpaceType::Time,
    })
}
