//! Streams of a multiplexed link: refused ports, bulk data, back-pressure, and
//! ttrpc on top.

use std::sync::Arc;
use std::time::Duration;

use crate::rig::{self, ECHO, SOON, echo, expect_echo, expect_working, guest, soon};
use protocols::wire::{agent, agent_ttrpc};
use protocols::{Frame, FrameReader, FrameWriter, Link, LinkError, Listener, port};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_refused_port_is_an_error_at_once() {
    let (host, device) = rig::port();
    let _guest = echo(guest(device, &[ECHO]));
    let link = host.link().await;
    let refused = soon(link.open(99, Duration::from_secs(3600))).await;
    assert!(matches!(refused, Err(LinkError::Refused { port: 99, .. })));
    expect_working(&link).await;
}

#[tokio::test]
async fn a_port_that_is_used_before_it_is_granted_is_the_same_or_the_same_error() {
    let (host, device) = rig::port();
    let link = Link::over_serial(host.stream()).unwrap();
    // All of it waits for a guest that is not there yet.
    let (mut stream, opening) = link.open_early(ECHO, SOON).await.unwrap();
    stream.write_all(b"word").await.unwrap();
    stream.flush().await.unwrap();
    let (mut refused, refusal) = link.open_early(99, SOON).await.unwrap();
    refused.write_all(b"word").await.unwrap();
    let _guest = echo(guest(device, &[ECHO]));
    let mut word = [0; 4];
    soon(stream.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"word");
    opening.granted(SOON).await.unwrap();
    assert!(soon(refused.read_u8()).await.is_err());
    let refusal = refusal.granted(SOON).await;
    assert!(matches!(refusal, Err(LinkError::Refused { port: 99, .. })));
    // A guest that never answers, and a link that is closed meanwhile.
    let (mut stream, opening) = link.open_early(ECHO, SOON).await.unwrap();
    let brief = Duration::from_millis(50);
    let silent = opening.granted(brief).await;
    assert!(matches!(silent, Err(LinkError::Deadline { .. })));
    let (_unread, opening) = link.open_early(ECHO, SOON).await.unwrap();
    link.clone().close();
    assert!(soon(opening.granted(SOON)).await.is_err());
    assert!(soon(stream.read_u8()).await.is_err());
}

#[tokio::test]
async fn the_end_of_what_one_side_sends_passes_and_the_other_goes_on() {
    let (host, device) = rig::port();
    let _guest = echo(guest(device, &[ECHO]));
    let link = host.link().await;
    let mut stream = link.open(ECHO, SOON).await.unwrap();
    expect_echo(&mut stream, b"first").await;
    stream.write_all(b"last").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"last");
}

/// A cheap generator of bytes that compress to nothing and hold every value.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

#[tokio::test]
async fn a_gibibyte_arrives_with_the_right_hash() {
    const BLOCK: usize = 64 * 1024;
    const BLOCKS: usize = (1 << 30) / BLOCK;
    let (host, device) = rig::port();
    let mut listener = guest(device, &[ECHO]);
    let link = host.link().await;
    let (opened, accepted) = tokio::join!(link.open(ECHO, SOON), soon(listener.accept()));
    let (mut sender, mut receiver) = (opened.unwrap(), accepted.unwrap().stream);
    let send = async {
        // 16 blocks of noise in turn: hashing is what this test has time for.
        let mut noise = vec![0; 16 * BLOCK];
        Noise(0x9e37_79b9_7f4a_7c15).fill(&mut noise);
        let mut hash = Sha256::new();
        for number in 0..BLOCKS {
            let block = &mut noise[number % 16 * BLOCK..][..BLOCK];
            block[..8].copy_from_slice(&number.to_le_bytes());
            hash.update(&block);
            sender.write_all(block).await.unwrap();
        }
        sender.shutdown().await.unwrap();
        hash.finalize()
    };
    let receive = async {
        let mut hash = Sha256::new();
        let mut count = 0;
        let mut block = vec![0; BLOCK];
        loop {
            let read = receiver.read(&mut block).await.unwrap();
            if read == 0 {
                return (count, hash.finalize());
            }
            count += read;
            hash.update(&block[..read]);
        }
    };
    let begun = std::time::Instant::now();
    let (sent, (count, received)) = tokio::join!(send, receive);
    eprintln!("1 GiB in {:.1?}", begun.elapsed());
    assert_eq!(count, BLOCKS * BLOCK);
    assert_eq!(sent, received);
}

/// Writes until nothing has gone out for a while.
async fn fill(stream: &mut protocols::Stream) -> usize {
    let block = [5; 16 * 1024];
    let mut total = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(200), stream.write(&block)).await
    {
        total += written.unwrap();
        assert!(total < 64 << 20, "nothing holds the writer back");
    }
    total
}

#[tokio::test]
async fn a_stalled_reader_bounds_the_writer_and_no_other_stream() {
    let (host, device) = rig::port();
    let mut listener = guest(device, &[ECHO]);
    let link = host.link().await;
    let (opened, accepted) = tokio::join!(link.open(ECHO, SOON), soon(listener.accept()));
    let (mut host_stream, mut guest_stream) = (opened.unwrap(), accepted.unwrap().stream);

    let to_guest = fill(&mut host_stream).await;
    let to_host = fill(&mut guest_stream).await;
    assert!(
        to_guest <= 1 << 20 && to_host <= 1 << 20,
        "{to_guest} {to_host}"
    );

    let _guest = echo(listener);
    expect_working(&link).await;

    // Nothing is lost, and the writer goes on when the reader does.
    let mut read = vec![0; to_guest];
    soon(guest_stream.read_exact(&mut read)).await.unwrap();
    let mut more = [0; 4];
    let (written, read) = soon(async {
        tokio::join!(
            host_stream.write_all(b"more"),
            guest_stream.read_exact(&mut more)
        )
    })
    .await;
    written.unwrap();
    read.unwrap();
    assert_eq!(&more, b"more");
}

