//! Devices that the command line asks the device mapper for: `dm-mod.create=`,
//! Documentation/admin-guide/device-mapper/dm-init.rst of the kernel.
//!
//! A kernel with the device mapper built in makes them itself. Where it is a
//! module PID 1 does it, from the same words.

use guest_kernel::device_mapper::{DeviceMapper, Target};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// The word of the command line.
const CREATE: &str = "dm-mod.create";
/// How the status of such a target starts once a block was not what it should be.
const CORRUPTED: &str = "C";

/// Why a device is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum MappingError {
    #[error("{CREATE}={text}: {reason}")]
    Syntax { text: String, reason: &'static str },
    #[error("open the device mapper: is its module in the initrd?")]
    Open(#[source] io::Error),
    #[error("{call} device {name}")]
    Device {
        call: &'static str,
        name: String,
        source: io::Error,
    },
}

/// A device to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    name: String,
    uuid: String,
    minor: Option<u32>,
    read_only: bool,
    targets: Vec<Target>,
}

impl Mapping {
    /// What the command line asks for, in its order.
    pub(super) fn from_command_line(line: &str) -> Result<Vec<Self>, MappingError> {
        let Some(text) = super::command_line::last_value(line, CREATE) else {
            return Ok(Vec::new());
        };
        let devices = text.split(';').map(Self::parse);
        devices
            .collect::<Result<_, _>>()
            .map_err(|reason| MappingError::Syntax { text, reason })
    }

    /// `NAME,UUID,MINOR,ro|rw,TABLE[,TABLE]...`
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut fields = text.split(',').map(str::trim);
        let mut next = || {
            fields
                .next()
                .ok_or("a device has name, uuid, minor and flags")
        };
        let (name, uuid, minor, flags) = (next()?, next()?, next()?, next()?);
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err("a device's name is no file name");
        }
        let minor = match minor {
            "" => None,
            number => Some(number.parse().map_err(|_| "a minor is a number")?),
        };
        let read_only = match flags {
            "ro" => true,
            "rw" => false,
            _ => return Err("flags are ro or rw"),
        };
        let targets = fields.map(parse_target).collect::<Result<Vec<_>, _>>()?;
        if targets.is_empty() {
            return Err("a device has a table");
        }
        Ok(Self {
            name: name.into(),
            uuid: uuid.into(),
            minor,
            read_only,
            targets,
        })
    }

    /// The devices its tables name.
    pub(super) fn devices(&self) -> impl Iterator<Item = &Path> {
        self.targets
            .iter()
            .flat_map(|target| target.parameters.split(' '))
            .filter(|word| word.starts_with("/dev/"))
            .map(Path::new)
    }

    /// Makes the device, and the link to it in /dev/mapper. One of its name that
    /// is there already is the kernel's, made from the same words.
    pub(super) fn make(&self) -> Result<(), MappingError> {
        let mapper = DeviceMapper::open().map_err(MappingError::Open)?;
        let failed = |call| {
            move |source| MappingError::Device {
                call,
                name: self.name.clone(),
                source,
            }
        };
        let minor = match mapper.create(&self.name, &self.uuid, self.minor) {
            Ok(minor) => minor,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(()),
            Err(source) => return Err(failed("create")(source)),
        };
        let made = mapper
            .load(&self.name, &self.targets, self.read_only)
            .map_err(failed("load the table of"))
            .and_then(|()| mapper.resume(&self.name).map_err(failed("resume")))
            .and_then(|()| {
                let link = Path::new("/dev/mapper").join(&self.name);
                symlink(format!("../dm-{minor}"), link).map_err(failed("link"))
            });
        if made.is_err() {
            // The error that is told is the first.
            let _ = mapper.remove(&self.name);
        }
        made
    }

    /// Whether it is known that the device's data is not what its hash tree says.
    pub(super) fn is_corrupted(&self) -> bool {
        let verity = self.targets.iter().any(|target| target.kind == "verity");
        let status = || DeviceMapper::open()?.status(&self.name);
        verity && status().is_ok_and(|status| status.starts_with(CORRUPTED))
    }
}

/// `START LENGTH TYPE PARAMETERS`, in sectors.
fn parse_target(text: &str) -> Result<Target, &'static str> {
    let mut words = text.splitn(4, ' ');
    let mut next = || words.next().filter(|word| !word.is_empty());
    let mut number = || {
        next()
            .and_then(|word| word.parse().ok())
            .ok_or("a table starts with two numbers")
    };
    let (start, length) = (number()?, number()?);
    let kind = next().ok_or("a table has a type")?;
    Ok(Target {
        start,
        length,
        kind: kind.into(),
        parameters: next().unwrap_or_default().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "0 16 verity 1 /dev/vda1 /dev/vda2 4096 4096 2 1 sha256 00 11";

    #[test]
    fn a_device_is_read_as_the_kernel_reads_it() {
        let line = format!("quiet dm-mod.create=\"root,,,ro,{TABLE}\" root=/dev/dm-0");
        let mappings = Mapping::from_command_line(&line).unwrap();
        let [mapping] = mappings.as_slice() else {
            panic!("{mappings:?}")
        };
        assert_eq!((mapping.name.as_str(), mapping.read_only), ("root", true));
        assert_eq!(mapping.targets[0].kind, "verity");
        assert_eq!(
            (mapping.targets[0].start, mapping.targets[0].length),
            (0, 16)
        );
        assert!(mapping.targets[0].parameters.starts_with("1 /dev/vda1 "));
        let devices: Vec<_> = mapping.devices().collect();
        assert_eq!(devices, [Path::new("/dev/vda1"), Path::new("/dev/vda2")]);
    }

    #[test]
    fn there_may_be_several_devices_and_tables() {
        let line = "dm-mod.create=\"a,uuid-a,3,rw,0 8 zero,8 8 zero;b,,,ro,0 8 error\"";
        let mappings = Mapping::from_command_line(line).unwrap();
        assert_eq!(mappings.len(), 2);
        assert_eq!(mappings[0].minor, Some(3));
        assert_eq!(mappings[0].uuid, "uuid-a");
        assert_eq!(mappings[0].targets.len(), 2);
        assert_eq!(mappings[1].targets[0].parameters, "");
        assert!(Mapping::from_command_line("quiet").unwrap().is_empty());
    }

    #[test]
    fn what_is_malformed_is_an_error_and_not_a_boot_without_it() {
        for text in [
            "",
            "root",
            "root,,,ro",
            "root,,,,0 8 zero",
            "root,,x,ro,0 8 zero",
            ",,,ro,0 8 zero",
            "../x,,,ro,0 8 zero",
            "root,,,ro,0 zero",
            "root,,,ro,0 8",
            "root,,,ro,0 8 zero;",
        ] {
            let line = format!("dm-mod.create=\"{text}\"");
            assert!(Mapping::from_command_line(&line).is_err(), "{text}");
        }
    }
}
