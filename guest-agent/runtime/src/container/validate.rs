//! What a spec must be before anything is done for it. What is not supported
//! is refused by name, never ignored.

use super::error::Refused;
use super::id_mapping::outside;
use super::spec::{
    ContainerSpec, DeviceNode, DeviceSpec, MountSpec, NamespaceKind, ProcessSpec, TimeOffset,
};
use crate::mount_options::{MountOptions, Propagation, propagation_of};
use rustix::mount::MountPropagationFlags;
use std::path::{Component, Path};

/// File systems a container may have mounted anew.
const FILE_SYSTEMS: [&str; 7] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2",
];
/// `HOST_NAME_MAX`, gethostname(2).
const HOSTNAME_MAX: usize = 64;
const NANOS_A_SECOND: u32 = 1_000_000_000;
/// -1 means "leave it as it is" to the kernel, chown(2), setresuid(2).
const NOBODY: u32 = u32::MAX;
/// The bits of a mode that are permissions.
const PERMISSIONS: u32 = 0o7777;
/// The range of oom_score_adj, proc(5).
const OOM_SCORES: std::ops::RangeInclusive<i32> = -1000..=1000;

fn refuse<T>(feature: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(feature.into()))
}

impl ContainerSpec {
    /// Whether it can be done at all.
    ///
    /// # Errors
    /// What is not supported.
    pub fn validate(&self) -> Result<(), Refused> {
        self.process.validate()?;
        if !is_plain(&self.root.path) {
            return refuse(format!("root path {}", self.root.path.display()));
        }
        match self.root.propagation.as_deref() {
            Some(word) if propagation_of(word).is_none() => {
                return refuse(format!("rootfsPropagation {word:?}"));
            }
            _ => {}
        }
        let propagation = self.root.propagation.as_deref().and_then(propagation_of);
        self.validate_propagation(propagation, Path::new("/"))?;
        self.validate_namespaces()?;
        self.validate_users()?;
        super::sysctl::validate(self)?;
        self.hooks.validate()?;
        let paths = self.masked_paths.iter().chain(&self.readonly_paths);
        for path in paths {
            if !is_plain(path) {
                return refuse(format!("masked or read-only path {}", path.display()));
            }
        }
        for mount in &self.mounts {
            let options = validate_mount(mount)?;
            self.validate_id_map(mount, &options)?;
            self.validate_propagation(options.propagation, &mount.destination)?;
        }
        self.devices
            .iter()
            .try_for_each(|device| self.validate_device(device))
    }

    fn validate_id_map(&self, mount: &MountSpec, options: &MountOptions) -> Result<(), Refused> {
        let refused = |reason| {
            let destination = mount.destination.display();
            refuse(format!("mapping of the owners of {destination} {reason}"))
        };
        match &mount.id_mappings {
            None if options.id_map.is_none() => Ok(()),
            _ if options.bind.is_none() => refused("that is no bind mount"),
            Some(mappings) => mappings.validate(),
            None if self.has_own(NamespaceKind::User) => Ok(()),
            None => refused("without mappings"),
        }
    }

    fn validate_device(&self, device: &DeviceSpec) -> Result<(), Refused> {
        let path = device.path.display();
        if !is_plain(&device.path) || device.path.components().count() < 2 {
            return refuse(format!("device path {path}"));
        }
        if device.mode & !PERMISSIONS != 0 {
            return refuse(format!("mode {:o} of device {path}", device.mode));
        }
        if [device.uid, device.gid].contains(&NOBODY) {
            return refuse(format!("user or group {NOBODY} of device {path}"));
        }
        // It would be made in what was bound.
        let bound = |mount: &&MountSpec| {
            let options = MountOptions::parse(&mount.options);
            options.is_ok_and(|options| options.bind.is_some())
                && device.path.starts_with(&mount.destination)
        };
        match self.mounts.iter().find(bound) {
            Some(mount) => refuse(format!(
                "device {path} below the bind mount of {}",
                mount.destination.display()
            )),
            None => Ok(()),
        }
    }

    fn validate_namespaces(&self) -> Result<(), Refused> {
        for (index, namespace) in self.namespaces.iter().enumerate() {
            let kind = namespace.kind;
            let earlier = self.namespaces.iter().take(index);
            if earlier.into_iter().any(|other| other.kind == kind) {
                return refuse(format!("a second namespace of kind {kind:?}"));
            }
            let joined = namespace.path.is_some();
            if joined && matches!(kind, NamespaceKind::Mount | NamespaceKind::Cgroup) {
                return refuse(format!("joining a namespace of kind {kind:?}"));
            }
        }
        if !self.time_offsets.is_empty() && !self.makes(NamespaceKind::Time) {
            return refuse("time offsets without a new time namespace");
        }
        for (clock, TimeOffset { nanosecs, .. }) in &self.time_offsets {
            if *nanosecs >= NANOS_A_SECOND {
                return refuse(format!("{nanosecs} nanoseconds of the {clock} clock"));
            }
        }
        let Some(hostname) = &self.hostname else {
            return Ok(());
        };
        if hostname.len() > HOSTNAME_MAX {
            return refuse("a hostname of more than 64 bytes");
        }
        if self.makes(NamespaceKind::Uts) {
            Ok(())
        } else {
            refuse("a hostname without a new uts namespace")
        }
    }

