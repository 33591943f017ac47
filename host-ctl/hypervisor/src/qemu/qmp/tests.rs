//! A peer on QEMU's control socket that means no good.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::*;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(20);
const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

fn pair() -> (Monitor, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Monitor::start(ours), theirs)
}

async fn ask(monitor: &Monitor, deadline: Duration) -> Result<Vec<Reply>, MonitorError> {
    monitor.execute(vec![Command::new("stop")], deadline).await
}

/// What a command gets that is answered with these bytes.
async fn answered_with(bytes: &[u8]) -> MonitorError {
    let (monitor, mut peer) = pair();
    let write = async {
        // The connection may be given up before all is written.
        let _ = peer.write_all(bytes).await;
    };
    let (result, ()) = tokio::join!(ask(&monitor, LONG), write);
    result.unwrap_err()
}

#[tokio::test]
async fn commands_are_sent_before_the_greeting_and_answered_in_order() {
    let (monitor, peer) = pair();
    let commands = vec![
        Command::new("stop"),
        Command::with("getfd", json!({"fdname": "x"})),
    ];
    let serve = async {
        let mut peer = BufReader::new(peer);
        let mut line = String::new();
        peer.read_line(&mut line).await.unwrap();
        peer.read_line(&mut line).await.unwrap();
        assert_eq!(line.lines().next(), Some("{\"execute\":\"stop\"}"));
        peer.write_all(GREETING).await.unwrap();
        peer.write_all(b"{\"event\":\"STOP\"}\n{\"return\":1}\n{\"ret")
            .await
            .unwrap();
        peer.write_all(b"urn\":2}\n").await.unwrap();
        peer
    };
    let mut events = monitor.events();
    let (replies, _peer) = tokio::join!(monitor.execute(commands, LONG), serve);
    let values: Vec<Value> = replies
        .unwrap()
        .into_iter()
        .map(|reply| reply.value)
        .collect();
    assert_eq!(values, [json!(1), json!(2)]);
    assert_eq!(events.next().await.unwrap().name, "STOP");
    monitor.greeting(SHORT).await.unwrap();
}

#[tokio::test]
async fn garbage_is_a_typed_error_with_a_short_quote() {
    for garbage in [
        &b"hello\n"[..],
        b"[1]\n",
        b"{}\n",
        b"\xff\xfe\n",
        b"\n",
        b"{\"event\": 5}\n",
    ] {
        let error = answered_with(garbage).await;
        assert!(
            matches!(error, MonitorError::Garbage(_)),
            "{garbage:?}: {error}"
        );
    }
    let mut long = vec![b'\x1b'; 1 << 19];
    long.push(b'\n');
    assert!(answered_with(&long).await.to_string().len() < 500);
}

#[tokio::test]
async fn deep_nesting_is_garbage_and_no_stack_overflow() {
    let mut deep = vec![b'['; 1 << 19];
    deep.push(b'\n');
    assert!(matches!(
        answered_with(&deep).await,
        MonitorError::Garbage(_)
    ));
}

#[tokio::test]
async fn an_endless_line_is_cut_off() {
    let endless = vec![b'x'; super::super::line::LONGEST_LINE * 2];
    assert!(matches!(
        answered_with(&endless).await,
        MonitorError::Long(_)
    ));
}

#[tokio::test]
async fn silence_is_a_deadline_and_a_late_answer_goes_to_nobody_else() {
    let (monitor, mut peer) = pair();
    let error = ask(&monitor, SHORT).await.unwrap_err();
    assert_eq!(
        error,
        MonitorError::Silent {
            command: "stop",
            deadline: SHORT
        }
    );
    assert!(matches!(
        monitor.greeting(SHORT).await,
        Err(MonitorError::Silent { .. })
    ));
    peer.write_all(b"{\"return\":\"late\"}\n{\"return\":\"own\"}\n")
        .await
        .unwrap();
    let second = ask(&monitor, LONG).await;
    assert_eq!(second.unwrap()[0].value, json!("own"));
}

