//! QEMU's command line, made from a spec by a pure function.
//!
//! Foreign text is never put where QEMU parses options: paths are in JSON (the
//! argument of -object), or are whole arguments (-kernel, -initrd, -append);
//! sockets, disks and taps have no name at all, they are inherited descriptors.

use std::os::fd::RawFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::probe::Version;
use crate::error::Error;
use crate::spec::{
    AgentDevice, Backing, Disk, Nic, NicBackend, SharedDirectory, VmSpec, clean_path,
};
use crate::vm::Accelerator;

/// Name of the QMP id that VSERPORT_CHANGE and query-chardev name the agent's
/// port by.
pub(super) const AGENT_ID: &str = "agent";

/// PCI slot of the agent's device; disks, interfaces and directories follow. 0 is the host
/// bridge, and 31 QEMU's own ISA bridge.
const FIRST_SLOT: usize = 3;

/// Cache for translated code, in MiB. Its size makes no difference to a restore;
/// it bounds what emulation adds to the memory of a VM that runs for long.
const TRANSLATION_CACHE_MIB: u32 = 128;

/// The firmware: qboot does nothing but load the kernel. Compared with SeaBIOS a
/// saved state is 165 KiB smaller.
const FIRMWARE: &str = "qboot.rom";

/// The option ROM that -kernel brings along. A restored VM has run it long ago,
/// but its bytes are part of the saved state and must have a place. Without
/// -kernel QEMU does not read the kernel and the initrd again: a quarter of the
/// time of a restore with a distribution's kernel.
const KERNEL_LOADER: &str = "linuxboot_dma.bin";

/// The first version with `rom=off`, with which a private mapping of a file that
/// was opened read-only can be written.
const OPENS_READ_ONLY: Version = Version { major: 8, minor: 2 };

/// Where a command line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// How guest code is executed.
    pub accelerator: Accelerator,
    /// QEMU's version.
    pub version: Version,
}

/// How the VM begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With its kernel.
    Boot,
    /// Paused, waiting for a saved state.
    Restore,
}

/// Numbers of the descriptors that QEMU inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptors {
    /// Listening socket for QMP.
    pub monitor: RawFd,
    /// Listening socket for the console.
    pub console: RawFd,
    /// Listening socket for the agent's port, where it is a serial one.
    pub agent: Option<RawFd>,
    /// The disks' images, in the order of the spec.
    pub disks: Vec<RawFd>,
    /// The tap devices' queues, in the order of the spec's interfaces that have
    /// one.
    pub taps: Vec<RawFd>,
    /// Connections to what serves the directories, in the order of the spec.
    pub directories: Vec<RawFd>,
    /// What it opens by descriptors and not by the paths of the spec.
    pub handed: HandedFiles,
}

/// Numbers of descriptors that stand in for paths; none is opened by its path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandedFiles {
    /// The memory file.
    pub memory: Option<RawFd>,
    /// The guest's kernel.
    pub kernel: Option<RawFd>,
    /// The guest's initrd.
    pub initrd: Option<RawFd>,
    /// The host's vsock device.
    pub vsock: Option<RawFd>,
}

/// A file as QEMU is told it.
fn named(field: &'static str, path: &Path, handed: Option<RawFd>) -> Result<String, Error> {
    let path = clean_path(field, path)?;
    Ok(handed.map_or_else(
        || path.to_owned(),
        |number| format!("/proc/self/fd/{number}"),
    ))
}

impl Platform {
    /// The versioned machine type and the firmware. q35 and pc boot and restore
    /// in the same time; q35 has no floppy and IDE controllers to carry along.
    /// microvm has no versioned types, which saved states need.
    #[must_use]
    pub fn machine(&self) -> String {
        format!("{} {FIRMWARE}", self.machine_type())
    }

    /// The CPU model of a spec that names none: what this very host gives.
    #[must_use]
    pub fn default_cpu_model(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max",
        }
    }

    /// Whether a private mapping of a file leaves the file opened read-only.
    #[must_use]
    pub fn maps_read_only(&self) -> bool {
        self.version >= OPENS_READ_ONLY
    }

    fn machine_type(&self) -> String {
        // A machine type of 7.2 exists in every later version for years, but a
        // state only loads into the version that wrote it with certainty, so the
        // newest type is as good and the manifest holds the version.
        format!("pc-q35-{}.{}", self.version.major, self.version.minor)
    }

    fn accelerator_option(&self) -> String {
        match self.accelerator {
            Accelerator::Kvm => "kvm".to_owned(),
            Accelerator::Tcg => format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"),
        }
    }
}

