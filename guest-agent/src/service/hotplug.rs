//! Processors, memory and swap that the host adds to the guest while it runs.

use super::Agent;
use super::error::ServiceError;
use super::recipes::blocking;
use authz::Authorized;
use guest_runtime::hotplug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long processors may take to come; the Kata agent's figure.
const PROCESSORS_DEADLINE: Duration = Duration::from_secs(5);
/// How long a device may take to come; the Kata agent's figure.
const DEVICE_DEADLINE: Duration = Duration::from_secs(3);

/// What is there to be taken into use. It is always waited for.
#[derive(Debug)]
pub(crate) struct OnlineResources {
    /// How many there are to be in use; none leaves them as they are.
    pub(crate) processors: Option<usize>,
    pub(crate) memory: bool,
}

/// Physical addresses where there is new memory.
#[derive(Debug)]
pub(crate) struct ProbeMemory {
    pub(crate) addresses: Vec<u64>,
}

/// A disk to swap to, by its slots behind the first root complex.
#[derive(Debug)]
pub(crate) struct AddSwapDevice {
    pub(crate) slots: Vec<u8>,
}

/// A device or file to swap to.
#[derive(Debug)]
pub(crate) struct AddSwap {
    pub(crate) path: PathBuf,
}

impl Agent {
    /// Takes into use what is there. The cgroups of the workload need not be
    /// told: they are not bound to the processors of their birth.
    pub(crate) async fn online_resources(
        self: &Arc<Self>,
        request: Authorized<OnlineResources>,
    ) -> Result<(), ServiceError> {
        self.require_guest("take processors or memory into use")?;
        let OnlineResources { processors, memory } = request.into_inner();
        let recipe = async move {
            if let Some(wanted) = processors {
                hotplug::online_processors(wanted, PROCESSORS_DEADLINE).await?;
            }
            if memory {
                blocking(hotplug::online_memory).await??;
            }
            Ok(())
        };
        self.recipes.run(recipe).await
    }

    /// Has the kernel look for memory.
    pub(crate) async fn probe_memory(
        self: &Arc<Self>,
        request: Authorized<ProbeMemory>,
    ) -> Result<(), ServiceError> {
        self.require_guest("probe for memory")?;
        let probe = move || hotplug::probe_memory(&request.get().addresses);
        self.recipes
            .run(async move { Ok(blocking(probe).await??) })
            .await
    }

    /// Waits for a disk and swaps to it.
    pub(crate) async fn add_swap_device(
        self: &Arc<Self>,
        request: Authorized<AddSwapDevice>,
    ) -> Result<(), ServiceError> {
        self.require_guest("add swap")?;
        let recipe = async move {
            let slots = &request.get().slots;
            Ok(hotplug::add_swap_device(slots, DEVICE_DEADLINE).await?)
        };
        self.recipes.run(recipe).await
    }

    /// Swaps to what is at a path.
    pub(crate) async fn add_swap(
        self: &Arc<Self>,
        request: Authorized<AddSwap>,
    ) -> Result<(), ServiceError> {
        self.require_guest("add swap")?;
        let add = move || hotplug::add_swap(&request.get().path);
        self.recipes
            .run(async move { Ok(blocking(add).await??) })
            .await
    }
}
