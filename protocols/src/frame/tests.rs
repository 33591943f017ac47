//! Frames survive any cut of the stream, and nothing else is taken for one.

use super::*;
use proptest::prelude::*;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;

fn frames() -> impl Strategy<Value = Frame> {
    let bytes = prop::collection::vec(any::<u8>(), 0..2000);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..=MAX_TOKEN).prop_map(Frame::Token),
        bytes.clone().prop_map(Frame::Stdin),
        bytes.clone().prop_map(Frame::Stdout),
        bytes.prop_map(Frame::Stderr),
        (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| Frame::Resize { rows, columns }),
        any::<i32>().prop_map(Frame::Exit),
        any::<String>().prop_map(Frame::Error),
    ]
}

/// Gives at most `step` bytes a read.
struct Slow<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl AsyncRead for Slow<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.step.min(self.bytes.len()).min(buffer.remaining());
        buffer.put_slice(&self.bytes[..count]);
        self.bytes = &self.bytes[count..];
        Poll::Ready(Ok(()))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

async fn read_all(bytes: &[u8], step: usize) -> io::Result<Vec<Frame>> {
    let mut reader = FrameReader::new(Slow { bytes, step });
    let mut read = Vec::new();
    while let Some(frame) = reader.next().await? {
        read.push(frame);
    }
    Ok(read)
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in(sent in prop::collection::vec(frames(), 0..6), step in 1_usize..4000) {
        let mut bytes = Vec::new();
        for frame in &sent {
            encode(frame, &mut bytes).unwrap();
        }
        prop_assert_eq!(block_on(read_all(&bytes, step)).unwrap(), sent);
    }

    #[test]
    fn a_cut_stream_is_whole_frames_and_then_an_error(sent in frames(), keep in 0.0..1.0) {
        let mut bytes = Vec::new();
        encode(&sent, &mut bytes).unwrap();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in a short buffer")]
        let cut = (bytes.len() as f64 * keep) as usize;
        let read = block_on(read_all(&bytes[..cut], 7));
        if cut == 0 {
            prop_assert_eq!(read.unwrap(), vec![]);
        } else {
            prop_assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn any_bytes_are_frames_or_an_error_and_never_a_panic(bytes: Vec<u8>, step in 1_usize..50) {
        let _ = block_on(read_all(&bytes, step));
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_the_payload() {
    for kind in 0..=6 {
        let error = block_on(read_all(&[kind, 0xff, 0xff, 0xff, 0xff], 5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    assert_eq!(
        encode(&Frame::Stdin(vec![0; MAX_PAYLOAD + 1]), &mut Vec::new()),
        Err(FrameError::Length {
            kind: 1,
            length: MAX_PAYLOAD + 1
        })
    );
}

#[test]
fn a_long_error_text_is_cut_at_a_character() {
    let mut bytes = Vec::new();
    encode(&Frame::Error("é".repeat(MAX_ERROR_TEXT)), &mut bytes).unwrap();
    let read = block_on(read_all(&bytes, 5000)).unwrap();
    assert_eq!(read, vec![Frame::Error("é".repeat(MAX_ERROR_TEXT / 2))]);
}

#[test]
fn debug_output_shows_no_payload() {
    let shown = format!("{:?}", Frame::Token(b"secret".to_vec()));
    assert_eq!(shown, "Token(6 bytes)");
}

#[tokio::test]
async fn a_read_dropped_halfway_loses_nothing() {
    let (mut near, far) = tokio::io::duplex(64);
    let mut bytes = Vec::new();
    encode(&Frame::Stdout(b"abcdef".to_vec()), &mut bytes).unwrap();
    let mut reader = FrameReader::new(far);
    for byte in bytes {
        let early = futures::FutureExt::now_or_never(reader.next());
        assert!(early.is_none());
        near.write_all(&[byte]).await.unwrap();
    }
    let frame = reader.next().await.unwrap();
    assert_eq!(frame, Some(Frame::Stdout(b"abcdef".to_vec())));
}

#[tokio::test]
async fn a_write_dropped_halfway_tears_no_frame() {
    let (near, far) = tokio::io::duplex(16);
    let mut writer = FrameWriter::new(near);
    let first = Frame::Stdin(vec![7; 100]);
    assert!(futures::FutureExt::now_or_never(writer.write(&first)).is_none());
    let mut reader = FrameReader::new(far);
    let second = Frame::Stdin(vec![]);
    let (written, read) = tokio::join!(writer.write(&second), async {
        (reader.next().await.unwrap(), reader.next().await.unwrap())
    });
    written.unwrap();
    assert_eq!(read, (Some(first), Some(second)));
}
