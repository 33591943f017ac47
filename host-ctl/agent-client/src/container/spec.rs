//! The OCI spec of a container: what runtimes commonly give.

use protobuf::MessageField;
use protocols::wire::agent::{
    Linux, LinuxCapabilities, LinuxMemory, LinuxNamespace, LinuxPids, LinuxResources, Mount,
    Process, Root, Spec, User,
};

use super::ContainerConfig;
use super::request::mounted_at;

/// Of the OCI runtime specification.
const VERSION: &str = "1.1.0";

/// Destination, filesystem, source, options (OCI runtime-spec, config-linux.md,
/// "Default Filesystems"; the read-only ones and the sizes are Docker's).
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (
        "/dev/shm",
        "tmpfs",
        "shm",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    (
        "/dev/mqueue",
        "mqueue",
        "mqueue",
        &["nosuid", "noexec", "nodev"],
    ),
    (
        "/sys",
        "sysfs",
        "sysfs",
        &["nosuid", "noexec", "nodev", "ro"],
    ),
    (
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ),
];

/// Of its own; the network is the sandbox's, and so is the hostname of a
/// container that asks for none.
const NAMESPACES: [&str; 4] = ["pid", "mount", "ipc", "cgroup"];

/// The namespace of a hostname.
const UTS: &str = "uts";

/// Hidden from containers (moby, oci/defaults.go).
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Read-only in containers (moby, oci/defaults.go).
const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

pub(super) fn build(config: &ContainerConfig, root: String) -> Spec {
    Spec {
        Version: VERSION.to_owned(),
        Process: MessageField::some(process(config)),
        Root: MessageField::some(Root {
            Path: root,
            Readonly: false,
            ..Default::default()
        }),
        Hostname: config.hostname.clone().unwrap_or_default(),
        Mounts: mounts(config),
        Annotations: config.annotations.clone().into_iter().collect(),
        Linux: MessageField::some(Linux {
            Resources: MessageField::some(resources(config)),
            CgroupsPath: format!("/{}", config.id),
            Namespaces: NAMESPACES
                .into_iter()
                .chain(config.hostname.as_ref().map(|_| UTS))
                .map(|kind| LinuxNamespace {
                    Type: kind.to_owned(),
                    ..Default::default()
                })
                .collect(),
            MaskedPaths: MASKED.map(str::to_owned).to_vec(),
            ReadonlyPaths: READONLY.map(str::to_owned).to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn process(config: &ContainerConfig) -> Process {
    let capabilities = &config.capabilities;
    Process {
        Terminal: config.terminal,
        User: MessageField::some(User {
            UID: config.user.uid,
            GID: config.user.gid,
            AdditionalGids: config.user.additional_gids.clone(),
            ..Default::default()
        }),
        Args: config.args.clone(),
        Env: config.env.clone(),
        Cwd: config.cwd.clone(),
        Capabilities: MessageField::some(LinuxCapabilities {
            Bounding: capabilities.clone(),
            Effective: capabilities.clone(),
            Permitted: capabilities.clone(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn mounts(config: &ContainerConfig) -> Vec<Mount> {
    let shared = config.directories.iter().map(|shared| {
        let access = if shared.readonly { "ro" } else { "rw" };
        let source = mounted_at(&config.id, shared);
        let options: &[&str] = &["rbind", access, "nosuid", "nodev"];
        mount(&(&shared.destination, "bind", &source, options))
    });
    MOUNTS.iter().map(mount).chain(shared).collect()
}

fn mount((destination, fstype, source, options): &(&str, &str, &str, &[&str])) -> Mount {
    Mount {
        destination: (*destination).to_owned(),
        source: (*source).to_owned(),
        type_: (*fstype).to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

/// 0 on the wire is "no limit given".
fn resources(config: &ContainerConfig) -> LinuxResources {
    let memory = config.memory_limit.map(|limit| LinuxMemory {
        Limit: i64::try_from(limit).unwrap_or(i64::MAX),
        ..Default::default()
    });
    let pids = config.pids_limit.map(|limit| LinuxPids {
        Limit: limit.into(),
        ..Default::default()
    });
    LinuxResources {
        Memory: MessageField::from_option(memory),
        Pids: MessageField::from_option(pids),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Rootfs;

    fn config() -> ContainerConfig {
        let root = Rootfs::Existing("/r".to_owned());
        ContainerConfig::new("web", root, vec!["/bin/true".to_owned()])
    }

    #[test]
    fn mounts_come_before_what_lies_in_them() {
        let spec = build(&config(), "/r".to_owned());
        let destinations: Vec<_> = spec.Mounts.iter().map(|one| &one.destination).collect();
        for (place, inner) in destinations.iter().enumerate() {
            let is_parent = |outer: &&&String| inner.starts_with(&format!("{outer}/"));
            assert!(!destinations[place..].iter().any(|outer| is_parent(&outer)));
        }
    }

    #[test]
    fn only_a_hostname_of_its_own_takes_a_container_out_of_the_sandbox_s() {
        let has_uts = |config: &ContainerConfig| {
            let spec = build(config, "/r".to_owned());
            spec.Linux.Namespaces.iter().any(|one| one.Type == UTS)
        };
        let mut config = config();
        assert!(!has_uts(&config));
        config.hostname = Some("web".to_owned());
        assert!(has_uts(&config));
    }

    #[test]
    fn limits_and_user_reach_the_spec() {
        let mut config = config();
        config.memory_limit = Some(64 << 20);
        config.pids_limit = Some(10);
        config.user.uid = 33;
        let spec = build(&config, "/r".to_owned());
        let resources = &spec.Linux.Resources;
        assert_eq!(resources.Memory.Limit, 64 << 20);
        assert_eq!(resources.Pids.Limit, 10);
        assert_eq!(spec.Process.User.UID, 33);
        assert!(spec.Process.Capabilities.Inheritable.is_empty());
    }
}