#[tokio::test]
async fn two_streams_of_frames_run_side_by_side() {
    let (host, device) = rig::port();
    let mut listener = guest(device, &[port::STREAM]);
    let link = host.link().await;
    let guest_side = tokio::spawn(async move {
        let mut streams = Vec::new();
        for _ in 0..2 {
            let stream = listener.accept().await.unwrap().stream;
            streams.push(tokio::spawn(async move {
                let (reader, writer) = tokio::io::split(stream);
                let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
                let Some(Frame::Token(token)) = reader.next().await.unwrap() else {
                    panic!("no token first");
                };
                for _ in 0..200 {
                    writer
                        .write(&Frame::Stdout(token.repeat(500)))
                        .await
                        .unwrap();
                }
                writer.write(&Frame::Exit(0)).await.unwrap();
                writer.shutdown().await.unwrap();
            }));
        }
        for stream in streams {
            stream.await.unwrap();
        }
        listener
    });
    let call = async |token: &'static [u8]| {
        let stream = link.open(port::STREAM, SOON).await.unwrap();
        let (reader, writer) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
        writer.write(&Frame::Token(token.to_vec())).await.unwrap();
        let mut total = 0;
        loop {
            match reader.next().await.unwrap() {
                Some(Frame::Stdout(data)) => {
                    assert!(data.iter().all(|byte| token.contains(byte)));
                    total += data.len();
                }
                Some(Frame::Exit(0)) => return total,
                other => panic!("{other:?}"),
            }
        }
    };
    let totals = soon(async { tokio::join!(call(b"a"), call(b"bb")) }).await;
    assert_eq!(totals, (100_000, 200_000));
    soon(guest_side).await.unwrap();
}

#[tokio::test]
async fn more_streams_than_places_wait_and_none_breaks_the_link() {
    let (host, device) = rig::port();
    let _guest = echo(guest(device, &[ECHO]));
    let link = host.link().await;
    let mut held = Vec::new();
    while let Ok(mut stream) = link.open(ECHO, Duration::from_millis(200)).await {
        expect_echo(&mut stream, b"x").await;
        held.push(stream);
        assert!(held.len() <= 128);
    }
    drop(held);
    for _ in 0..300 {
        expect_working(&link).await;
    }
}

struct Agent;

#[async_trait::async_trait]
impl agent_ttrpc::Health for Agent {
    async fn check(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: agent::CheckRequest,
    ) -> ttrpc::Result<agent::HealthCheckResponse> {
        let mut response = agent::HealthCheckResponse::new();
        response.status = agent::health_check_response::ServingStatus::SERVING.into();
        // Something of the request's size goes back.
        response
            .special_fields
            .mut_unknown_fields()
            .add_length_delimited(15, request.service.into_bytes());
        Ok(response)
    }
}

fn serve_ttrpc(listener: Listener) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let streams = futures::stream::unfold(listener, async |mut listener| {
            let accepted = listener.accept().await.ok()?;
            Some((Ok(accepted.stream), listener))
        });
        let mut server = ttrpc::r#async::Server::new()
            .add_listener(ttrpc::r#async::transport::Listener::new(streams))
            .register_service(agent_ttrpc::create_health(Arc::new(Agent)));
        server.start().await.unwrap();
        std::future::pending::<()>().await;
    })
}

async fn health(link: &Link) -> agent_ttrpc::HealthClient {
    let stream = link.open(port::RPC, SOON).await.unwrap();
    let socket = ttrpc::r#async::transport::Socket::new(stream);
    agent_ttrpc::HealthClient::new(ttrpc::r#async::Client::new(socket))
}

#[tokio::test]
async fn ttrpc_works_over_the_mux_with_many_large_calls_at_once() {
    let (host, device) = rig::port();
    let _server = serve_ttrpc(guest(device, &[port::RPC]));
    let link = host.link().await;
    let client = health(&link).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let client = client.clone();
        calls.spawn(async move {
            let request = agent::CheckRequest {
                service: "x".repeat(256 * 1024),
                ..Default::default()
            };
            let answer = client
                .check(ttrpc::context::with_duration(SOON * 4), &request)
                .await
                .unwrap();
            assert_eq!(
                answer.status,
                agent::health_check_response::ServingStatus::SERVING.into()
            );
        });
    }
    while let Some(call) = tokio::time::timeout(SOON * 4, calls.join_next())
        .await
        .unwrap()
    {
        call.unwrap();
    }
}

#[tokio::test]
async fn a_ttrpc_call_fails_at_once_when_the_link_ends() {
    let (host, device) = rig::port();
    let mut listener = guest(device, &[port::RPC]);
    let link = host.link().await;
    let (client, accepted) = tokio::join!(health(&link), soon(listener.accept()));
    let request = agent::CheckRequest::new();
    let call = client.check(ttrpc::context::with_duration(SOON * 100), &request);
    let (answer, ()) = soon(async {
        tokio::join!(call, async {
            tokio::task::yield_now().await;
            drop((listener, accepted));
        })
    })
    .await;
    assert!(!matches!(answer, Err(ttrpc::Error::RpcStatus(_)) | Ok(_)));
}
