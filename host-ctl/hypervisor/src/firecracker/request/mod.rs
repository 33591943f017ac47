//! What Firecracker is asked, made from a spec by pure functions.
//!
//! No request names a file by its path. Firecracker writes the paths it was
//! given into a saved state and opens them again when it loads it, before any
//! request could replace them. So each file is opened by us and inherited under
//! a number that is the same for every VM, and what Firecracker is told and
//! saves is /proc/self/fd/NUMBER: of itself that names nothing, and a restored
//! VM gets what its own spec says. Sockets are named below inherited directories.

use std::os::fd::RawFd;

use serde_json::{Value, json};

use crate::error::Error;
use crate::rest::Request;
use crate::spec::{Disk, Nic, NicBackend, VmSpec};

/// The kernel's image. The numbers are below 1024, the usual limit, and above
/// what Firecracker opens itself.
pub(super) const KERNEL: RawFd = 900;
/// The guest's initrd.
pub(super) const INITRD: RawFd = 901;
/// The directory of the control socket.
pub(super) const MONITOR_DIRECTORY: RawFd = 902;
/// The directory of the agent's socket.
pub(super) const AGENT_DIRECTORY: RawFd = 903;
/// The pipe that the guest's console is written to.
pub(super) const CONSOLE: RawFd = 904;
/// A saved state.
pub(super) const STATE: RawFd = 905;
/// A saved memory file.
pub(super) const MEMORY: RawFd = 906;
/// The first disk; the others follow.
pub(super) const FIRST_DISK: RawFd = 910;

/// CPUID functions and the bit of ECX that offers nested virtualisation to the
/// guest: VMX (Intel) and SVM (AMD). No guest needs it.
const NESTED_VIRTUALISATION: [(&str, usize); 2] = [("0x1", 5), ("0x80000001", 2)];

/// The name of an inherited descriptor.
pub(super) fn inherited(number: RawFd) -> String {
    format!("/proc/self/fd/{number}")
}

/// Where the agent's socket is, and what it is called there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agent<'a> {
    /// Name of the socket's file in [`AGENT_DIRECTORY`].
    pub(super) socket: &'a str,
    /// The guest's context id.
    pub(super) cid: u32,
}

impl Agent<'_> {
    fn path(self) -> String {
        format!("{}/{}", inherited(AGENT_DIRECTORY), self.socket)
    }
}

/// The arguments of Firecracker, without its own name. `socket` is the name of
/// the control socket in [`MONITOR_DIRECTORY`].
pub(super) fn arguments(spec: &VmSpec, socket: &str) -> Vec<String> {
    let path = format!("{}/{socket}", inherited(MONITOR_DIRECTORY));
    let arguments = ["--id", &spec.uuid, "--enable-pci", "--api-sock", &path];
    arguments.map(str::to_owned).into()
}

/// Everything up to a guest that runs.
///
/// # Errors
/// [`Error::Unsupported`] for what Firecracker has not.
pub(super) fn boot(spec: &VmSpec, agent: Agent<'_>) -> Result<Vec<Request<'static>>, Error> {
    let mut requests = vec![
        quiet(),
        put(
            "/machine-config",
            json!({"vcpu_count": spec.vcpus, "mem_size_mib": spec.memory.size_mib, "smt": false}),
        ),
        put("/cpu-config", cpu()),
        put(
            "/boot-source",
            json!({
                "kernel_image_path": inherited(KERNEL),
                "initrd_path": inherited(INITRD),
                "boot_args": spec.cmdline,
            }),
        ),
        console(),
    ];
    for (disk, number) in spec.disks.iter().zip(FIRST_DISK..) {
        requests.push(drive(disk, number));
    }
    for (index, nic) in spec.nics.iter().enumerate() {
        requests.push(interface(nic, index)?);
    }
    requests.push(put(
        "/vsock",
        json!({"guest_cid": agent.cid, "uds_path": agent.path()}),
    ));
    requests.push(put("/actions", json!({"action_type": "InstanceStart"})));
    Ok(requests)
}

/// Everything up to a restored guest that is paused.
///
/// # Errors
/// [`Error::Unsupported`] for what Firecracker has not.
pub(super) fn restore(spec: &VmSpec, agent: Agent<'_>) -> Result<Vec<Request<'static>>, Error> {
    let overridden = |(index, nic): (usize, &Nic)| {
        Ok(json!({"iface_id": interface_id(index), "host_dev_name": tap(nic)?}))
    };
    let nics = spec.nics.iter().enumerate().map(overridden);
    let nics = nics.collect::<Result<Vec<Value>, Error>>()?;
    let load = json!({
        "snapshot_path": inherited(STATE),
        "mem_backend": {"backend_type": "File", "backend_path": inherited(MEMORY)},
        "resume_vm": false,
        "network_overrides": nics,
        "vsock_override": {"uds_path": agent.path()},
    });
    Ok(vec![quiet(), console(), put("/snapshot/load", load)])
}

fn put(path: &'static str, body: Value) -> Request<'static> {
    Request::put(path, Some(body))
}

/// From here on only warnings are logged: at the level that tells when the
/// control socket is listened on, every request is logged with its body.
fn quiet() -> Request<'static> {
    put("/logger", json!({"level": "Warning"}))
}

fn console() -> Request<'static> {
    put("/serial", json!({"serial_out_path": inherited(CONSOLE)}))
}

fn cpu() -> Value {
    let cleared = |(leaf, bit): (&str, usize)| {
        let mut bits = ["x"; 32];
        // The highest bit is written first.
        bits[31 - bit] = "0";
        let bitmap = format!("0b{}", bits.concat());
        json!({
            "leaf": leaf, "subleaf": "0x0", "flags": 0,
            "modifiers": [{"register": "ecx", "bitmap": bitmap}],
        })
    };
    json!({"cpuid_modifiers": NESTED_VIRTUALISATION.map(cleared)})
}

/// Ids may hold letters, digits and `_` only, fewer than a spec's, and no guest
/// sees them: they are made from the place in the spec.
fn drive(disk: &Disk, number: RawFd) -> Request<'static> {
    let id = format!("disk{}", number - FIRST_DISK);
    let body = json!({
        "drive_id": id,
        "path_on_host": inherited(number),
        "is_root_device": false,
        "is_read_only": disk.readonly,
        // What the guest flushes is flushed.
        "cache_type": "Writeback",
    });
    Request {
        id,
        ..put("/drives/", body)
    }
}

fn interface_id(index: usize) -> String {
    format!("nic{index}")
}

fn interface(nic: &Nic, index: usize) -> Result<Request<'static>, Error> {
    let id = interface_id(index);
    let body = json!({"iface_id": id, "guest_mac": nic.mac, "host_dev_name": tap(nic)?});
    Ok(Request {
        id,
        ..put("/network-interfaces/", body)
    })
}

fn tap(nic: &Nic) -> Result<&str, Error> {
    match &nic.backend {
        NicBackend::Tap { name } => Ok(name),
        NicBackend::None => Err(Error::Unsupported("a network interface without a tap")),
        NicBackend::User => Err(Error::Unsupported("user-mode networking")),
    }
}

#[cfg(test)]
mod tests;
