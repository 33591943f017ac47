//! The network of one sandbox: its addresses are reserved and its tap recorded
//! before the tap is made; the guest is told its own, and the fence is lifted
//! when it has them.

use super::record::SandboxRecord;
use crate::config::{Paths, SandboxId};
use crate::host::network::{
    AddressPair, Block, HardwareAddress, HostNetwork, NetworkError, PAIR_LENGTH, TapRecord,
};
use crate::host::{Lock, LockError, RecordError, RecordHead, RunDirectory, read_record, sandboxes};
use crate::timeline::Timeline;
use agent_client::{Interface, Neighbor, Network, Prefix, Route};
use hypervisor::{NicBackend, create_passing_tap, create_tap};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use tokio::task::spawn_blocking;

/// The id of a VM's network interface.
pub const NIC: &str = "net0";
/// What the guest's kernel calls its first interface.
const GUEST_LINK: &str = "eth0";
/// The variable that says where sandboxes' addresses come from.
const BLOCK_VARIABLE: &str = "TARDIGRADE_SUBNET";
/// Held while addresses are looked for and recorded.
const LOCK: &str = "network.lock";
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
/// How many random pairs are looked at. A block that is so full that none of
/// them is free has no room.
const DRAWS: usize = 256;

/// What a sandbox's network is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// There is none.
    #[default]
    None,
    /// An interface, and a tap device of the host's at the other end.
    Tap,
}

