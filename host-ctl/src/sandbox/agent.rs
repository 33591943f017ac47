//! The way to a sandbox's agent: what the VM is given for it, where the host
//! dials, and how long it tries.
//!
//! A virtio-serial port takes the host's first words also while the VM is
//! paused, and says when somebody in the guest has opened it. Vsock does
//! neither: a guest is dialled once it runs, again and again until it answers.

use super::spec::VmFiles;
use super::vmm::Carrier;
use crate::config::random_bytes;
use crate::host::explain;
use agent_client::{AgentClient, ClientError, Connecting};
use hypervisor::{AgentDevice, Vm, VmExit, VmRecord};
use protocols::{AgentAddress, Destination, GuestAddress, Link, VsockPeers, port, unix};
use rustix::io::Errno;
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// The name of the virtio-serial port the agent listens on.
pub const AGENT_PORT_NAME: &str = "tardigrade.agent";
/// The context id of a guest whose vsock is the VMM's own: there it means
/// nothing to the host, and clones must keep it.
pub const HYBRID_CID: u32 = 3;
/// How many random context ids are tried. Of 2^32 one is rarely taken.
pub(super) const CID_ATTEMPTS: usize = 4;

/// How long a dial is waited for before another is made beside it; twice as long
/// each time. A guest that comes to life may lose the first packets, and one
/// that is only slow answers the first dial, however late.
const FIRST_PATIENCE: Duration = Duration::from_millis(200);
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// After how many times its patience a dial is taken for lost: so many are under
/// way at most.
const LOST_AFTER: u32 = 4;
/// The pause after a dial that failed at once, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Why an agent was not reached.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// The VM has ended.
    #[error("the vm has ended: {exit}{}", quoted(words))]
    Ended {
        /// How.
        exit: VmExit,
        /// The last line of the VMM's log, if it has one.
        words: String,
    },
    /// Nobody can tell whether it has.
    #[error("wait for the vm")]
    Wait(#[source] hypervisor::Error),
    /// It did not answer in time.
    #[error("{address}: no agent within {after:?}, the last dial said: {last}")]
    Silent {
        /// Where it was dialled.
        address: AgentAddress,
        /// How long.
        after: Duration,
        /// What came of the last dial.
        last: String,
    },
}

fn quoted(words: &str) -> String {
    if words.is_empty() {
        String::new()
    } else {
        format!("; its VMM's log ends with: {words}")
    }
}

impl Carrier {
    /// The device, for a VM with these files and, where the host's kernel
    /// tells VMs apart by it, this context id.
    #[must_use]
    pub fn device(self, files: &VmFiles, cid: u32) -> AgentDevice {
        match self {
            Carrier::Serial => AgentDevice::Serial {
                socket: files.link.clone(),
                port_name: AGENT_PORT_NAME.to_owned(),
            },
            Carrier::Vsock { .. } => AgentDevice::Vsock { cid },
            Carrier::HybridVsock => AgentDevice::HybridVsock {
                socket: files.link.clone(),
                cid: HYBRID_CID,
            },
        }
    }

    /// Where the agent listens.
    #[must_use]
    pub fn listens_at(self) -> GuestAddress {
        match self {
            Carrier::Serial => GuestAddress::Serial {
                port_name: AGENT_PORT_NAME.to_owned(),
            },
            Carrier::Vsock { .. } | Carrier::HybridVsock => GuestAddress::Vsock { port: port::RPC },
        }
    }

    /// Whom the agent takes. A VMM that dials for us is no privileged process.
    #[must_use]
    pub fn peers(self) -> VsockPeers {
        match self {
            Carrier::Vsock { privileged: true } => VsockPeers::PrivilegedHost,
            _ => VsockPeers::Host,
        }
    }
}

/// A context id that probably nobody has: any but the reserved ones (vsock(7)).
///
/// # Errors
/// When getrandom(2) fails.
pub fn draw_cid() -> Result<u32, Errno> {
    random_bytes().map(|bytes| cid_from(u32::from_ne_bytes(bytes)))
}

/// 0 to 2 and -1 are reserved.
fn cid_from(random: u32) -> u32 {
    3 + random % (u32::MAX - 3)
}

/// Whether a VM could not be made because its context id is another's. QEMU
/// has no other way to tell than the words of VHOST_VSOCK_SET_GUEST_CID.
pub(super) fn is_cid_taken(error: &hypervisor::Error) -> bool {
    let hypervisor::Error::Ended { log, .. } = error else {
        return false;
    };
    log.contains("guest cid") && log.contains("in use")
}

/// Where the host dials a device.
#[must_use]
pub fn address(device: &AgentDevice) -> AgentAddress {
    match device {
        AgentDevice::Serial { socket, .. } => AgentAddress::Serial {
            socket: socket.clone(),
        },
        AgentDevice::Vsock { cid } => AgentAddress::Vsock {
            cid: *cid,
            port: port::RPC,
        },
        AgentDevice::HybridVsock { socket, .. } => AgentAddress::HybridVsock {
            socket: socket.clone(),
            port: port::RPC,
        },
    }
}