    fn validate_users(&self) -> Result<(), Refused> {
        let maps = &self.id_mappings;
        if !self.has_own(NamespaceKind::User) {
            return if maps.is_empty() {
                Ok(())
            } else {
                refuse("user namespace mappings without a user namespace")
            };
        }
        let is_node = |device: &DeviceSpec| device.node != DeviceNode::Fifo;
        if self.joins(NamespaceKind::User) && maps.is_empty() {
            // Whom they would belong to is not known.
            return if self.devices.iter().any(is_node) {
                refuse("a device in a joined user namespace without its mappings")
            } else {
                Ok(())
            };
        }
        maps.validate()?;
        let user = &self.process.user;
        let devices = self.devices.iter();
        let users = devices
            .clone()
            .map(|device| device.uid)
            .chain([0, user.uid]);
        let groups = devices.map(|device| device.gid).chain([0, user.gid]);
        let groups = groups.chain(user.additional_gids.iter().copied());
        let users = users.map(|id| (&maps.users, id));
        for (mappings, id) in users.chain(groups.map(|id| (&maps.groups, id))) {
            if outside(mappings, id).is_none() {
                return refuse(format!("user or group {id} without a mapping"));
            }
        }
        Ok(())
    }
}

impl ContainerSpec {
    /// What the kernel does when a user namespace gets a copy of mounts, and not
    /// when it is given some: none may be a peer of the guest's, or what is
    /// mounted in the namespace would be there as well (mount_namespaces(7)).
    fn validate_propagation(
        &self,
        propagation: Option<Propagation>,
        place: &Path,
    ) -> Result<(), Refused> {
        let shared = propagation.is_some_and(|one| one.flag == MountPropagationFlags::SHARED);
        if shared && self.has_own(NamespaceKind::User) {
            return refuse(format!(
                "shared propagation of {} in a user namespace",
                place.display()
            ));
        }
        Ok(())
    }
}

impl ProcessSpec {
    /// Whether it can be done at all.
    ///
    /// # Errors
    /// What is not supported.
    pub fn validate(&self) -> Result<(), Refused> {
        if self.args.first().is_none_or(String::is_empty) {
            return refuse("a process without arguments");
        }
        let strings = self.args.iter().chain(&self.env);
        if strings.into_iter().any(|string| string.contains('\0')) {
            return refuse("a zero byte in an argument or in the environment");
        }
        let user = &self.user;
        let ids = [user.uid, user.gid].into_iter();
        if ids
            .chain(user.additional_gids.iter().copied())
            .any(|id| id == NOBODY)
        {
            return refuse(format!("user or group {NOBODY}"));
        }
        if !is_plain(&self.cwd) {
            return refuse(format!("working directory {}", self.cwd.display()));
        }
        for (index, rlimit) in self.rlimits.iter().enumerate() {
            let mut earlier = self.rlimits.iter().take(index);
            if earlier.any(|other| other.kind == rlimit.kind) {
                return refuse(format!("a second {}", rlimit.kind));
            }
        }
        match self.umask {
            Some(umask) if umask > 0o777 => return refuse(format!("umask {umask:o}")),
            _ => {}
        }
        if let Some(profile) = &self.seccomp {
            profile.validate()?;
        }
        match self.oom_score_adj {
            Some(score) if !OOM_SCORES.contains(&score) => refuse(format!("oom_score_adj {score}")),
            _ => Ok(()),
        }
    }
}

fn validate_mount(mount: &MountSpec) -> Result<MountOptions, Refused> {
    let destination = mount.destination.display();
    if !is_plain(&mount.destination) || mount.destination.components().count() < 2 {
        return refuse(format!("mount destination {destination}"));
    }
    let options = MountOptions::parse(&mount.options)
        .map_err(|error| Refused(format!("{error} of {destination}")))?;
    // A /dev is filled by the agent.
    let plain_tmpfs = mount.fstype.as_deref() == Some("tmpfs") && options.bind.is_none();
    if options.copy_up && (!plain_tmpfs || mount.destination.as_path() == Path::new("/dev")) {
        return refuse(format!("mount option tmpcopyup of {destination}"));
    }
    if options.devices && options.bind.is_some() {
        return refuse(format!("mount option dev of {destination}"));
    }
    match (mount.fstype.as_deref(), options.bind) {
        (None | Some("bind" | "none"), Some(_)) | (Some(_), Some(_)) => {
            match mount.source.as_deref() {
                Some(source) if is_plain(source) => Ok(options),
                _ => refuse(format!(
                    "bind mount of {destination} without a plain source"
                )),
            }
        }
        (Some(fstype), None) if FILE_SYSTEMS.contains(&fstype) => Ok(options),
        (fstype, None) => refuse(format!(
            "mount of {destination} with file system {:?}",
            fstype.unwrap_or_default()
        )),
    }
}

/// Absolute, and without a component that goes up.
pub(super) fn is_plain(path: &Path) -> bool {
    let up = |component| matches!(component, Component::ParentDir);
    path.is_absolute()
        && !path.components().any(up)
        && !path.as_os_str().as_encoded_bytes().contains(&0)
}
