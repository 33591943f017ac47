//! Agents that lie, babble or say nothing: every call ends in time with an
//! error that says what happened.

use std::time::Instant;

use agent_client::{AgentClient, ClientError, ExecConfig, Generation, Purpose, StatusCode};
use protobuf::Message;
use protocols::wire::{agent, lifecycle};
use protocols::{Frame, FrameWriter, Link, Stream, port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rig::{BRIEF, SOON, pair};

/// Bytes of a ttrpc message's head: length, stream id, type, flags.
const HEAD: usize = 10;
const RESPONSE: u8 = 2;

fn message(stream_id: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(stream_id.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(payload);
    bytes
}

/// An answer that is well formed as far as ttrpc goes.
fn answer(stream_id: u32, payload: Vec<u8>) -> Vec<u8> {
    let response = ttrpc::Response {
        payload,
        ..Default::default()
    };
    message(stream_id, RESPONSE, &response.write_to_bytes().unwrap())
}

/// The id of the next request, whose content is thrown away.
async fn next_request(stream: &mut Stream) -> u32 {
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).await.unwrap();
    let [a, b, c, d, e, f, g, h, ..] = head;
    let length = u64::from(u32::from_be_bytes([a, b, c, d]));
    tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink())
        .await
        .unwrap();
    u32::from_be_bytes([e, f, g, h])
}

/// A client of an agent whose RPC streams are handled by `behave`.
async fn agent<F>(behave: impl Fn(Stream) -> F + Send + 'static) -> (AgentClient, Link)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (link, mut listener) = pair().await;
    tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            assert_eq!(incoming.port, port::RPC);
            tokio::spawn(behave(incoming.stream));
        }
    });
    (AgentClient::connect(&link, SOON).await.unwrap(), link)
}