/// The arguments of QEMU, without its own name.
///
/// # Errors
/// [`Error::Spec`] for a spec that [`VmSpec::validate`] refuses, or descriptors
/// that don't belong to it.
pub fn arguments(
    spec: &VmSpec,
    platform: Platform,
    start: Start,
    descriptors: &Descriptors,
) -> Result<Vec<String>, Error> {
    spec.validate()?;
    let mut line = Line(Vec::new());
    let handed = descriptors.handed;
    machine(&mut line, spec, platform, handed.memory)?;
    character_devices(&mut line, descriptors);
    agent(&mut line, spec, descriptors)?;
    if spec.disks.len() != descriptors.disks.len() {
        return Err(mismatch("disks"));
    }
    let slots = FIRST_SLOT + 1..;
    for ((disk, &descriptor), (index, slot)) in spec
        .disks
        .iter()
        .zip(&descriptors.disks)
        .zip(slots.clone().enumerate())
    {
        block_device(&mut line, disk, descriptor, index, slot);
    }
    let mut taps = descriptors.taps.iter();
    let mut slots = slots.skip(spec.disks.len());
    for (nic, slot) in spec.nics.iter().zip(slots.by_ref()) {
        interface(&mut line, nic, slot, &mut taps)?;
    }
    if taps.next().is_some() {
        return Err(mismatch("nics"));
    }
    if spec.directories.len() != descriptors.directories.len() {
        return Err(mismatch("directories"));
    }
    let directories = spec.directories.iter().zip(&descriptors.directories);
    for ((directory, &descriptor), slot) in directories.zip(slots) {
        shared_directory(&mut line, directory, descriptor, slot);
    }
    beginning(&mut line, spec, start, handed)?;
    Ok(line.0)
}

/// The arguments of the smallest VM that shows whether KVM runs a kernel: a
/// console, and nothing to boot into.
pub(super) fn probe_arguments(
    version: Version,
    kernel: &Path,
    console: RawFd,
) -> Result<Vec<String>, Error> {
    let platform = Platform {
        accelerator: Accelerator::Kvm,
        version,
    };
    let mut line = Line(Vec::new());
    basics(&mut line, platform, "");
    line.option("-cpu", platform.default_cpu_model());
    line.option("-m", "256M");
    line.option("-chardev", format!("socket,id=console,fd={console},mux=on"));
    line.option("-serial", "chardev:console");
    // The firmware speaks long before the kernel does (SeaBIOS, "Debugging").
    line.option("-device", "isa-debugcon,iobase=0x402,chardev=console");
    line.option("-kernel", clean_path("kernel", kernel)?);
    line.option("-append", "console=ttyS0 panic=-1");
    Ok(line.0)
}

/// A command line that grows.
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.flag(name);
        self.0.push(value.into());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.option(name, value.to_string());
    }
}

fn basics(line: &mut Line, platform: Platform, machine_options: &str) {
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-display", "none");
    // A guest that resets is over; it must not start again behind our back.
    line.flag("-no-reboot");
    let machine_type = platform.machine_type();
    line.option(
        "-machine",
        format!("{machine_type},usb=off,vmport=off,sata=off,smbus=off,dump-guest-core=off{machine_options}"),
    );
    line.option("-bios", FIRMWARE);
    line.option("-accel", platform.accelerator_option());
    line.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
}

fn machine(
    line: &mut Line,
    spec: &VmSpec,
    platform: Platform,
    handed: Option<RawFd>,
) -> Result<(), Error> {
    basics(line, platform, ",memory-backend=ram");
    line.option("-name", format!("guest={}", spec.name));
    line.option("-uuid", spec.uuid.clone());
    let model = spec.cpu_model.as_deref();
    line.option("-cpu", model.unwrap_or(platform.default_cpu_model()));
    line.option("-smp", spec.vcpus.to_string());
    line.option("-m", format!("{}M", spec.memory.size_mib));
    line.json("-object", &memory(spec, platform, handed)?);
    Ok(())
}

fn memory(spec: &VmSpec, platform: Platform, handed: Option<RawFd>) -> Result<Value, Error> {
    let size = u64::from(spec.memory.size_mib) << 20;
    Ok(match &spec.memory.backing {
        // What serves a directory is given it as a descriptor.
        Backing::Anonymous if !spec.directories.is_empty() => {
            json!({"qom-type": "memory-backend-memfd", "id": "ram", "size": size, "share": true, "dump": false, "merge": false})
        }
        Backing::Anonymous => {
            json!({"qom-type": "memory-backend-ram", "id": "ram", "size": size, "dump": false, "merge": false})
        }
        Backing::FileBacked { path, shared } => {
            let path = named("memory.path", path, handed)?;
            let mut object = json!({
                "qom-type": "memory-backend-file", "id": "ram", "size": size,
                "mem-path": path, "share": shared, "dump": false, "merge": false,
            });
            if !shared && platform.maps_read_only() {
                object["readonly"] = json!(true);
                object["rom"] = json!("off");
            }
            object
        }
    })
}

fn character_devices(line: &mut Line, descriptors: &Descriptors) {
    line.option("-chardev", listening("monitor", descriptors.monitor));
    line.option("-mon", "chardev=monitor,mode=control");
    line.option("-chardev", listening("console", descriptors.console));
    line.option("-serial", "chardev:console");
}

