//! What an agent may answer to each call of the host's client, over a link as
//! there is one to a VM. The agent is a hostile one: it says what the fuzzer
//! says, to whatever it is asked.
//!
//! The first byte of an input says which call is made, the second whether the
//! others are the reply itself or all of ttrpc's answer around it. After Exec
//! they are what comes on the process's stream.

use crate::structure;
use agent_client::{
    AgentClient, ClientError, ContainerConfig, ExecConfig, ExecTicket, Generation, Identity,
    Network, ProcessName, Purpose, QuiesceId, Rootfs, SandboxConfig, ThawOrder,
};
use protobuf::reflect::MessageDescriptor;
use protobuf::well_known_types::empty::Empty;
use protobuf::{Message as _, MessageFull};
use protocols::wire::{agent, lifecycle};
use protocols::{Frame, Incoming, Link, Listener, Stream, frame, port};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

/// No call takes as long: the answer is there at once.
const DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of a ttrpc message's head: length, stream id, type, flags.
const HEAD: usize = 10;
/// The type of an answer.
const RESPONSE: u8 = 2;
/// The bytes of an input before the reply.
const HEADER: usize = 2;
/// What a receipt must name.
const GENERATION: [u8; 16] = [7; 16];

/// The replies, in the order of [`ask`]'s calls.
fn replies() -> [MessageDescriptor; 14] {
    [
        agent::HealthCheckResponse::descriptor(),
        agent::VersionCheckResponse::descriptor(),
        agent::GuestDetailsResponse::descriptor(),
        Empty::descriptor(),
        agent::WaitProcessResponse::descriptor(),
        agent::ReadStreamResponse::descriptor(),
        agent::WriteStreamResponse::descriptor(),
        lifecycle::QuiesceResponse::descriptor(),
        lifecycle::ThawResponse::descriptor(),
        lifecycle::ReleaseResponse::descriptor(),
        lifecycle::StreamToken::descriptor(),
        Empty::descriptor(),
        Empty::descriptor(),
        // The stream: what is made of messages is noise there.
        Empty::descriptor(),
    ]
}

async fn ask(client: &AgentClient, which: usize) -> Result<(), ClientError> {
    let init = ProcessName::init("container");
    match which {
        0 => client.check(DEADLINE).await,
        1 => client.version(DEADLINE).await.map(drop),
        2 => client.guest_details(DEADLINE).await.map(drop),
        3 => {
            let rootfs = Rootfs::Existing("/run/root".into());
            let config = ContainerConfig::new("container", rootfs, vec!["true".into()]);
            client.create_container(&config, DEADLINE).await
        }
        4 => client.wait_process(init, DEADLINE).await.map(drop),
        5 => client.read_stdout(init, 100, DEADLINE).await.map(drop),
        6 => client.write_stdin(init, b"data", DEADLINE).await.map(drop),
        7 => client.quiesce(Purpose::Template, DEADLINE).await.map(drop),
        8 => client.thaw(&order(), DEADLINE).await.map(drop),
        9 => {
            let released = client.release(GENERATION.into(), None, DEADLINE);
            released.await.map(drop)
        }
        10 => {
            let config = ExecConfig {
                args: vec!["true".into()],
                ..ExecConfig::default()
            };
            client.start_exec(&config, DEADLINE).await.map(drop)
        }
        11 => {
            let config = SandboxConfig::default();
            client.create_sandbox(&config, DEADLINE).await
        }
        12 => client.update_routes(&[], DEADLINE).await,
        _ => stream(client).await,
    }
}

async fn stream(client: &AgentClient) -> Result<(), ClientError> {
    let ticket = ExecTicket {
        exec_id: "exec".into(),
        token: vec![1],
    };
    let mut stream = client.attach(ticket, DEADLINE).await?;
    loop {
        stream.next_event().await?;
    }
}

fn order() -> ThawOrder {
    ThawOrder {
        quiesce_id: QuiesceId::from([1; 16]),
        generation: Generation::from(GENERATION),
        identity: Identity {
            hostname: "clone".into(),
            machine_id: String::new(),
            boot_id: String::new(),
        },
        network: Network::default(),
        dns: Vec::new(),
        files: Vec::new(),
    }
}

/// What the agent says next.
type Said = Arc<Mutex<Vec<u8>>>;

struct Rig {
    runtime: Runtime,
    said: Said,
    client: Option<AgentClient>,
}