/// Answers every request with `payload`.
async fn agent_answering(payload: Vec<u8>) -> (AgentClient, Link) {
    agent(move |mut stream| {
        let payload = payload.clone();
        async move {
            loop {
                let id = next_request(&mut stream).await;
                if stream
                    .write_all(&answer(id, payload.clone()))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    })
    .await
}

async fn check(client: &AgentClient) -> ClientError {
    let begun = Instant::now();
    let error = client.check(BRIEF).await.unwrap_err();
    assert!(begun.elapsed() < BRIEF + SOON, "{error}");
    error
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let (client, _link) = agent(async |mut stream: Stream| {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let error = check(&client).await;
    assert!(matches!(error, ClientError::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn an_agent_that_hangs_up_is_dead_at_once() {
    let (client, _link) = agent(async |mut stream: Stream| {
        next_request(&mut stream).await;
    })
    .await;
    let begun = Instant::now();
    let error = client.check(SOON * 100).await.unwrap_err();
    assert!(error.is_dead(), "{error}");
    assert!(begun.elapsed() < SOON);
}

#[tokio::test]
async fn garbage_is_an_error_in_time() {
    let (client, _link) = agent(async |mut stream: Stream| {
        next_request(&mut stream).await;
        let _ = stream.write_all(&[0xa5; 4096]).await;
        std::future::pending::<()>().await;
    })
    .await;
    let error = check(&client).await;
    assert!(
        matches!(
            error,
            ClientError::Deadline { .. } | ClientError::Dead { .. }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn endless_bytes_are_an_error_in_time() {
    for byte in [0_u8, 0x01, 0xff] {
        let (client, link) = agent(move |mut stream: Stream| async move {
            while stream.write_all(&[byte; 16 * 1024]).await.is_ok() {}
        })
        .await;
        let error = check(&client).await;
        assert!(
            matches!(
                error,
                ClientError::Deadline { .. } | ClientError::Dead { .. }
            ),
            "{error}"
        );
        link.close();
    }
}

#[tokio::test]
async fn an_answer_that_is_no_protobuf_is_malformed() {
    let (client, _link) = agent(async |mut stream: Stream| {
        let id = next_request(&mut stream).await;
        let _ = stream.write_all(&message(id, RESPONSE, &[0xff; 64])).await;
        std::future::pending::<()>().await;
    })
    .await;
    let error = check(&client).await;
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");

    let (client, _link) = agent_answering(vec![0xff; 64]).await;
    let error = check(&client).await;
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_beyond_the_limit_of_a_message_is_malformed() {
    let (client, _link) = agent(async |mut stream: Stream| {
        let id = next_request(&mut stream).await;
        let _ = stream
            .write_all(&message(id, RESPONSE, &vec![0; 5 << 20]))
            .await;
        std::future::pending::<()>().await;
    })
    .await;
    let error = client.check(SOON).await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_of_another_type_is_malformed() {
    let (client, _link) = agent(async |mut stream: Stream| {
        let id = next_request(&mut stream).await;
        let _ = stream.write_all(&message(id, 77, b"")).await;
        std::future::pending::<()>().await;
    })
    .await;
    let error = check(&client).await;
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn an_error_of_a_megabyte_is_shown_in_part_and_escaped() {
    let (client, _link) = agent(async |mut stream: Stream| {
        let id = next_request(&mut stream).await;
        let response = ttrpc::Response {
            status: protobuf::MessageField::some(ttrpc::get_status(
                ttrpc::Code::INTERNAL,
                "\x1b".repeat(1 << 20),
            )),
            ..Default::default()
        };
        let bytes = message(id, RESPONSE, &response.write_to_bytes().unwrap());
        let _ = stream.write_all(&bytes).await;
        std::future::pending::<()>().await;
    })
    .await;
    let error = client.check(SOON).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::Internal));
    let shown = error.to_string();
    assert!(shown.len() < 32 * 1024 && !shown.contains('\x1b'));
}

#[tokio::test]
async fn too_many_steps_too_long_names_and_wrong_ids_are_malformed() {
    let step = |name: &str| lifecycle::Step {
        name: name.to_owned(),
        ..Default::default()
    };
    let good = lifecycle::QuiesceResponse {
        quiesce_id: vec![1; 16],
        steps: vec![step("freeze"); 64],
        ..Default::default()
    };
    let many = lifecycle::QuiesceResponse {
        steps: vec![step("freeze"); 65],
        ..good.clone()
    };
    let long = lifecycle::QuiesceResponse {
        steps: vec![step(&"x".repeat(65))],
        ..good.clone()
    };
    let short = lifecycle::QuiesceResponse {
        quiesce_id: vec![1; 15],
        ..good.clone()
    };
    for (response, fits) in [(good, true), (many, false), (long, false), (short, false)] {
        let (client, _link) = agent_answering(response.write_to_bytes().unwrap()).await;
        let result = client.quiesce(Purpose::Template, SOON).await;
        match result {
            Ok(_) => assert!(fits),
            Err(error) => assert!(
                !fits && matches!(error, ClientError::Malformed { .. }),
                "{error}"
            ),
        }
    }
}

#[tokio::test]
async fn a_receipt_of_another_generation_or_of_impossible_times_is_malformed() {
    let generation = Generation::random().unwrap();
    let order = agent_client::ThawOrder {
        quiesce_id: [1; 16].into(),
        generation,
        identity: agent_client::Identity {
            hostname: "a".to_owned(),
            machine_id: String::new(),
            boot_id: String::new(),
        },
        network: agent_client::Network::default(),
        dns: vec![],
        files: vec![],
    };
    let other = lifecycle::ThawResponse {
        generation: vec![0; 16],
        ..Default::default()
    };
    let slow = lifecycle::ThawResponse {
        generation: generation.as_bytes().to_vec(),
        guest_received_nanos: i64::MAX,
        guest_realtime_nanos: i64::MIN,
        ..Default::default()
    };
    for response in [other, slow] {
        let (client, _link) = agent_answering(response.write_to_bytes().unwrap()).await;
        let error = client.thaw(&order, SOON).await.unwrap_err();
        assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
        assert!(!format!("{error:?}").contains("entropy"));
    }
}

#[tokio::test]
async fn more_output_than_asked_for_is_malformed() {
    let response = agent::ReadStreamResponse {
        data: vec![0; 11],
        ..Default::default()
    };
    let (client, _link) = agent_answering(response.write_to_bytes().unwrap()).await;
    let process = agent_client::ProcessName::init("web");
    let error = client.read_stdout(process, 10, SOON).await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
    let taken = agent::WriteStreamResponse {
        len: 4,
        ..Default::default()
    };
    let (client, _link) = agent_answering(taken.write_to_bytes().unwrap()).await;
    let error = client.write_stdin(process, b"abc", SOON).await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
}

/// A client whose exec streams are handled by `behave`.
async fn exec_stream<F>(behave: impl Fn(Stream) -> F + Send + 'static) -> agent_client::ExecStream
where
    F: Future<Output = ()> + Send + 'static,
{
    let (link, mut listener) = pair().await;
    tokio::spawn(async move {
        while let Ok(mut incoming) = listener.accept().await {
            if incoming.port == port::STREAM {
                tokio::spawn(behave(incoming.stream));
                continue;
            }
            tokio::spawn(async move {
                let token = lifecycle::StreamToken {
                    token: vec![1; 16],
                    ..Default::default()
                };
                let payload = token.write_to_bytes().unwrap();
                let id = next_request(&mut incoming.stream).await;
                incoming
                    .stream
                    .write_all(&answer(id, payload))
                    .await
                    .unwrap();
                std::future::pending::<()>().await;
            });
        }
    });
    let client = AgentClient::connect(&link, SOON).await.unwrap();
    client.exec(&ExecConfig::default(), SOON).await.unwrap()
}

#[tokio::test]
async fn an_exec_stream_of_garbage_is_malformed_and_a_torn_one_dead() {
    let mut stream = exec_stream(async |mut stream: Stream| {
        let _ = stream.write_all(&[2, 0xff, 0xff, 0xff, 0xff]).await;
        std::future::pending::<()>().await;
    })
    .await;
    let error = tokio::time::timeout(SOON, stream.next_event()).await;
    let error = error.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");

    let mut stream = exec_stream(async |mut stream: Stream| {
        let _ = stream.read_u8().await;
        let _ = stream.write_all(&[2, 0, 0, 0, 9, b'x']).await;
    })
    .await;
    let error = tokio::time::timeout(SOON, stream.next_event()).await;
    assert!(error.unwrap().unwrap_err().is_dead());
}

#[tokio::test]
async fn an_exec_stream_that_acts_as_a_client_is_malformed() {
    let mut stream = exec_stream(async |stream: Stream| {
        let mut writer = FrameWriter::new(stream);
        let _ = writer.write(&Frame::Stdin(vec![])).await;
        std::future::pending::<()>().await;
    })
    .await;
    let error = tokio::time::timeout(SOON, stream.next_event()).await;
    let error = error.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
}
