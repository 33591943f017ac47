//! The session layer's bytes, as pure state machines.
//!
//! Host to guest: `FF` is sent as `FF 00`; `FF 01` and a 16-byte nonce without
//! `FF` begin a session. Guest to host: plain bytes; a session's begin with
//! [`ACK`] and the nonce of the host.

/// Begins an escape in the host-to-guest direction.
const ESCAPE: u8 = 0xff;
/// After the escape: a literal `FF`.
const LITERAL: u8 = 0x00;
/// After the escape: the nonce of a new session follows.
const RESET: u8 = 0x01;

/// What the guest says before the nonce it repeats.
const ACK: [u8; 8] = *b"\xff\x02TARDIG";

/// Bytes of a nonce.
const NONCE: usize = 16;

/// Names a session. Never holds `FF`: a reset cut short cannot swallow the
/// beginning of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce([u8; NONCE]);

impl Nonce {
    /// A nonce of these bytes, `FF` changed to `FE`.
    #[must_use]
    pub fn new(random: [u8; NONCE]) -> Self {
        Self(random.map(|byte| if byte == ESCAPE { ESCAPE - 1 } else { byte }))
    }
}

/// The bytes by which the host begins a session.
#[must_use]
pub fn reset(nonce: Nonce) -> Vec<u8> {
    [&[ESCAPE, RESET], &nonce.0[..]].concat()
}

/// The bytes by which the guest answers a reset.
#[must_use]
pub fn acknowledgement(nonce: Nonce) -> Vec<u8> {
    [&ACK[..], &nonce.0[..]].concat()
}

/// Appends `data` to `out` as the host sends it: at most twice its length.
pub fn escape(data: &[u8], out: &mut Vec<u8>) {
    for part in data.split_inclusive(|byte| *byte == ESCAPE) {
        out.extend_from_slice(part);
        if part.ends_with(&[ESCAPE]) {
            out.push(LITERAL);
        }
    }
}

/// What [`Decoder::decode`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of input used up.
    pub consumed: usize,
    /// Bytes of output written; they came before the reset, if there is one.
    pub produced: usize,
    /// A session begins behind what was consumed.
    pub reset: Option<Nonce>,
}

/// The guest's view of the host-to-guest bytes.
#[derive(Debug, Clone, Default)]
pub struct Decoder(State);

#[derive(Debug, Clone, Default)]
enum State {
    #[default]
    Plain,
    Escaped,
    Nonce {
        bytes: [u8; NONCE],
        filled: usize,
    },
}

impl Decoder {
    /// Unescapes `input` into `output` until one of them is used up or a
    /// session begins. Escapes that no host sends are dropped: they are the
    /// torn end of a session whose reset follows.
    pub fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Decoded {
        let mut consumed = 0;
        let mut produced = 0;
        while consumed < input.len() && produced < output.len() {
            let rest = &input[consumed..];
            match &mut self.0 {
                State::Plain => {
                    let room = rest.len().min(output.len() - produced);
                    let plain = rest[..room]
                        .iter()
                        .position(|byte| *byte == ESCAPE)
                        .unwrap_or(room);
                    output[produced..produced + plain].copy_from_slice(&rest[..plain]);
                    produced += plain;
                    consumed += plain;
                    if plain < room {
                        consumed += 1;
                        self.0 = State::Escaped;
                    }
                }
                State::Escaped => {
                    consumed += 1;
                    self.0 = match rest[0] {
                        LITERAL => {
                            output[produced] = ESCAPE;
                            produced += 1;
                            State::Plain
                        }
                        RESET => State::Nonce {
                            bytes: [0; NONCE],
                            filled: 0,
                        },
                        ESCAPE => State::Escaped,
                        _ => State::Plain,
                    };
                }
                State::Nonce { bytes, filled } => {
                    consumed += 1;
                    if rest[0] == ESCAPE {
                        self.0 = State::Escaped;
                        continue;
                    }
                    bytes[*filled] = rest[0];
                    *filled += 1;
                    if *filled == NONCE {
                        let nonce = Nonce(*bytes);
                        self.0 = State::Plain;
                        return Decoded {
                            consumed,
                            produced,
                            reset: Some(nonce),
                        };
                    }
                }
            }
        }
        Decoded {
            consumed,
            produced,
            reset: None,
        }
    }
}

