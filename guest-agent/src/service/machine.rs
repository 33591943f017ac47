//! Calls about the guest as a whole: sandbox, details, entropy, clock.

use super::Agent;
use super::container::{mount_all, unmount_all};
use super::error::ServiceError;
use super::recipes::blocking;
use super::secret::Secret;
use authz::Authorized;
use guest_runtime::container::Hooks;
use guest_runtime::storage::StorageSpec;
use guest_runtime::{clock, hostname, kernel_word};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// A sandbox to set up.
#[derive(Debug)]
pub(crate) struct CreateSandbox {
    pub(crate) hostname: String,
    pub(crate) dns: Vec<String>,
    pub(crate) storages: Vec<StorageSpec>,
    pub(crate) kernel_modules: Vec<KernelModule>,
    /// Where the image keeps hooks for every container.
    pub(crate) guest_hooks: Option<PathBuf>,
}

/// A kernel module to load.
#[derive(Debug)]
pub(crate) struct KernelModule {
    pub(crate) name: String,
    pub(crate) parameters: Vec<String>,
}

/// Bytes to mix into the kernel's random generator.
#[derive(Debug)]
pub(crate) struct ReseedRandomDevice {
    pub(crate) data: Secret,
}

/// A time to set.
#[derive(Debug)]
pub(crate) struct SetGuestDateTime {
    pub(crate) realtime_nanos: i64,
}

/// A sandbox to destroy.
#[derive(Debug)]
pub(crate) struct DestroySandbox;

/// A question about the guest.
#[derive(Debug)]
pub(crate) struct GetGuestDetails;

/// What the guest is, for GetGuestDetails.
#[derive(Debug)]
pub(crate) struct GuestDetails {
    pub(crate) memory_block_size: u64,
    pub(crate) memory_hotplug_probe: bool,
    pub(crate) is_init: bool,
    /// Whether the kernel tells when this machine has become a copy.
    pub(crate) watches_for_copies: bool,
}

/// In hexadecimal, without a prefix.
const MEMORY_BLOCK_SIZE: &str = "/sys/devices/system/memory/block_size_bytes";
/// Loads modules, and those they need.
const MODPROBE: [&str; 2] = ["/sbin/modprobe", "/usr/sbin/modprobe"];
/// How long a module may take to be loaded.
const MODULE_DEADLINE: Duration = Duration::from_secs(30);
const MEMORY_PROBE: &str = "/sys/devices/system/memory/probe";

impl Agent {
    /// Names the sandbox and mounts what its containers share. Asked again, it
    /// changes the names and leaves every mount that is there alone.
    pub(crate) async fn create_sandbox(
        self: &Arc<Self>,
        request: Authorized<CreateSandbox>,
    ) -> Result<(), ServiceError> {
        let request = request.into_inner();
        if !request.hostname.is_empty() || !request.dns.is_empty() {
            self.require_guest("set the hostname or the name servers")?;
        }
        if !request.kernel_modules.is_empty() {
            self.require_guest("load a kernel module")?;
            self.lifecycle.require_running("load a kernel module")?;
        }
        if request.guest_hooks.is_some() {
            self.require_guest("hooks of the guest's")?;
        }
        let agent = Arc::clone(self);
        self.recipes
            .run(async move {
                for module in request.kernel_modules {
                    let flags = ["-v".into(), "--".into(), module.name].into_iter();
                    let arguments = flags.chain(module.parameters).collect();
                    agent
                        .run_program(&MODPROBE, arguments, &[], MODULE_DEADLINE)
                        .await?;
                }
                // What can fail first: the names are never changed for nothing.
                let mounted = mount_all(request.storages).await?;
                if let Some(path) = request.guest_hooks {
                    // They may lie on what was mounted.
                    let found = blocking(move || Hooks::of_directory(&path)).await;
                    match found.and_then(|hooks| Ok(hooks?)) {
                        Ok(hooks) => agent.set_guest_hooks(hooks),
                        Err(error) => {
                            // The first failure is what counts.
                            let _ = unmount_all(mounted.into()).await;
                            return Err(error);
                        }
                    }
                }
                if !request.hostname.is_empty() {
                    hostname::set(&request.hostname)
                        .map_err(ServiceError::system("sethostname"))?;
                }
                if !request.dns.is_empty() {
                    let text: String = request
                        .dns
                        .iter()
                        .map(|line| format!("{}\n", line.trim()))
                        .collect();
                    tokio::fs::write("/etc/resolv.conf", text)
                        .await
                        .map_err(ServiceError::system("write /etc/resolv.conf"))?;
                }
                Ok(())
            })
            .await
    }

    fn set_guest_hooks(&self, hooks: Hooks) {
        *self
            .guest_hooks
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = hooks;
    }

    /// Adds the image's hooks to a container's own, behind them.
    pub(super) fn add_guest_hooks(&self, hooks: &mut Hooks) {
        hooks.extend(
            &self
                .guest_hooks
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Removes every container, then ends the agent.
    pub(crate) async fn destroy_sandbox(
        self: &Arc<Self>,
        _request: Authorized<DestroySandbox>,
    ) -> Result<(), ServiceError> {
        let agent = Arc::clone(self);
        self.recipes
            .run(async move {
                let outcome = agent.remove_all().await;
                agent.oom_events.close();
                agent.destroyed.notify_one();
                outcome
            })
            .await
    }

    /// Mixes bytes in and has the generator rekeyed at once.
    pub(crate) fn reseed_random_device(
        &self,
        request: Authorized<ReseedRandomDevice>,
    ) -> Result<(), ServiceError> {
        self.require_guest("reseed the random generator")?;
        self.generator
            .reseed(request.get().data.bytes())
            .map_err(ServiceError::system("reseed the kernel"))
    }

    /// Steps CLOCK_REALTIME.
    pub(crate) fn set_guest_date_time(
        &self,
        request: Authorized<SetGuestDateTime>,
    ) -> Result<(), ServiceError> {
        self.require_guest("set the clock")?;
        clock::step_realtime(request.get().realtime_nanos)
            .map(drop)
            .map_err(ServiceError::system("clock_settime"))
    }

    /// What the guest is. A kernel without memory hotplug has no block size.
    pub(crate) fn guest_details(
        &self,
        _request: Authorized<GetGuestDetails>,
    ) -> Result<GuestDetails, ServiceError> {
        let memory_block_size = match std::fs::read_to_string(MEMORY_BLOCK_SIZE) {
            Ok(text) => u64::from_str_radix(text.trim(), 16).map_err(|error| {
                ServiceError::system("read the memory block size")(std::io::Error::other(error))
            })?,
            Err(_) => 0,
        };
        Ok(GuestDetails {
            memory_block_size,
            memory_hotplug_probe: std::path::Path::new(MEMORY_PROBE).exists(),
            is_init: self.in_guest,
            watches_for_copies: self.in_guest && kernel_word::is_given(),
        })
    }
}
