//! The frames of a raw stream: however the bytes come in, the same frames come
//! out, and written again they are the bytes they were read from.
//!
//! The first byte of an input says in which pieces the others come.

#![no_main]

use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;
use protocols::frame::encode;
use protocols::{Frame, FrameReader};
use std::pin::Pin;
use std::task::{Context, Poll};
use tardigrade_fuzz::structure::write_seeds;
use tokio::io::{AsyncRead, ReadBuf};

struct Pieces<'a> {
    rest: &'a [u8],
    most: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let room = buffer.remaining().min(self.most).min(self.rest.len());
        let (piece, rest) = self.rest.split_at(room);
        buffer.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

fn frames(rest: &[u8], most: usize) -> (Vec<Frame>, bool) {
    let mut reader = FrameReader::new(Pieces { rest, most });
    let mut found = Vec::new();
    loop {
        match block_on(reader.next()) {
            Ok(Some(frame)) => found.push(frame),
            Ok(None) => return (found, true),
            Err(_) => return (found, false),
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let frames = [
        Frame::Token(vec![1; 32]),
        Frame::Stdin(b"in".into()),
        Frame::Stdin(Vec::new()),
        Frame::Stdout(b"out".into()),
        Frame::Stderr(b"err".into()),
        Frame::Resize {
            rows: 24,
            columns: 80,
        },
        Frame::Exit(137),
        Frame::Error("why not".into()),
    ];
    let mut all = vec![1];
    let mut inputs: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| {
            let mut input = vec![3];
            encode(frame, &mut input).expect("a frame within its bounds");
            all.extend_from_slice(&input[1..]);
            input
        })
        .collect();
    inputs.push(all);
    inputs
}

fuzz_target!(init: write_seeds(seeds()), |input: &[u8]| {
    let Some((most, bytes)) = input.split_first() else {
        return;
    };
    let (found, whole) = frames(bytes, usize::from(*most).max(1));
    assert_eq!((found.clone(), whole), frames(bytes, usize::MAX));
    let mut again = Vec::new();
    for frame in &found {
        encode(frame, &mut again).expect("what was read can be written");
    }
    assert!(bytes.starts_with(&again));
    assert!(!whole || again.len() == bytes.len());
});