/// Why a sandbox has no network.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The variable does not hold a block of addresses.
    #[error("{BLOCK_VARIABLE}={value}")]
    Block {
        /// What it holds.
        value: String,
        /// What is wrong with it.
        #[source]
        source: crate::host::network::NotAnAddress,
    },
    /// Somebody else looks for addresses for too long.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A thread that was waited for has panicked.
    #[error("wait for a thread")]
    Thread(#[from] tokio::task::JoinError),
    /// The kernel gave no random bytes.
    #[error("getrandom")]
    Random(#[from] Errno),
    /// No id could be drawn.
    #[error(transparent)]
    Id(#[from] crate::config::NameError),
    /// The block has no room.
    #[error("no free pair of addresses in {0}; {BLOCK_VARIABLE} names another block")]
    Full(Block),
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The sandboxes could not be listed.
    #[error(transparent)]
    Call(#[from] crate::host::CallFailed),
    /// The tap could not be made.
    #[error("make a tap device")]
    Tap(#[source] hypervisor::Error),
    /// The host's network refuses.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Who a VM is to be on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A template in the making: nobody, for nothing of it leaves the fence.
    Template,
    /// A sandbox.
    Sandbox,
}

/// A sandbox's tap, and what is behind it.
#[derive(Debug, Clone)]
pub struct Attached {
    host: HostNetwork,
    tap: TapRecord,
    role: Role,
}

/// Reserves addresses and makes the tap of a sandbox, which is fenced. Each
/// step is in the sandbox's record before it is done.
///
/// # Errors
/// The first step that failed; [`detach`] then undoes what was done.
pub async fn attach(
    paths: &Paths,
    directory: &RunDirectory,
    record: &mut SandboxRecord,
    role: Role,
    timeline: &Timeline,
) -> Result<Attached, AttachError> {
    let host = HostNetwork::open()?;
    let mut tap = {
        let _span = timeline.span("network: reserve addresses");
        let block = block()?;
        let routed = host.routed().await?;
        let lock = paths.store.join(LOCK);
        // Whoever has it may keep it for a while, in which others are served.
        let lock = move || Lock::acquire(&lock, "reserve addresses", LOCK_DEADLINE);
        let _lock = spawn_blocking(lock).await??;
        let addresses = free_pair(block, &routed, &reserved(paths)?)?;
        let guest = match role {
            Role::Template => HardwareAddress::TEMPLATE,
            Role::Sandbox => HardwareAddress::draw()?,
        };
        let mut tap = TapRecord::planned(&record.id, addresses, guest);
        tap.namespace = Some(host.namespace().clone());
        record.head.tap = Some(tap.clone());
        directory.write_record(record)?;
        tap
    };
    {
        let _span = timeline.span("network: make the tap");
        create_tap(&tap.name).map_err(AttachError::Tap)?;
        host.claim(&mut tap).await?;
    }
    record.head.tap = Some(tap.clone());
    directory.write_record(record)?;
    Ok(Attached { host, tap, role })
}

/// Removes the tap of a sandbox that has no VM any more, and forgets it.
///
/// # Errors
/// When it could not be removed; it stays in the record then, for a sweep.
pub async fn detach(head: &mut RecordHead) -> Result<(), NetworkError> {
    if let Some(tap) = &head.tap {
        HostNetwork::open()?.remove_tap(tap).await?;
        head.tap = None;
    }
    Ok(())
}

/// Tries whether this process can make taps and fence them, on one that goes
/// with its descriptor and that nobody is connected to.
///
/// # Errors
/// What a sandbox with a network would fail of.
pub async fn try_fence() -> Result<(), AttachError> {
    let host = HostNetwork::open()?;
    let id = SandboxId::random()?;
    let guest = HardwareAddress::TEMPLATE;
    let mut tap = TapRecord::planned(&id, Block::SHARED.pair(0), guest);
    let _queue = create_passing_tap(&tap.name).map_err(AttachError::Tap)?;
    Ok(host.claim(&mut tap).await?)
}

impl Attached {
    /// What is recorded of it.
    #[must_use]
    pub fn tap(&self) -> &TapRecord {
        &self.tap
    }

    /// What the VM's interface is connected to.
    #[must_use]
    pub fn backend(&self) -> NicBackend {
        NicBackend::Tap {
            name: self.tap.name.clone(),
        }
    }

    /// What the guest is told, if it is to be somebody.
    #[must_use]
    pub fn guest(&self) -> Option<Network> {
        (self.role == Role::Sandbox).then(|| guest_network(&self.tap))
    }

    /// Lets the guest's frames out, and in what is for it.
    ///
    /// # Errors
    /// When the host's network refuses; it is to be fenced again, or removed.
    pub async fn lift_fence(&self) -> Result<(), NetworkError> {
        self.host.lift_fence(&self.tap).await
    }

    /// Fences it again, for another VM.
    ///
    /// # Errors
    /// When the host's network refuses.
    pub async fn fence(&self) -> Result<(), NetworkError> {
        self.host.fence(&self.tap).await
    }
}

/// The guest's end of its link: its own addresses, everything by way of the
/// host, whose hardware address it need not ask for.
fn guest_network(tap: &TapRecord) -> Network {
    let AddressPair { host, guest } = tap.addresses;
    let device = GUEST_LINK.to_owned();
    let gateway = IpAddr::from(host);
    let neighbor = tap.host.map(|address| Neighbor {
        address: gateway,
        device: device.clone(),
        hardware_address: address.to_string(),
    });
    Network {
        interfaces: vec![Interface {
            name: device.clone(),
            hardware_address: tap.guest.to_string(),
            mtu: 0,
            addresses: vec![Prefix {
                address: guest.into(),
                length: PAIR_LENGTH,
            }],
        }],
        routes: vec![Route {
            destination: None,
            gateway: Some(gateway),
            device,
            source: None,
            scope: 0,
            is_ipv6: false,
        }],
        neighbors: neighbor.into_iter().collect(),
    }
}

/// Where addresses come from.
fn block() -> Result<Block, AttachError> {
    let Some(value) = std::env::var_os(BLOCK_VARIABLE) else {
        return Ok(Block::SHARED);
    };
    let value = value.to_string_lossy();
    value.parse().map_err(|source| AttachError::Block {
        value: protocols::text::escape_untrusted(&value, 100),
        source,
    })
}

/// The pairs of all sandboxes, whether their taps were made or not.
fn reserved(paths: &Paths) -> Result<BTreeSet<String>, AttachError> {
    let mut pairs = BTreeSet::new();
    for id in sandboxes(paths)? {
        // Removed meanwhile, or damaged: a sweep tells, and a route of a tap
        // that is open is known anyway.
        if let Some(tap) = recorded_tap(paths, &id) {
            pairs.insert(tap.addresses.block().to_string());
        }
    }
    Ok(pairs)
}

fn recorded_tap(paths: &Paths, id: &SandboxId) -> Option<TapRecord> {
    let head: RecordHead = read_record(&paths.sandbox(id).record()).ok()?;
    head.tap
}

/// A random pair that nobody has and no route of the host leads to.
fn free_pair(
    block: Block,
    routed: &[Block],
    reserved: &BTreeSet<String>,
) -> Result<AddressPair, AttachError> {
    for _ in 0..DRAWS {
        let number = u32::from_ne_bytes(crate::config::random_bytes()?);
        let pair = block.pair(number);
        let is_routed = routed.iter().any(|other| other.overlaps(pair.block()));
        if !is_routed && !reserved.contains(&pair.block().to_string()) {
            return Ok(pair);
        }
    }
    Err(AttachError::Full(block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_free_pair_is_nobodys(taken in prop::collection::vec(any::<u32>(), 0..40)) {
            let block: Block = "10.0.0.0/24".parse().unwrap();
            let (routed, reserved): (Vec<_>, Vec<_>) = taken
                .iter()
                .map(|number| block.pair(*number).block())
                .partition(|pair| pair.to_string().len() % 2 == 0);
            let reserved: BTreeSet<String> = reserved.iter().map(Block::to_string).collect();
            let pair = free_pair(block, &routed, &reserved).unwrap();
            prop_assert!(!taken.iter().any(|number| block.pair(*number) == pair));
            prop_assert!(block.overlaps(pair.block()));
        }
    }

    #[test]
    fn a_block_that_the_host_routes_elsewhere_has_no_room() {
        let block: Block = "10.0.0.0/24".parse().unwrap();
        let around: Block = "10.0.0.0/8".parse().unwrap();
        let error = free_pair(block, &[around], &BTreeSet::new()).unwrap_err();
        assert!(matches!(error, AttachError::Full(_)), "{error}");
        assert!(error.to_string().contains("10.0.0.0/24"), "{error}");
    }

    #[test]
    fn a_guest_is_told_its_own_end_and_the_way_out() {
        let id = SandboxId::random().unwrap();
        let mac = HardwareAddress::draw().unwrap();
        let mut tap = TapRecord::planned(&id, Block::SHARED.pair(0), mac);
        let host = HardwareAddress::draw().unwrap();
        tap.host = Some(host);
        let network = guest_network(&tap);
        let interface = &network.interfaces[0];
        assert_eq!(interface.hardware_address, mac.to_string());
        assert_eq!(interface.addresses[0].address.to_string(), "100.64.0.1");
        let route = &network.routes[0];
        assert_eq!(route.destination, None);
        assert_eq!(route.gateway.unwrap().to_string(), "100.64.0.0");
        assert_eq!(network.neighbors[0].hardware_address, host.to_string());
        assert_eq!(network.neighbors[0].address, route.gateway.unwrap());
    }
}