/// Where the host dials a VM's agent, and who has to listen there. A VMM that
/// makes the socket itself could put another's in its place.
#[must_use]
pub fn destination(vm: &VmRecord) -> Destination {
    dialled(address(&vm.agent), vm)
}

fn dialled(address: AgentAddress, vm: &VmRecord) -> Destination {
    match address {
        AgentAddress::HybridVsock { .. } => Destination::listened_by(address, vm.pid),
        address => address.into(),
    }
}

/// The same device with what is a new VM's own.
#[must_use]
pub(super) fn rebound(device: &AgentDevice, files: &VmFiles, cid: u32) -> AgentDevice {
    match device {
        AgentDevice::Serial { port_name, .. } => AgentDevice::Serial {
            socket: files.link.clone(),
            port_name: port_name.clone(),
        },
        AgentDevice::Vsock { .. } => AgentDevice::Vsock { cid },
        AgentDevice::HybridVsock { cid, .. } => AgentDevice::HybridVsock {
            socket: files.link.clone(),
            cid: *cid,
        },
    }
}

/// Begins a link whose first words can wait in the device; none where a guest
/// must run to be dialled.
///
/// # Errors
/// What connect(2) or getrandom(2) said.
pub(super) async fn begin(address: &AgentAddress) -> io::Result<Option<Link>> {
    let AgentAddress::Serial { socket } = address else {
        return Ok(None);
    };
    let stream = unix::connect(socket).await?;
    Link::over_serial(stream)
        .map(Some)
        .map_err(io::Error::other)
}

/// An agent that has answered.
#[derive(Debug)]
pub(super) struct Reached {
    /// The link to it. What watches over it is dialled when `connecting` was
    /// asked.
    pub(super) link: Link,
    /// Its RPC port, over which it has answered.
    pub(super) client: AgentClient,
    /// The grant of that port, which has come.
    pub(super) connecting: Connecting,
}

/// Dials until the agent answers, the VM ends or the deadline has passed.
///
/// # Errors
/// [`Unreached`].
pub(super) async fn reach(
    address: &AgentAddress,
    vm: &dyn Vm,
    deadline: Duration,
) -> Result<Reached, Unreached> {
    tokio::select! {
        reached = dial(dialled(address.clone(), &vm.record()), deadline) => reached,
        ended = vm.wait() => Err(match ended {
            Ok(exit) => Unreached::Ended { exit, words: vm.record().last_words() },
            Err(error) => Unreached::Wait(error),
        }),
    }
}

async fn dial(destination: Destination, deadline: Duration) -> Result<Reached, Unreached> {
    let end = Instant::now() + deadline;
    let (mut patience, mut pause) = (FIRST_PATIENCE, FIRST_PAUSE);
    let mut last = "nothing yet".to_owned();
    // Dropped, it ends the dials that were not the first to be answered.
    let mut dials = JoinSet::new();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some(dialled) = dials.join_next() => match dialled {
                Ok(Ok(reached)) => return Ok(reached),
                Ok(Err(error)) => {
                    last = error;
                    if dials.is_empty() {
                        next = next.min(Instant::now() + pause);
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
                Err(panicked) => last = panicked.to_string(),
            },
            () = sleep_until(end) => {
                return Err(Unreached::Silent {
                    address: destination.address().clone(),
                    after: deadline,
                    last,
                });
            }
            () = sleep_until(next) => {
                if !dials.is_empty() {
                    patience = (patience * 2).min(LONGEST_PATIENCE);
                }
                let destination = destination.clone();
                dials.spawn(async move { attempt(&destination, patience * LOST_AFTER).await });
                next = Instant::now() + patience;
            }
        }
    }
}

/// One dial, to the first answer: a connection alone proves no agent. The dial
/// and the question go out together where they can, so that the guest has to be
/// woken once.
async fn attempt(destination: &Destination, patience: Duration) -> Result<Reached, String> {
    let answered = async {
        let link = match Link::undialled(destination) {
            Some(link) => link,
            None => {
                let link = Link::connect(destination, patience).await;
                link.map_err(|error| explain(&error))?
            }
        };
        let early = AgentClient::connect_early(&link, patience).await;
        let (client, connecting) = early.map_err(|error| explain(&error))?;
        match client.check(patience).await {
            Ok(_) => Ok(Reached {
                link,
                client,
                connecting,
            }),
            // A port that was refused is why its call failed.
            Err(error) => Err(match connecting.granted(Duration::ZERO).await {
                Err(refused @ ClientError::Open { .. }) => explain(&refused),
                _ => explain(&error),
            }),
        }
    };
    timeout(patience, answered)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
}

#[cfg(test)]
mod tests {
    use super::super::stand_in::{StandIn, StandInVm};
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use tokio::io::AsyncReadExt;

    proptest! {
        #[test]
        fn no_context_id_is_a_reserved_one(random: u32) {
            let cid = cid_from(random);
            prop_assert!((3..u32::MAX).contains(&cid), "{}", cid);
        }
    }

