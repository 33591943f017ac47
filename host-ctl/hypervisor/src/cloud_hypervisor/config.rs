//! Cloud Hypervisor's configuration of a VM, made from a spec by pure functions.
//!
//! Every device has an id and a PCI slot of its own choosing, so that a restored
//! VM's are where the saved VM's were, whatever the VMM would choose.

use std::path::Path;

use serde_json::{Value, json};

use super::files::Files;
use crate::error::Error;
use crate::spec::{
    AgentDevice, Backing, Disk, MemoryMode, Nic, SharedDirectory, VmSpec, clean_path,
};

/// PCI slots; 0 is the host bridge. Disks and interfaces follow the agent's.
const RANDOM_SLOT: usize = 1;
const AGENT_SLOT: usize = 2;
const FIRST_SLOT: usize = 3;

/// The PCI segment of the directories, which has slots of its own; 0 is its host
/// bridge, too.
const DIRECTORY_SEGMENT: usize = 1;
const FIRST_DIRECTORY_SLOT: usize = 1;

/// Virtqueues of an interface: one for each direction.
const QUEUES: usize = 2;

/// What is in a configuration beside the spec.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    /// Where kernel and initrd are found.
    pub(super) files: &'a Files,
    /// Whether the VMM shall keep itself to the files it was given (Landlock).
    pub(super) confines_files: bool,
}

/// The configuration of a new VM, without its interfaces: those come with
/// descriptors, one by one.
pub(super) fn new_vm(spec: &VmSpec, around: Surroundings<'_>) -> Result<Value, Error> {
    let Surroundings {
        files,
        confines_files,
    } = around;
    let mut config = json!({
        "cpus": {
            "boot_vcpus": spec.vcpus,
            "max_vcpus": spec.vcpus,
            // A guest in the guest is a way to the host's KVM that none needs.
            "nested": false,
        },
        "memory": { "size": 0, "zones": [zone(spec)?] },
        // Read through links that vanish when it runs: see Files.
        "payload": {
            "kernel": clean_path("monitor", &files.kernel())?,
            "initramfs": clean_path("monitor", &files.initrd())?,
            "cmdline": spec.cmdline,
        },
        "serial": { "mode": "Socket", "socket": clean_path("console", &spec.console)? },
        "console": { "mode": "Off" },
        "rng": { "src": "/dev/urandom", "pci_device_id": RANDOM_SLOT },
        "platform": { "system_uuid": spec.uuid },
        "landlock_enable": confines_files,
    });
    if confines_files {
        let save = files.save();
        let path = clean_path("monitor", &save)?;
        config["landlock_rules"] = json!([{ "path": path, "access": "rw" }]);
    }
    if let AgentDevice::HybridVsock { socket, cid } = &spec.agent {
        config["vsock"] = json!({
            "id": "agent",
            "cid": cid,
            "socket": clean_path("agent.socket", socket)?,
            "pci_device_id": AGENT_SLOT,
        });
    }
    if !spec.disks.is_empty() {
        let disks = spec.disks.iter().zip(FIRST_SLOT..);
        let disks = disks.map(|(disk, slot)| block_device(disk, slot));
        config["disks"] = disks.collect::<Result<Vec<Value>, Error>>()?.into();
    }
    if !spec.directories.is_empty() {
        config["platform"]["num_pci_segments"] = json!(DIRECTORY_SEGMENT + 1);
        let directories = spec.directories.iter().enumerate();
        let directories =
            directories.map(|(index, directory)| shared_directory(directory, index, files));
        config["fs"] = directories.collect::<Result<Vec<Value>, Error>>()?.into();
    }
    Ok(config)
}

/// The interfaces, each to be sent with its descriptor.
pub(super) fn interfaces(spec: &VmSpec) -> Vec<Value> {
    let slots = FIRST_SLOT + spec.disks.len()..;
    let nics = spec.nics.iter().zip(slots);
    nics.map(|(nic, slot)| interface(nic, slot)).collect()
}

/// The configuration of a VM to restore, as the VMM reads it from a file.
pub(super) fn restored_vm(spec: &VmSpec, around: Surroundings<'_>) -> Result<Value, Error> {
    let mut config = new_vm(spec, around)?;
    // The kernel is in the saved RAM; an initrd would be opened all the same.
    if let Some(payload) = config["payload"].as_object_mut() {
        payload.remove("initramfs");
    }
    let mut interfaces = interfaces(spec);
    for interface in &mut interfaces {
        // As it writes descriptors itself: there is one, and it is to come.
        interface["fds"] = json!([-1]);
    }
    if !interfaces.is_empty() {
        config["net"] = interfaces.into();
    }
    Ok(config)
}

/// What is asked for to restore from a directory. The descriptors of the
/// interfaces go with it, in their order.
pub(super) fn restore(spec: &VmSpec, directory: &Path, mode: MemoryMode) -> Result<Value, Error> {
    let mut request = json!({
        "source_url": directory_url(directory)?,
        "memory_restore_mode": match mode {
            // Nothing is copied when the state has no RAM in it.
            MemoryMode::CopyOnWrite | MemoryMode::Copy => "Copy",
            MemoryMode::OnDemand => "OnDemand",
        },
    });
    if !spec.nics.is_empty() {
        let descriptors = |nic| json!({ "id": interface_id(nic), "num_fds": 1 });
        request["net_fds"] = spec.nics.iter().map(descriptors).collect();
    }
    Ok(request)
}

/// A directory as the VMM wants it named: what follows is taken as it is.
pub(super) fn directory_url(directory: &Path) -> Result<String, Error> {
    Ok(format!("file://{}", clean_path("monitor", directory)?))
}

fn zone(spec: &VmSpec) -> Result<Value, Error> {
    let size = u64::from(spec.memory.size_mib) << 20;
    let mut zone = json!({ "id": "ram", "size": size });
    match &spec.memory.backing {
        Backing::FileBacked { path, shared } => {
            zone["file"] = clean_path("memory.path", path)?.into();
            zone["shared"] = json!(shared);
        }
        // What serves a directory is given it as a descriptor.
        Backing::Anonymous if !spec.directories.is_empty() => zone["shared"] = json!(true),
        Backing::Anonymous => {}
    }
    Ok(zone)
}

fn block_device(disk: &Disk, slot: usize) -> Result<Value, Error> {
    Ok(json!({
        "id": format!("disk-{}", disk.id),
        "path": clean_path("disks.path", &disk.path)?,
        "readonly": disk.readonly,
        "serial": disk.id,
        // Never guessed: a guest could write another format's head into it.
        "image_type": "Raw",
        "backing_files": false,
        "pci_device_id": slot,
    }))
}

fn shared_directory(
    directory: &SharedDirectory,
    index: usize,
    files: &Files,
) -> Result<Value, Error> {
    Ok(json!({
        "id": format!("directory-{}", directory.tag),
        "tag": directory.tag,
        "socket": clean_path("monitor", &files.directory_socket(index))?,
        "pci_segment": DIRECTORY_SEGMENT,
        "pci_device_id": FIRST_DIRECTORY_SLOT + index,
    }))
}

fn interface(nic: &Nic, slot: usize) -> Value {
    json!({
        "id": interface_id(nic),
        "mac": nic.mac,
        "num_queues": QUEUES,
        "pci_device_id": slot,
    })
}

fn interface_id(nic: &Nic) -> String {
    format!("nic-{}", nic.id)
}

#[cfg(test)]
mod tests;
