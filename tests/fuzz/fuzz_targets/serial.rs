//! The session layer of a serial port: however the bytes come in, the same
//! data and the same sessions come out; what was escaped comes back; and an
//! answer is found wherever it lies.
//!
//! The first two bytes of an input say in which pieces the others come, and
//! how much is read at once.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protocols::serial::codec::{AckScanner, Decoder, Nonce, acknowledgement, escape, reset};
use tardigrade_fuzz::structure::write_seeds;

/// The data, and each session with where in it it begins.
type Received = (Vec<u8>, Vec<(usize, Nonce)>);

fn receive(input: &[u8], piece: usize, room: usize) -> Received {
    let mut decoder = Decoder::default();
    let mut output = vec![0; room];
    let (mut data, mut sessions) = (Vec::new(), Vec::new());
    for mut part in input.chunks(piece) {
        while !part.is_empty() {
            let decoded = decoder.decode(part, &mut output);
            assert!(decoded.consumed > 0, "it would be asked for ever");
            part = &part[decoded.consumed..];
            data.extend_from_slice(&output[..decoded.produced]);
            sessions.extend(decoded.reset.map(|nonce| (data.len(), nonce)));
        }
    }
    (data, sessions)
}

fn seeds() -> Vec<Vec<u8>> {
    let nonce = Nonce::new([7; 16]);
    let mut escaped = Vec::new();
    escape(b"data \xff\xff \x01", &mut escaped);
    let bodies = [
        reset(nonce),
        acknowledgement(nonce),
        escaped.clone(),
        [reset(nonce), escaped.clone(), reset(nonce), escaped].concat(),
    ];
    let pieces = [[1, 1], [3, 64]];
    let inputs = bodies
        .iter()
        .flat_map(|body| pieces.map(|pieces| [&pieces[..], body].concat()));
    inputs.collect()
}

fuzz_target!(init: write_seeds(seeds()), |input: &[u8]| {
    let [piece, room, bytes @ ..] = input else {
        return;
    };
    let (piece, room) = (usize::from(*piece).max(1), usize::from(*room).max(1));
    let at_once = receive(bytes, usize::MAX, bytes.len().max(1));
    assert_eq!(receive(bytes, piece, room), at_once);
    let mut escaped = Vec::new();
    escape(bytes, &mut escaped);
    assert_eq!(receive(&escaped, piece, room), (bytes.to_vec(), Vec::new()));
    // Behind whatever is left in the port, the answer is found.
    let nonce = Nonce::new([7; 16]);
    let mut sent = bytes.to_vec();
    sent.extend(acknowledgement(nonce));
    let mut scanner = AckScanner::new(nonce);
    let mut before = 0;
    let found = sent.chunks(piece).find_map(|part| {
        let end = scanner.scan(part).map(|offset| before + offset);
        before += part.len();
        end
    });
    assert!(found.is_some_and(|end| sent[..end].ends_with(&acknowledgement(nonce))));
});
