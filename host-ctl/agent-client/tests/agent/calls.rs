//! What the client asks, and what it makes of the answers.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_client::{
    AgentClient, ClientError, ExecConfig, ExecEvent, Generation, Identity, Network, ProcessName,
    Purpose, QuiesceId, StatusCode, ThawOrder,
};
use async_trait::async_trait;
use protobuf::MessageField;
use protocols::wire::{agent, agent_ttrpc, lifecycle, lifecycle_ttrpc};
use protocols::{Frame, FrameReader, FrameWriter, Listener, Stream, port};
use ttrpc::r#async::TtrpcContext;

use crate::rig::{BRIEF, SOON, pair};

const TOKEN: &[u8] = b"sixteen bytes!!!";

/// Remembers what it was asked.
#[derive(Default)]
struct Asked {
    thaws: Vec<lifecycle::ThawRequest>,
    releases: Vec<lifecycle::ReleaseRequest>,
    exec: Option<lifecycle::ExecRequest>,
}

#[derive(Clone, Default)]
struct Agent(Arc<Mutex<Asked>>);

fn status<T>(code: ttrpc::Code, message: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
}

#[async_trait]
impl agent_ttrpc::Health for Agent {
    async fn check(
        &self,
        _: &TtrpcContext,
        _: agent::CheckRequest,
    ) -> ttrpc::Result<agent::HealthCheckResponse> {
        Ok(agent::HealthCheckResponse {
            status: agent::health_check_response::ServingStatus::SERVING.into(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl agent_ttrpc::AgentService for Agent {
    async fn start_container(
        &self,
        _: &TtrpcContext,
        _: agent::StartContainerRequest,
    ) -> ttrpc::Result<protobuf::well_known_types::empty::Empty> {
        status(ttrpc::Code::PERMISSION_DENIED, "blocked by \x1b[31mpolicy")
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        _: agent::WaitProcessRequest,
    ) -> ttrpc::Result<agent::WaitProcessResponse> {
        std::future::pending().await
    }
}

#[async_trait]
impl lifecycle_ttrpc::Lifecycle for Agent {
    async fn quiesce(
        &self,
        _: &TtrpcContext,
        _: lifecycle::QuiesceRequest,
    ) -> ttrpc::Result<lifecycle::QuiesceResponse> {
        Ok(lifecycle::QuiesceResponse {
            quiesce_id: vec![7; 16],
            steps: vec![lifecycle::Step {
                name: "freeze".to_owned(),
                micros: 12,
                ..Default::default()
            }],
            ..Default::default()
        })
    }

    async fn thaw(
        &self,
        _: &TtrpcContext,
        request: lifecycle::ThawRequest,
    ) -> ttrpc::Result<lifecycle::ThawResponse> {
        let response = lifecycle::ThawResponse {
            generation: request.generation.clone(),
            guest_realtime_nanos: request.host_realtime_nanos,
            guest_received_nanos: request.host_realtime_nanos,
            identity: request.identity.clone(),
            not_unique: vec!["tcp-secret".to_owned(), "phrase ".repeat(36)],
            ..Default::default()
        };
        self.0.lock().unwrap().thaws.push(request);
        Ok(response)
    }

    async fn release(
        &self,
        _: &TtrpcContext,
        request: lifecycle::ReleaseRequest,
    ) -> ttrpc::Result<lifecycle::ReleaseResponse> {
        self.0.lock().unwrap().releases.push(request);
        Ok(lifecycle::ReleaseResponse::new())
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: lifecycle::ExecRequest,
    ) -> ttrpc::Result<lifecycle::StreamToken> {
        self.0.lock().unwrap().exec = Some(request);
        Ok(lifecycle::StreamToken {
            token: TOKEN.to_vec(),
            exec_id: "exec-1".to_owned(),
            ..Default::default()
        })
    }
}

/// A process that echoes its stdin, upper case to stderr, and exits with the
/// rows of its last resize.
async fn process(stream: Stream) {
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let first = reader.next().await.unwrap();
    if first != Some(Frame::Token(TOKEN.to_vec())) {
        let refusal = Frame::Error("no such \x1b[2Jtoken".to_owned());
        return writer.write(&refusal).await.unwrap();
    }
    let mut rows = 0;
    while let Some(frame) = reader.next().await.unwrap() {
        match frame {
            Frame::Stdin(data) if data.is_empty() => break,
            Frame::Stdin(data) => {
                let upper = data.to_ascii_uppercase();
                writer.write(&Frame::Stdout(data)).await.unwrap();
                writer.write(&Frame::Stderr(upper)).await.unwrap();
            }
            Frame::Resize { rows: now, .. } => rows = now,
            other => panic!("{other:?}"),
        }
    }
    writer.write(&Frame::Exit(rows.into())).await.unwrap();
}

async fn serve(mut listener: Listener, agent: Agent) {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let streams = futures::stream::unfold(receiver, async |mut receiver| {
        let stream: Stream = receiver.recv().await?;
        Some((Ok::<_, std::io::Error>(stream), receiver))
    });
    let agent = Arc::new(agent);
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(ttrpc::r#async::transport::Listener::new(streams))
        .register_service(agent_ttrpc::create_health(agent.clone()))
        .register_service(agent_ttrpc::create_agent_service(agent.clone()))
        .register_service(lifecycle_ttrpc::create_lifecycle(agent));
    server.start().await.unwrap();
    while let Ok(incoming) = listener.accept().await {
        if incoming.port == port::RPC {
            sender.send(incoming.stream).await.unwrap();
        } else {
            tokio::spawn(process(incoming.stream));
        }
    }
}

async fn client() -> (AgentClient, Agent, tokio::task::JoinHandle<()>) {
    let (link, listener) = pair().await;
    let agent = Agent::default();
    let server = tokio::spawn(serve(listener, agent.clone()));
    let client = AgentClient::connect(&link, SOON).await.unwrap();
    client.check(SOON).await.unwrap();
    (client, agent, server)
}

fn order() -> ThawOrder {
    ThawOrder {
        quiesce_id: QuiesceId::from([7; 16]),
        generation: Generation::random().unwrap(),
        identity: Identity {
            hostname: "clone-1".to_owned(),
            machine_id: "0".repeat(32),
            boot_id: "00000000-0000-0000-0000-000000000001".to_owned(),
        },
        network: Network::default(),
        dns: vec![],
        files: vec![],
    }
}

#[tokio::test]
async fn a_refusal_is_a_status_with_its_text_escaped() {
    let (client, ..) = client().await;
    let error = client.start_container("web", SOON).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::PermissionDenied));
    assert_eq!(
        error.to_string(),
        "StartContainer: permission denied: blocked by \\u{1b}[31mpolicy"
    );
    assert!(!error.is_dead());
}

#[tokio::test]
async fn what_an_agent_does_not_know_is_a_status_too() {
    let (client, ..) = client().await;
    let error = client.remove_container("web", SOON).await.unwrap_err();
    assert!(matches!(error, ClientError::Status { .. }), "{error}");
}

#[tokio::test]
async fn a_deadline_passes_and_the_connection_lives_on() {
    let (client, ..) = client().await;
    let begun = std::time::Instant::now();
    let waited = client.wait_process(ProcessName::init("web"), BRIEF).await;
    assert!(matches!(waited, Err(ClientError::Deadline { .. })));
    assert!(begun.elapsed() < SOON);
    client.check(SOON).await.unwrap();
}

#[tokio::test]
async fn a_dead_connection_fails_waiting_and_later_calls_at_once() {
    let (client, _, server) = client().await;
    let long = Duration::from_secs(3600);
    let (waited, ()) = tokio::time::timeout(SOON, async {
        tokio::join!(client.wait_process(ProcessName::init("web"), long), async {
            client.check(SOON).await.unwrap();
            client.link().clone().close();
        })
    })
    .await
    .unwrap();
    assert!(waited.unwrap_err().is_dead());
    let later = tokio::time::timeout(SOON, client.check(long)).await;
    assert!(later.unwrap().unwrap_err().is_dead());
    let again = AgentClient::connect(client.link(), SOON).await;
    assert!(again.unwrap_err().is_dead());
    server.abort();
}

#[tokio::test]
async fn a_call_made_before_the_port_is_granted_is_answered_or_says_why_not() {
    let (link, listener) = pair().await;
    let (client, connecting) = AgentClient::connect_early(&link, SOON).await.unwrap();
    let served = serve(listener, Agent::default());
    let calls = async { tokio::join!(client.check(SOON), connecting.granted(SOON)) };
    tokio::select! {
        (checked, granted) = calls => {
            checked.unwrap();
            granted.unwrap();
        }
        () = served => panic!("the agent ended"),
    }

    let (host, guest) = std::os::unix::net::UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let _guest = Listener::over_serial(guest.into(), &[port::STREAM]).unwrap();
    let host = tokio::net::UnixStream::from_std(host).unwrap();
    let link = protocols::Link::over_serial(host).unwrap();
    let (client, connecting) = AgentClient::connect_early(&link, SOON).await.unwrap();
    let (checked, granted) = tokio::join!(client.check(SOON), connecting.granted(SOON));
    assert!(checked.unwrap_err().is_dead());
    let refused = granted.unwrap_err();
    assert!(
        matches!(
            &refused,
            ClientError::Open {
                source: protocols::LinkError::Refused {
                    port: port::RPC,
                    ..
                },
                ..
            }
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_thaw_brings_fresh_entropy_and_the_time_of_its_sending() {
    let (client, agent, _) = client().await;
    let quiesced = client.quiesce(Purpose::Template, SOON).await.unwrap();
    assert_eq!(quiesced.quiesce_id, QuiesceId::from([7; 16]));
    assert_eq!(quiesced.steps[0].name, "freeze");
    let (first, second) = (order(), order());
    for order in [&first, &second] {
        let receipt = client.thaw(order, SOON).await.unwrap();
        assert_eq!(receipt.generation, order.generation);
        assert_eq!(receipt.identity, order.identity);
        assert_eq!(receipt.not_unique, ["tcp-secret", &"phrase ".repeat(36)]);
        // The agent played here has this machine's clock.
        let offset = receipt.exchange.offset().unwrap();
        let round_trip = receipt.exchange.round_trip();
        let bound = Duration::from_nanos(offset.bound_nanos());
        assert!(bound <= round_trip + Duration::from_millis(1), "{offset:?}");
        let corrected = receipt.exchange.corrected_nanos(&offset);
        client
            .release(order.generation, Some(corrected), SOON)
            .await
            .unwrap();
    }
    let asked = agent.0.lock().unwrap();
    let [one, two] = asked.thaws.as_slice() else {
        panic!("{} thaws", asked.thaws.len());
    };
    assert!(one.entropy.len() >= 32 && one.entropy.iter().any(|byte| *byte != 0));
    assert_ne!(one.entropy, two.entropy);
    assert_eq!(one.generation, first.generation.as_bytes());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let sent = Duration::from_nanos(one.host_realtime_nanos.unsigned_abs());
    assert!(now.abs_diff(sent) < SOON);
    // The host's own clock, and so corrected to a moment of this test.
    let corrected = asked.releases[0].corrected_realtime_nanos;
    assert!((one.host_realtime_nanos..two.host_realtime_nanos).contains(&corrected));
}

#[tokio::test]
async fn an_exec_carries_stdin_both_outputs_and_the_exit_status() {
    let (client, agent, _) = client().await;
    let config = ExecConfig {
        container_id: Some("web".to_owned()),
        args: vec!["cat".to_owned()],
        terminal: Some((24, 80)),
        stdin: true,
        ..Default::default()
    };
    let mut stream = client.exec(&config, SOON).await.unwrap();
    assert_eq!(stream.exec_id(), "exec-1");
    stream.write_stdin(b"hello").await.unwrap();
    stream.write_stdin(b"").await.unwrap();
    stream.resize(42, 100).await.unwrap();
    stream.close_stdin().await.unwrap();
    for expected in [
        ExecEvent::Stdout(b"hello".to_vec()),
        ExecEvent::Stderr(b"HELLO".to_vec()),
        ExecEvent::Exit(42),
    ] {
        let event = tokio::time::timeout(SOON, stream.next_event()).await;
        assert_eq!(event.unwrap().unwrap(), expected);
    }
    assert!(stream.next_event().await.unwrap_err().is_dead());
    let asked = agent.0.lock().unwrap();
    let request = asked.exec.as_ref().unwrap();
    assert_eq!((request.rows, request.columns), (24, 80));
    assert_eq!(request.user, MessageField::none());
}

#[tokio::test]
async fn a_ticket_that_is_not_good_is_told() {
    let (client, ..) = client().await;
    let mut ticket = client
        .start_exec(&ExecConfig::default(), SOON)
        .await
        .unwrap();
    ticket.token = b"guessed".to_vec();
    let mut stream = client.attach(ticket, SOON).await.unwrap();
    assert_eq!(
        stream.next_event().await.unwrap(),
        ExecEvent::Error("no such \\u{1b}[2Jtoken".to_owned())
    );
}