impl Rig {
    fn new() -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        Self {
            runtime: builder.enable_all().build().expect("a runtime"),
            said: Said::default(),
            client: None,
        }
    }

    fn run(&mut self, which: usize, said: Vec<u8>) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said;
        let answered = self.runtime.block_on(async {
            if self.client.is_none() {
                self.client = Some(connect(self.said.clone()).await);
            }
            let client = self.client.as_ref().expect("it was connected");
            ask(client, which).await
        });
        if let Err(error) = answered {
            assert!(!matches!(error, ClientError::Deadline { .. }), "{error}");
            let text = error.to_string();
            assert!(
                !text.contains(|letter: char| letter.is_control()),
                "{text:?}"
            );
            // The end of a process's stream is not that of the link.
            if error.is_dead() && which < replies().len() - 1 {
                self.client = None;
            }
        }
    }
}

async fn connect(said: Said) -> AgentClient {
    let (host, guest) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
    host.set_nonblocking(true)
        .expect("a socket that does not block");
    let mut listener =
        Listener::over_serial(guest.into(), &[port::RPC, port::STREAM]).expect("a listener");
    let host = tokio::net::UnixStream::from_std(host).expect("a socket of the runtime");
    let link = Link::over_serial(host).expect("a link");
    tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            tokio::spawn(answer(incoming, said.clone()));
        }
    });
    AgentClient::connect(&link, DEADLINE)
        .await
        .expect("a client")
}

async fn answer(incoming: Incoming, said: Said) {
    let mut stream = incoming.stream;
    let next = || said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if incoming.port == port::STREAM {
        // Who hangs up while it is spoken to hears no more.
        let _ = stream.write_all(&next()).await;
        let _ = stream.shutdown().await;
        return;
    }
    while let Ok(id) = next_request(&mut stream).await {
        let response = next();
        let length = u32::try_from(response.len()).expect("an input is small");
        let head = [&length.to_be_bytes()[..], &id, &[RESPONSE, 0]].concat();
        if stream.write_all(&[head, response].concat()).await.is_err() {
            return;
        }
    }
}

/// The id of the next request, whose content is thrown away.
async fn next_request(stream: &mut Stream) -> std::io::Result<[u8; 4]> {
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).await?;
    let [a, b, c, d, id @ .., _, _] = head;
    let length = u64::from(u32::from_be_bytes([a, b, c, d]));
    tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await?;
    Ok(id)
}

/// One input.
pub fn run(input: &[u8]) {
    static RIG: OnceLock<Mutex<Rig>> = OnceLock::new();
    let [which, whole, reply @ ..] = input else {
        return;
    };
    let which = usize::from(*which) % replies().len();
    let is_stream = which == replies().len() - 1;
    let said = if is_stream || whole % 4 == 0 {
        reply.to_vec()
    } else {
        let response = ttrpc::Response {
            payload: reply.to_vec(),
            ..Default::default()
        };
        response.write_to_bytes().unwrap_or_default()
    };
    let rig = RIG.get_or_init(|| Mutex::new(Rig::new()));
    rig.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .run(which, said);
}

/// Replies to begin with.
#[must_use]
pub fn inputs() -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    for (which, descriptor) in (0..).zip(replies()) {
        let made = structure::first(&descriptor).into_iter();
        inputs.extend(made.map(|reply| [vec![which, 1], reply].concat()));
    }
    let status = ttrpc::Response {
        status: Some(ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no \x1b such")).into(),
        ..Default::default()
    };
    inputs.push([vec![0, 0], status.write_to_bytes().unwrap_or_default()].concat());
    let mut receipt = lifecycle::ThawResponse::new();
    receipt.generation = GENERATION.into();
    inputs.push([vec![8, 1], receipt.write_to_bytes().unwrap_or_default()].concat());
    let mut stream = vec![13, 0];
    for one in [
        Frame::Stdout(b"out".into()),
        Frame::Error("\x1b".into()),
        Frame::Exit(0),
    ] {
        frame::encode(&one, &mut stream).expect("a frame within its bounds");
    }
    inputs.push(stream);
    inputs
}

/// See [`structure::mutate`].
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let size = size.max(HEADER);
    if max_size < HEADER {
        return 0;
    }
    let which = usize::from(data[0]) % replies().len();
    structure::mutate(data, HEADER, size, max_size, seed, &replies()[which])
}
