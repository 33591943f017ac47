//! The bare floor: a template restored by a program that does nothing else.

use super::{Failure, program};
use host_ctl::config::Paths;
use host_ctl::sandbox::driver::{GuestKernel, driver};
use host_ctl::sandbox::vmm::Vmm;
use host_ctl::store::{Sha256, Store};
use host_ctl::template::{ClonePlan, plan_clone};
use hypervisor::cloud_hypervisor::{self, CloudHypervisor};
use hypervisor::firecracker::{self, Firecracker};
use hypervisor::floor::RestoreInput;
use hypervisor::qemu::Qemu;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tardigrade_tests::{Home, built, machine};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The guest's kernel as a VMM takes it.
pub(super) fn kernel(vmm: Vmm) -> PathBuf {
    built(match vmm {
        Vmm::Qemu | Vmm::CloudHypervisor => "guest/vmlinuz",
        Vmm::Firecracker => "guest/vmlinux",
    })
}

/// A template that can be restored as bare as may be.
pub(super) struct Floor {
    program: PathBuf,
    plan: ClonePlan,
    driver: Driver,
}

/// The drivers, each of which knows what its VMM must be told.
enum Driver {
    Qemu(Qemu),
    CloudHypervisor(CloudHypervisor),
    Firecracker(Firecracker),
}

impl Floor {
    /// For a template in a home.
    pub(super) fn of(
        home: &Home,
        template: &str,
        vmm: Vmm,
        runtime: &Runtime,
    ) -> Result<Self, Failure> {
        let kernel = kernel(vmm);
        let digest = Sha256::of_file(&File::open(&kernel)?)?;
        let kernel = GuestKernel {
            path: &kernel,
            digest: &digest,
        };
        let paths = Paths::below(home.path())?;
        let store = Store::open(&paths)?;
        let template = store.find(template)?;
        let found = runtime.block_on(driver(&paths, vmm, kernel, true))?;
        Ok(Self {
            program: program("RESTORE_FLOOR")?,
            plan: plan_clone(&store, template.digest(), &found)?,
            driver: runtime.block_on(Driver::find(vmm))?,
        })
    }

    /// The file of the guest's RAM, that of all restored VMs.
    pub(super) fn ram(&self) -> PathBuf {
        self.plan.template.memory()
    }

    /// Restores it once, with sockets of its own.
    pub(super) fn restore(&self) -> Result<Bare, Failure> {
        let (directory, path) = machine::directory();
        let spec = machine::copy_of(&self.plan.vm, &self.plan.template.memory(), &path)?;
        let state = self.plan.template.directory();
        let restore = match &self.driver {
            Driver::Qemu(driver) => {
                RestoreInput::Qemu(Box::new(driver.restore_input(state, &spec)))
            }
            Driver::CloudHypervisor(driver) => {
                RestoreInput::Rest(driver.restore_input(state, &spec)?)
            }
            Driver::Firecracker(driver) => RestoreInput::Rest(driver.restore_input(state, &spec)?),
        };
        let input = path.join("input.json");
        std::fs::write(&input, serde_json::to_vec(&restore)?)?;
        Bare::start(&self.program, &input, directory)
    }
}

impl Driver {
    async fn find(vmm: Vmm) -> Result<Self, Failure> {
        Ok(match vmm {
            Vmm::Qemu => Self::Qemu(machine::qemu().await?),
            Vmm::CloudHypervisor => {
                let found =
                    cloud_hypervisor::probe(None, None, &hypervisor::Confinement::Insecure).await?;
                let deadlines = hypervisor::Deadlines::default();
                Self::CloudHypervisor(CloudHypervisor::new(&found, deadlines))
            }
            Vmm::Firecracker => {
                let found =
                    firecracker::probe(None, None, &hypervisor::Confinement::Insecure).await?;
                let deadlines = hypervisor::Deadlines::default();
                Self::Firecracker(Firecracker::new(&found, deadlines))
            }
        })
    }
}

/// A bare VM that runs, until this is dropped.
pub(super) struct Bare {
    /// When its state was loaded, in milliseconds since before the fork.
    pub(super) loaded: f64,
    /// When it ran, in milliseconds since before the fork.
    pub(super) ran: f64,
    /// The VMM.
    pub(super) pid: u32,
    holder: Child,
    _directory: TempDir,
}

impl Bare {
    fn start(program: &Path, input: &Path, directory: TempDir) -> Result<Self, Failure> {
        let mut holder = Command::new(program)
            .arg(input)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(told) = holder.stdout.take() {
            BufReader::new(told).read_line(&mut line)?;
        }
        let number = |name: &str| {
            line.split_whitespace()
                .filter_map(|word| word.split_once('='))
                .find(|(key, _)| *key == name)
                .and_then(|(_, number)| number.parse::<u32>().ok())
        };
        let numbers = (number("incoming_us"), number("cont_us"), number("pid"));
        let (Some(loaded), Some(ran), Some(pid)) = numbers else {
            let status = holder.wait()?;
            return Err(format!("floor: {status}, {line:?}").into());
        };
        Ok(Self {
            loaded: f64::from(loaded) / 1e3,
            ran: f64::from(ran) / 1e3,
            pid,
            holder,
            _directory: directory,
        })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // At the end of its input it kills the VM.
        drop(self.holder.stdin.take());
        // Nothing is left to be done about one that can't be waited for.
        let _ = self.holder.wait();
    }
}