#[tokio::test]
async fn a_peer_that_reads_nothing_does_not_block_for_ever() {
    let (monitor, _peer) = pair();
    let big = json!({ "text": "x".repeat(4 << 20) });
    let error = monitor
        .execute(vec![Command::with("big", big)], SHORT)
        .await
        .unwrap_err();
    assert!(matches!(error, MonitorError::Silent { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_nobody_asked_for_ends_the_connection() {
    let (monitor, mut peer) = pair();
    peer.write_all(b"{\"return\":{}}\n").await.unwrap();
    let error = monitor.events().next().await.unwrap_err();
    assert!(matches!(error, MonitorError::Garbage(_)), "{error}");
    assert!(ask(&monitor, LONG).await.is_err());
}

#[tokio::test]
async fn a_closed_connection_is_told_to_all_who_wait() {
    let (monitor, peer) = pair();
    let mut events = monitor.events();
    let close = async { drop(peer) };
    let (asked, event, greeting, ()) = tokio::join!(
        ask(&monitor, LONG),
        events.next(),
        monitor.greeting(LONG),
        close
    );
    assert_eq!(asked.unwrap_err(), MonitorError::Closed);
    assert_eq!(event.unwrap_err(), MonitorError::Closed);
    assert_eq!(greeting.unwrap_err(), MonitorError::Closed);
}

#[tokio::test]
async fn a_refusal_names_the_command_and_its_text_is_bounded() {
    let (monitor, mut peer) = pair();
    let text = "\\u001b[31m".repeat(2000);
    let answer = format!("{{\"error\":{{\"class\":\"GenericError\",\"desc\":\"{text}\"}}}}\n");
    let write = async { peer.write_all(answer.as_bytes()).await.unwrap() };
    let (asked, ()) = tokio::join!(ask(&monitor, LONG), write);
    let error = asked.unwrap_err();
    assert!(
        matches!(&error, MonitorError::Refused { command: "stop", class, .. } if class == "GenericError")
    );
    let shown = error.to_string();
    assert!(shown.len() < 4000 && !shown.contains('\x1b'), "{shown}");
}

#[tokio::test]
async fn a_flood_of_events_does_not_stop_the_answers() {
    let (monitor, mut peer) = pair();
    let mut events = monitor.events();
    let flood = async {
        for _ in 0..1000 {
            peer.write_all(b"{\"event\":\"NOISE\",\"data\":{}}\n")
                .await
                .unwrap();
        }
        peer.write_all(b"{\"return\":{}}\n").await.unwrap();
    };
    let (asked, ()) = tokio::join!(ask(&monitor, LONG), flood);
    asked.unwrap();
    assert_eq!(events.next().await.unwrap().name, "NOISE");
}

#[tokio::test]
async fn a_descriptor_goes_with_its_command() {
    let (monitor, peer) = pair();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let serve = async {
        peer.readable().await.unwrap();
        let mut bytes = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(
            &peer,
            &mut parts,
            &mut ancillary,
            rustix::net::RecvFlags::empty(),
        )
        .unwrap();
        let mut received: Vec<OwnedFd> = Vec::new();
        for message in ancillary.drain() {
            if let rustix::net::RecvAncillaryMessage::ScmRights(descriptors) = message {
                received.extend(descriptors);
            }
        }
        assert!(std::str::from_utf8(&bytes).unwrap().contains("getfd"));
        let mut peer = peer;
        peer.write_all(b"{\"return\":{}}\n").await.unwrap();
        (received, peer)
    };
    let commands = vec![Command::leave("s", write)];
    let (asked, (received, _peer)) = tokio::join!(monitor.execute(commands, LONG), serve);
    asked.unwrap();
    assert_eq!(received.len(), 1);
    std::fs::File::from(received.into_iter().next().unwrap())
        .write_all(b"through")
        .unwrap();
    let mut text = [0; 7];
    rustix::io::read(&read, &mut text).unwrap();
    assert_eq!(&text, b"through");
}
