//! Kernel parameters (OCI `config-linux.md`, "Sysctl"): only those that belong
//! to a namespace, and only where the namespace is the container's. The
//! network's are set in the network namespace the container is in, which may be
//! the guest's: that is the pod's.

use super::error::Refused;
use super::spec::{ContainerSpec, NamespaceKind};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::system::setdomainname;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// Of the IPC namespace, ipc_namespaces(7).
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shm_rmid_forced",
    "kernel/shmmax",
    "kernel/shmmni",
];
const MESSAGE_QUEUES: &str = "fs/mqueue/";
/// Of the UTS namespace; the hostname has a field of its own.
const DOMAIN_NAME: &str = "kernel/domainname";
const NETWORK: &str = "net/";

/// The path below /proc/sys. Dots and slashes change places in a name whose
/// first separator is a dot, sysctl.d(5).
fn path_of(name: &str) -> String {
    let first = name.find(['.', '/']);
    if first.is_some_and(|first| name[first..].starts_with('/')) {
        return name.into();
    }
    name.chars()
        .map(|letter| match letter {
            '.' => '/',
            '/' => '.',
            letter => letter,
        })
        .collect()
}

/// Whether every parameter of the spec is the container's.
pub(super) fn validate(spec: &ContainerSpec) -> Result<(), Refused> {
    for (name, value) in &spec.sysctl {
        let refused = |reason: &str| Err(Refused(format!("sysctl {name:?}{reason}")));
        let path = path_of(name);
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !path.split('/').all(plain) || path.contains('\0') || value.contains('\0') {
            return refused("");
        }
        let Some(owner) = owner_of(&path) else {
            return refused("");
        };
        if owner == NamespaceKind::Network {
            continue;
        }
        if !spec.has_own(owner) {
            return refused(&format!(" without a namespace of kind {owner:?}"));
        }
    }
    Ok(())
}

/// To which kind of namespace a parameter belongs; none if to no namespace.
fn owner_of(path: &str) -> Option<NamespaceKind> {
    if IPC.contains(&path) || path.starts_with(MESSAGE_QUEUES) {
        Some(NamespaceKind::Ipc)
    } else if path == DOMAIN_NAME {
        Some(NamespaceKind::Uts)
    } else if path.starts_with(NETWORK) {
        Some(NamespaceKind::Network)
    } else {
        None
    }
}

impl ContainerSpec {
    /// Whether a parameter of its spec is set in a namespace that is not its
    /// own alone: the guest's network namespace, or one it joins.
    #[must_use]
    pub fn changes_shared_namespaces(&self) -> bool {
        let mut names = self.sysctl.keys();
        names.any(|name| owner_of(&path_of(name)).is_some_and(|kind| !self.makes(kind)))
    }
}

/// Sets a parameter of the calling process's namespaces.
pub(super) fn set(name: &str, value: &str) -> io::Result<()> {
    let path = path_of(name);
    if path == DOMAIN_NAME {
        // The file is the guest's root's alone, whose ever the namespace is.
        return Ok(setdomainname(value.as_bytes())?);
    }
    let path = PathBuf::from("/proc/sys").join(path);
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), resolve)?;
    if !super::init::is_kernels(&file)? {
        return Err(Errno::PERM.into());
    }
    File::from(file).write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dots_and_slashes_change_places_in_a_name_with_dots() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            ("kernel", "kernel"),
            ("", ""),
        ] {
            assert_eq!(path_of(name), path);
        }
    }

    proptest! {
        #[test]
        fn no_name_makes_it_panic(name in "[a-z./é]{0,20}") {
            let _ = path_of(&name);
        }
    }
}
