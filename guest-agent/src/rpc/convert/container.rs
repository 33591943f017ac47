//! CreateContainer and its kin: the wire's OCI spec to the runtime's.

use super::additions::Additions;
use super::device::{device, device_rule};
use super::hooks::hooks;
use super::process::process_from_wire;
use super::resources::resources;
use super::seccomp::seccomp_profile;
use super::{ConvertError, invalid, refuse, unsupported};
use crate::service::container::{CreateContainer, RemoveContainer, StartContainer};
use guest_runtime::ContainerId;
use guest_runtime::container::{
    ContainerSpec, IdMapping, IdMappings, IdentityFiles, MountSpec, NamespaceKind, NamespaceSpec,
    RootSpec,
};
use guest_runtime::storage::StorageSpec;
use protocols::wire::agent;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Commands to run in the container once a clone was released: a JSON list of
/// argument lists.
const AFTER_THAW: &str = "dev.tardigrade.after-thaw";
/// Whether its processes may make sockets of the transport: [`VSOCK_ALLOWED`] or
/// nothing. Part of the request, it is shown to the policy as the rest.
const VSOCK: &str = "dev.tardigrade.vsock";
const VSOCK_ALLOWED: &str = "allowed";
/// Where in the container it leaves its last words.
const TERMINATION_MESSAGE: &str = "io.kubernetes.container.terminationMessagePath";

impl TryFrom<agent::CreateContainerRequest> for CreateContainer {
    type Error = ConvertError;

    fn try_from(request: agent::CreateContainerRequest) -> Result<Self, ConvertError> {
        refuse(!request.devices.is_empty(), "devices")?;
        refuse(!request.shared_mounts.is_empty(), "shared_mounts")?;
        refuse(request.sandbox_pidns, "sandbox_pidns")?;
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        refuse(
            ports.iter().any(|port| *port != 0),
            "passing of stdio (ports)",
        )?;
        let id = container_id(&request.container_id)?;
        let spec = request
            .OCI
            .into_option()
            .ok_or(ConvertError::Missing { field: "OCI" })?;
        let after_thaw_hooks = match spec.Annotations.get(AFTER_THAW) {
            Some(text) => serde_json::from_str(text).map_err(invalid(AFTER_THAW, text))?,
            None => Vec::new(),
        };
        let termination_message_path = spec.Annotations.get(TERMINATION_MESSAGE).cloned();
        Ok(Self {
            termination_message_path,
            spec: container_spec(id, spec)?,
            storages: request
                .storages
                .into_iter()
                .map(storage)
                .collect::<Result<_, _>>()?,
            after_thaw_hooks,
        })
    }
}

impl TryFrom<agent::StartContainerRequest> for StartContainer {
    type Error = ConvertError;

    fn try_from(request: agent::StartContainerRequest) -> Result<Self, ConvertError> {
        let id = container_id(&request.container_id)?;
        Ok(Self { id })
    }
}

impl TryFrom<agent::RemoveContainerRequest> for RemoveContainer {
    type Error = ConvertError;

    fn try_from(request: agent::RemoveContainerRequest) -> Result<Self, ConvertError> {
        let id = container_id(&request.container_id)?;
        let timeout = (request.timeout != 0).then(|| Duration::from_secs(request.timeout.into()));
        Ok(Self { id, timeout })
    }
}

/// The text before the reason is what clients know the failure by.
pub(super) fn container_id(text: &str) -> Result<ContainerId, ConvertError> {
    text.parse().map_err(invalid("invalid container ID", text))
}

pub(super) fn storage(storage: agent::Storage) -> Result<StorageSpec, ConvertError> {
    refuse(storage.fs_group.is_some(), "fs_group")?;
    if storage.mount_point.is_empty() {
        return Err(ConvertError::Missing {
            field: "mount_point",
        });
    }
    Ok(StorageSpec {
        driver: storage.driver,
        driver_options: storage.driver_options,
        source: storage.source,
        fstype: storage.fstype,
        options: storage.options,
        mount_point: storage.mount_point.into(),
        shared: storage.shared,
    })
}