/// The host's search for the guest's answer in what may be the remains of
/// older sessions.
#[derive(Debug, Clone)]
pub struct AckScanner {
    wanted: Vec<u8>,
    /// The last bytes seen: a beginning of `wanted` may be among them.
    tail: Vec<u8>,
}

impl AckScanner {
    /// Looks for the answer to `nonce`.
    #[must_use]
    pub fn new(nonce: Nonce) -> Self {
        Self {
            wanted: acknowledgement(nonce),
            tail: Vec::new(),
        }
    }

    /// The offset in `input` at which the session's bytes begin, once the
    /// answer is complete.
    pub fn scan(&mut self, input: &[u8]) -> Option<usize> {
        let known = self.tail.len();
        self.tail.extend_from_slice(input);
        let found = self
            .tail
            .windows(self.wanted.len())
            .position(|window| window == self.wanted);
        if let Some(start) = found {
            // The answer was not complete before this input, so it ends in it.
            return Some(start + self.wanted.len() - known);
        }
        let surplus = self.tail.len().saturating_sub(self.wanted.len() - 1);
        self.tail.drain(..surplus);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        // Mostly the bytes that mean something.
        let byte = prop_oneof![Just(0xff_u8), 0_u8..3, any::<u8>()];
        prop::collection::vec(byte, 0..200)
    }

    fn nonces() -> impl Strategy<Value = Nonce> {
        any::<[u8; 16]>().prop_map(Nonce::new)
    }

    /// What a guest makes of `input` when it comes in pieces and is read with
    /// a small buffer: the bytes since the last reset, and all resets.
    fn receive(input: &[u8], piece: usize, room: usize) -> (Vec<u8>, Vec<Nonce>) {
        let mut decoder = Decoder::default();
        let (mut data, mut resets) = (Vec::new(), Vec::new());
        let mut output = vec![0; room];
        for mut part in input.chunks(piece) {
            while !part.is_empty() {
                let decoded = decoder.decode(part, &mut output);
                part = &part[decoded.consumed..];
                data.extend_from_slice(&output[..decoded.produced]);
                if let Some(nonce) = decoded.reset {
                    data.clear();
                    resets.push(nonce);
                }
            }
        }
        (data, resets)
    }

    proptest! {
        #[test]
        fn a_session_is_received_whole_behind_any_torn_one(
            old in bytes(), cut in 0_usize..400, stale in bytes(), nonce in nonces(), data in bytes(),
            piece in 1_usize..40, room in 1_usize..40,
        ) {
            let mut sent = stale;
            escape(&old, &mut sent);
            sent.extend(reset(nonce));
            escape(&old, &mut sent);
            sent.truncate(cut);
            sent.extend(reset(nonce));
            escape(&data, &mut sent);
            let (received, resets) = receive(&sent, piece, room);
            prop_assert_eq!(received, data);
            prop_assert_eq!(resets.last(), Some(&nonce));
        }

        #[test]
        fn data_alone_never_begins_a_session(data in bytes(), piece in 1_usize..40) {
            let mut sent = Vec::new();
            escape(&data, &mut sent);
            prop_assert!(sent.len() <= 2 * data.len());
            prop_assert_eq!(receive(&sent, piece, 16), (data, vec![]));
        }

        #[test]
        fn the_answer_is_found_behind_any_remains(
            remains in bytes(), other in nonces(), nonce in nonces(), data in bytes(), piece in 1_usize..40,
        ) {
            let mut sent = remains;
            if other != nonce {
                sent.extend(acknowledgement(other));
            }
            let cut = acknowledgement(nonce);
            sent.extend(&cut[..cut.len() - 1]);
            sent.extend(acknowledgement(nonce));
            sent.extend(&data);
            let mut scanner = AckScanner::new(nonce);
            let mut received: Option<Vec<u8>> = None;
            for part in sent.chunks(piece) {
                match &mut received {
                    Some(received) => received.extend(part),
                    None => received = scanner.scan(part).map(|offset| part[offset..].to_vec()),
                }
                prop_assert!(scanner.tail.len() <= piece + 24);
            }
            prop_assert_eq!(received, Some(data));
        }
    }
}