fn listening(id: &str, descriptor: RawFd) -> String {
    format!("socket,id={id},fd={descriptor},server=on,wait=off")
}

fn agent(line: &mut Line, spec: &VmSpec, descriptors: &Descriptors) -> Result<(), Error> {
    match (&spec.agent, descriptors.agent) {
        (AgentDevice::Serial { port_name, .. }, Some(descriptor)) => {
            line.option("-chardev", listening(AGENT_ID, descriptor));
            line.json(
                "-device",
                &virtio("virtio-serial-pci", "serial", FIRST_SLOT),
            );
            line.json(
                "-device",
                &json!({
                    "driver": "virtserialport", "id": AGENT_ID, "bus": "serial.0",
                    "chardev": AGENT_ID, "name": port_name,
                }),
            );
            Ok(())
        }
        (AgentDevice::Vsock { cid }, None) => {
            let mut device = virtio("vhost-vsock-pci", AGENT_ID, FIRST_SLOT);
            device["guest-cid"] = json!(cid);
            if let Some(number) = descriptors.handed.vsock {
                device["vhostfd"] = json!(number.to_string());
            }
            line.json("-device", &device);
            Ok(())
        }
        _ => Err(mismatch("agent")),
    }
}

fn block_device(line: &mut Line, disk: &Disk, descriptor: RawFd, index: usize, slot: usize) {
    // The image was opened by us; set N of descriptors is what
    // /dev/fdset/N opens, with the access mode it has.
    line.option("-add-fd", format!("fd={descriptor},set={index}"));
    let node = format!("image-{}", disk.id);
    line.json(
        "-blockdev",
        &json!({
            "driver": "raw", "node-name": node, "read-only": disk.readonly,
            "file": {
                "driver": "file", "filename": format!("/dev/fdset/{index}"),
                "read-only": disk.readonly, "locking": "off",
            },
        }),
    );
    let mut device = virtio("virtio-blk-pci", &format!("disk-{}", disk.id), slot);
    device["drive"] = json!(node);
    device["serial"] = json!(disk.id);
    line.json("-device", &device);
}

fn interface<'a>(
    line: &mut Line,
    nic: &Nic,
    slot: usize,
    taps: &mut impl Iterator<Item = &'a RawFd>,
) -> Result<(), Error> {
    let mut device = virtio("virtio-net-pci", &format!("nic-{}", nic.id), slot);
    device["mac"] = json!(nic.mac);
    // No boot ROM: nothing is ever booted from a network.
    device["romfile"] = json!("");
    let network = format!("network-{}", nic.id);
    let backend = match nic.backend {
        NicBackend::None => None,
        NicBackend::User => Some(format!("user,id={network},restrict=on")),
        NicBackend::Tap { .. } => {
            let descriptor = taps.next().ok_or_else(|| mismatch("nics"))?;
            Some(format!("tap,id={network},fd={descriptor}"))
        }
    };
    if let Some(backend) = backend {
        line.option("-netdev", backend);
        device["netdev"] = json!(network);
    }
    line.json("-device", &device);
    Ok(())
}

fn shared_directory(line: &mut Line, directory: &SharedDirectory, descriptor: RawFd, slot: usize) {
    let served = format!("served-{}", directory.tag);
    line.option("-chardev", format!("socket,id={served},fd={descriptor}"));
    // The device has no legacy form to be turned off.
    line.json(
        "-device",
        &json!({
            "driver": "vhost-user-fs-pci", "id": format!("directory-{}", directory.tag),
            "addr": format!("{slot:x}"), "chardev": served, "tag": directory.tag,
        }),
    );
}

/// A virtio device of the standard's version 1 only, in a fixed slot: devices of
/// a restored VM must be where they were.
fn virtio(driver: &str, id: &str, slot: usize) -> Value {
    json!({
        "driver": driver, "id": id, "addr": format!("{slot:x}"), "disable-legacy": "on",
    })
}

fn beginning(
    line: &mut Line,
    spec: &VmSpec,
    start: Start,
    handed: HandedFiles,
) -> Result<(), Error> {
    match start {
        Start::Boot => {
            line.option("-kernel", named("kernel", &spec.kernel, handed.kernel)?);
            let initrd = named("initrd", &spec.initrd, handed.initrd)?;
            line.option("-initrd", initrd);
            line.option("-append", spec.cmdline.clone());
        }
        Start::Restore => {
            line.option("-option-rom", KERNEL_LOADER);
            line.flag("-S");
            line.option("-incoming", "defer");
        }
    }
    Ok(())
}

fn mismatch(field: &'static str) -> Error {
    Error::Spec {
        field,
        reason: "the descriptors are not those of this spec".to_owned(),
    }
}

#[cfg(test)]
mod tests;
