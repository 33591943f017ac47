//! Requests as they are on the wire, and answers no VMM should give.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Gives one answer to whatever is asked; what was asked comes back.
fn answering(answer: &[u8]) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<Vec<u8>>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = answer.to_vec();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = vec![0; 4096];
        let length = stream.read(&mut asked).unwrap();
        asked.truncate(length);
        std::io::Write::write_all(&mut stream, &answer).unwrap();
        asked
    });
    (directory, path, server)
}

fn asked(answer: &[u8], request: &Request<'_>) -> (Result<Value, MonitorError>, Vec<u8>) {
    let (_directory, path, server) = answering(answer);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answered = runtime.block_on(call(&path, request, Duration::from_secs(10)));
    (answered, server.join().unwrap())
}

#[test]
fn a_request_is_one_http_message_with_its_length() {
    let request = Request::put("/api/v1/vm.resume", Some(json!({"a": 1})));
    let (answer, sent) = asked(b"HTTP/1.1 204 \r\n\r\n", &request);
    assert_eq!(answer, Ok(Value::Null));
    let sent = String::from_utf8(sent).unwrap();
    assert!(
        sent.starts_with("PUT /api/v1/vm.resume HTTP/1.1\r\n"),
        "{sent}"
    );
    assert!(
        sent.ends_with("Content-Length: 7\r\n\r\n{\"a\":1}"),
        "{sent}"
    );
}

#[test]
fn a_refusal_carries_the_vmms_words() {
    let words = b"HTTP/1.1 400 Bad\r\nContent-Length: 7\r\n\r\nno\x1b such";
    let (answer, _) = asked(words, &Request::get("/x"));
    let Err(MonitorError::Refused {
        command,
        class,
        reason,
    }) = answer
    else {
        panic!("{answer:?}");
    };
    assert_eq!((command, class.as_str()), ("/x", "status 400"));
    assert_eq!(reason, "no\\u{1b} suc");
}

#[test]
fn half_an_answer_is_a_hang_up_and_an_endless_one_is_cut() {
    let (answer, _) = asked(b"HTTP/1.1 200 OK\r\nContent-Le", &Request::get("/x"));
    assert_eq!(answer, Err(MonitorError::Closed));
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", u64::MAX);
    let (answer, _) = asked(long.as_bytes(), &Request::get("/x"));
    assert_eq!(answer, Err(MonitorError::Long(LONGEST_BODY)));
    let mut head = b"HTTP/1.1 200 OK\r\n".to_vec();
    for _ in 0..2048 {
        head.extend_from_slice(b"A: b12345678\r\n");
    }
    let (answer, _) = asked(&head, &Request::get("/x"));
    assert!(
        matches!(
            answer,
            Err(MonitorError::Long(_) | MonitorError::Garbage(_))
        ),
        "{answer:?}"
    );
}

#[test]
fn silence_ends_at_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api");
    let _accepts_and_never_answers = UnixListener::bind(&path).unwrap();
    let deadline = Duration::from_millis(20);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answer = runtime.block_on(call(&path, &Request::get("/x"), deadline));
    let command = "/x";
    assert_eq!(answer, Err(MonitorError::Silent { command, deadline }));
}

#[test]
fn descriptors_arrive_with_the_request() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let mut into = [std::io::IoSliceMut::new(&mut bytes)];
        recvmsg(&stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        let received: usize = ancillary
            .drain()
            .map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => descriptors.count(),
                _ => 0,
            })
            .sum();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 204 \r\n\r\n").unwrap();
        received
    });
    let file = tempfile::tempfile().unwrap();
    let descriptors = [file.as_fd(), file.as_fd()];
    let request = Request {
        descriptors: &descriptors,
        ..Request::put("/x", Some(json!({})))
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answer = runtime.block_on(call(&path, &request, Duration::from_secs(10)));
    assert_eq!(answer, Ok(Value::Null));
    assert_eq!(server.join().unwrap(), 2);
}

proptest! {
    #[test]
    fn whatever_comes_is_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn a_head_in_pieces_is_the_same_head(cut in 0_usize..40, length in 0_usize..9999) {
        let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        prop_assert!(parse(&whole.as_bytes()[..cut.min(whole.len() - 1)]).unwrap().is_none());
        let head = parse(whole.as_bytes()).unwrap().unwrap();
        prop_assert_eq!((head.status, head.body, head.length), (200, length, whole.len()));
    }
}
