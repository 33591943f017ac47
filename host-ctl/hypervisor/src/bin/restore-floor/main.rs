//! The least a restore can take: a VMM started with the driver's command line,
//! a state loaded, the VM resumed, and nothing else. No session, no checks, no
//! record, no runtime. What the driver takes is measured against it.
//!
//! `restore-floor INPUT`, INPUT being a [`RestoreInput`] as JSON with paths of
//! its own. Prints, in microseconds since before the fork: when the VMM took
//! its first command, when the state was loaded, when the VM ran; and the VMM's
//! process id. The VM is killed when standard input ends.

mod qemu;
mod rest;

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::Child;
use std::time::Duration;

use hypervisor::floor::RestoreInput;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

/// How long a VMM may be silent before the measurement is given up.
const DEADLINE: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: restore-floor INPUT")?;
    let input: RestoreInput = serde_json::from_reader(File::open(path)?)?;
    let (vm, times) = match &input {
        RestoreInput::Qemu(input) => qemu::measure(input)?,
        RestoreInput::Rest(input) => rest::measure(input)?,
    };
    let [greeted, loaded, ran] = times.map(|time| time.as_micros());
    let pid = vm.0.id();
    println!("greeting_us={greeted} incoming_us={loaded} cont_us={ran} pid={pid}");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// When the VMM took a command, when the state was loaded, when the VM ran.
type Times = [Duration; 3];

/// A VM, until this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing is left to be done about a VM that can't be killed.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Descriptors that every process started from now on has.
#[derive(Default)]
struct Inheritance(Vec<OwnedFd>);

impl Inheritance {
    /// Adds one under the number it has.
    fn add(&mut self, descriptor: OwnedFd) -> std::io::Result<RawFd> {
        fcntl_setfd(&descriptor, FdFlags::empty())?;
        let number = descriptor.as_raw_fd();
        self.0.push(descriptor);
        Ok(number)
    }

    /// Adds one under that number.
    fn place(&mut self, descriptor: OwnedFd, number: RawFd) -> Result<(), Failure> {
        // The lowest free one from there on.
        let placed = fcntl_dupfd_cloexec(&descriptor, number)?;
        if self.add(placed)? == number {
            Ok(())
        } else {
            Err(format!("descriptor {number} is in use").into())
        }
    }
}