    fn carriers() -> [Carrier; 4] {
        [
            Carrier::Serial,
            Carrier::Vsock { privileged: true },
            Carrier::Vsock { privileged: false },
            Carrier::HybridVsock,
        ]
    }

    #[test]
    fn a_clone_is_dialled_at_a_device_of_its_own() {
        let [one, two] = ["/one", "/two"].map(|path| VmFiles::below(Path::new(path)));
        for carrier in carriers() {
            let saved = carrier.device(&one, 7);
            let own = rebound(&saved, &two, 8);
            assert_eq!(own, carrier.device(&two, 8));
            assert_ne!(address(&own), address(&saved), "{carrier:?}");
        }
    }

    #[test]
    fn only_what_every_process_can_dial_asks_for_privilege() {
        let privileged = carriers().map(|carrier| carrier.peers() == VsockPeers::PrivilegedHost);
        assert_eq!(privileged, [false, true, false, false]);
    }

    #[test]
    fn a_taken_context_id_is_told_from_other_ends() {
        let ended = |log: &str| hypervisor::Error::Ended {
            verb: "boot",
            exit: VmExit::Exited(1),
            log: log.to_owned(),
        };
        let taken = "vhost-vsock: unable to set guest cid: Address already in use";
        assert!(is_cid_taken(&ended(taken)));
        assert!(!is_cid_taken(&ended(
            "vhost-vsock: unable to set guest cid: Permission denied"
        )));
        assert!(!is_cid_taken(&hypervisor::Error::MemorySaved));
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(future)
    }

    fn nowhere() -> AgentAddress {
        AgentAddress::HybridVsock {
            socket: "/nonexistent/socket".into(),
            port: port::RPC,
        }
    }

    #[test]
    fn nobody_there_is_told_at_the_deadline_with_what_the_last_dial_said() {
        let vm = StandInVm(Arc::new(StandIn::default()));
        let deadline = Duration::from_millis(30);
        let error = run(reach(&nowhere(), &vm, deadline)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Unreached::Silent { .. }), "{text}");
        assert!(text.contains("No such file"), "{text}");
    }

    #[test]
    fn a_slow_guest_is_dialled_again_and_may_still_answer_the_first_dial() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let address = AgentAddress::HybridVsock {
            socket: socket.clone(),
            port: port::RPC,
        };
        let vm = StandInVm(Arc::new(StandIn::default()));
        run(async {
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let guest = async {
                let (mut first, _) = listener.accept().await.unwrap();
                let _second = listener.accept().await.unwrap();
                let mut question = [0; 13];
                first.read_exact(&mut question).await.unwrap();
                assert_eq!(&question, b"CONNECT 1024\n");
                let mut rest = tokio::io::sink();
                let rest = tokio::io::copy(&mut first, &mut rest);
                let ended = timeout(Duration::from_millis(50), rest).await;
                assert!(ended.is_err(), "the first dial was given up");
            };
            tokio::select! {
                reached = reach(&address, &vm, Duration::from_secs(60)) => panic!("{reached:?}"),
                () = guest => {}
            }
        });
    }

    #[test]
    fn an_agents_socket_at_which_another_process_listens_is_told_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let vm = StandInVm(Arc::new(StandIn::default()));
        let record = VmRecord {
            agent: AgentDevice::HybridVsock {
                socket: socket.clone(),
                cid: HYBRID_CID,
            },
            // Not this process, which listens.
            pid: 1,
            ..vm.record()
        };
        run(async {
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let other = destination(&record);
            let error = Link::connect(&other, Duration::from_secs(10)).await;
            let error = explain(&error.unwrap_err());
            assert!(error.contains("and not process 1"), "{error}");
            let (mut dialled, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            dialled.read_to_end(&mut heard).await.unwrap();
            assert!(heard.is_empty(), "{heard:?}");
        });
    }

    #[test]
    fn a_vm_that_ends_is_not_dialled_until_the_deadline() {
        let stand_in = Arc::new(StandIn::default());
        stand_in.end();
        assert!(stand_in.is_over.load(Ordering::SeqCst));
        let vm = StandInVm(stand_in);
        let error = run(reach(&nowhere(), &vm, Duration::from_secs(60))).unwrap_err();
        assert!(matches!(error, Unreached::Ended { .. }), "{error}");
        assert!(!error.to_string().contains("log"), "{error}");
    }

    #[test]
    fn what_a_vmm_that_ends_has_said_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("vmm.log");
        std::fs::write(&log, "a warning\ncannot map \u{1b}[31mmemory\n").unwrap();
        let mut stand_in = StandIn::default();
        stand_in.log = log;
        stand_in.end();
        let vm = StandInVm(Arc::new(stand_in));
        let error = run(reach(&nowhere(), &vm, Duration::from_secs(60))).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("the vm has ended: "), "{error}");
        let end = "log ends with: cannot map \\u{1b}[31mmemory";
        assert!(error.ends_with(end), "{error}");
    }
}