fn container_spec(id: ContainerId, spec: agent::Spec) -> Result<ContainerSpec, ConvertError> {
    refuse(spec.Solaris.is_some(), "a Solaris section")?;
    refuse(spec.Windows.is_some(), "a Windows section")?;
    let process = spec.Process.into_option();
    let root = spec.Root.into_option();
    let linux = spec.Linux.into_option().unwrap_or_default();
    refuse_linux(&linux)?;
    let root = root.ok_or(ConvertError::Missing { field: "OCI.Root" })?;
    let mut process = process_from_wire(process.ok_or(ConvertError::Missing {
        field: "OCI.Process",
    })?)?;
    let propagation = linux.RootfsPropagation;
    let additions = Additions::of(&spec.Annotations)?;
    let mut resources_wanted = linux.Resources.into_option().unwrap_or_default();
    let device_rules = std::mem::take(&mut resources_wanted.Devices);
    let seccomp = linux.Seccomp.into_option();
    process.seccomp = seccomp.map(seccomp_profile).transpose()?;
    process.vsock = match spec.Annotations.get(VSOCK).map(String::as_str) {
        None => false,
        Some(VSOCK_ALLOWED) => true,
        Some(other) => return Err(invalid(VSOCK, other)("not \"allowed\"")),
    };
    let mut spec = ContainerSpec {
        process,
        root: RootSpec {
            path: root.Path.into(),
            readonly: root.Readonly,
            propagation: (!propagation.is_empty()).then_some(propagation),
        },
        hostname: (!spec.Hostname.is_empty()).then_some(spec.Hostname),
        mount_label: (!linux.MountLabel.is_empty()).then_some(linux.MountLabel),
        mounts: spec.Mounts.into_iter().map(mount).collect(),
        namespaces: linux
            .Namespaces
            .iter()
            .map(namespace)
            .collect::<Result<_, _>>()?,
        id_mappings: IdMappings {
            users: linux.UIDMappings.iter().map(id_mapping).collect(),
            groups: linux.GIDMappings.iter().map(id_mapping).collect(),
        },
        // The wire has no field for these.
        time_offsets: BTreeMap::new(),
        sysctl: linux.Sysctl.into_iter().collect(),
        cgroup_name: id.to_string(),
        resources: resources(resources_wanted)?,
        devices: linux
            .Devices
            .into_iter()
            .map(device)
            .collect::<Result<_, _>>()?,
        device_rules: device_rules
            .iter()
            .map(device_rule)
            .collect::<Result<_, _>>()?,
        masked_paths: linux.MaskedPaths.into_iter().map(Into::into).collect(),
        readonly_paths: linux.ReadonlyPaths.into_iter().map(Into::into).collect(),
        hooks: hooks(spec.Hooks.into_option().unwrap_or_default())?,
        annotations: spec.Annotations.into_iter().collect(),
        // The agent adds its own when it creates the container.
        bundle: PathBuf::new(),
        identity_files: IdentityFiles::default(),
        id,
    };
    additions.add_to(&mut spec)?;
    Ok(spec)
}

fn refuse_linux(linux: &agent::Linux) -> Result<(), ConvertError> {
    let rdt = linux
        .IntelRdt
        .as_ref()
        .is_some_and(|rdt| !rdt.L3CacheSchema.is_empty());
    refuse(rdt, "intelRdt")
}

fn id_mapping(mapping: &agent::LinuxIDMapping) -> IdMapping {
    IdMapping {
        inside: mapping.ContainerID,
        outside: mapping.HostID,
        size: mapping.Size,
    }
}

fn mount(mount: agent::Mount) -> MountSpec {
    MountSpec {
        destination: mount.destination.into(),
        source: (!mount.source.is_empty()).then(|| mount.source.into()),
        fstype: (!mount.type_.is_empty()).then_some(mount.type_),
        options: mount.options,
        // The wire has no field for it.
        id_mappings: None,
    }
}

fn namespace(namespace: &agent::LinuxNamespace) -> Result<NamespaceSpec, ConvertError> {
    let kind = match namespace.Type.as_str() {
        "pid" => NamespaceKind::Pid,
        "mount" => NamespaceKind::Mount,
        "ipc" => NamespaceKind::Ipc,
        "uts" => NamespaceKind::Uts,
        "network" => NamespaceKind::Network,
        "cgroup" => NamespaceKind::Cgroup,
        "user" => NamespaceKind::User,
        "time" => NamespaceKind::Time,
        other => return Err(unsupported(format!("namespace {other:?}"))),
    };
    let path = (!namespace.Path.is_empty()).then(|| namespace.Path.clone().into());
    Ok(NamespaceSpec { kind, path })
}
