//! Dials vsock addresses and asks whoever answers the agent's health question.
//!
//! `uniqueness-probe dial CID:PORT...` writes one line for each address: what
//! came of it. Only `answered` means that an agent took the call; everything
//! else, and the error by name, is a refusal.

use std::io::{self, Read, Write};
use std::thread;
use std::time::Duration;
use vsock::VsockStream;

/// How long an answer may take; an agent answers within milliseconds.
const ANSWER: Duration = Duration::from_secs(10);
/// grpc.Health/Check as ttrpc sends it: the header (length, stream 1, request,
/// no flags: ttrpc's PROTOCOL.md), then the request's service and method.
const HEALTH: &[u8] = b"\0\0\0\x14\0\0\0\x01\x01\0\x0a\x0bgrpc.Health\x12\x05Check";

/// Dials all of `addresses` at once: nobody there is a wait of two seconds,
/// vsock(7).
///
/// # Errors
/// When one is no address, or standard output is closed. A refusal is none.
pub(crate) fn run(addresses: &[String]) -> io::Result<()> {
    let parsed = addresses.iter().map(|address| parse(address));
    let parsed: Vec<(u32, u32)> = parsed.collect::<io::Result<_>>()?;
    let outcomes: Vec<io::Result<String>> = thread::scope(|scope| {
        let calls: Vec<_> = parsed
            .into_iter()
            .map(|(cid, port)| scope.spawn(move || ask(cid, port)))
            .collect();
        let lost = || Err(io::Error::other("the call was lost"));
        calls
            .into_iter()
            .map(|call| call.join().unwrap_or_else(|_| lost()))
            .collect()
    });
    let mut out = io::stdout().lock();
    for (address, outcome) in addresses.iter().zip(outcomes) {
        let outcome = outcome.unwrap_or_else(|error| format!("refused: {error}"));
        writeln!(out, "{address} {outcome}")?;
    }
    out.flush()
}

fn parse(address: &str) -> io::Result<(u32, u32)> {
    address
        .split_once(':')
        .and_then(|(cid, port)| Some((cid.parse().ok()?, port.parse().ok()?)))
        .ok_or_else(|| {
            let text = format!("{address:?} is not CID:PORT");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })
}

fn ask(cid: u32, port: u32) -> io::Result<String> {
    let mut stream = VsockStream::connect_with_cid_port(cid, port)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(HEALTH)?;
    let mut answer = [0; 64];
    Ok(match stream.read(&mut answer)? {
        0 => "closed".into(),
        _ => "answered".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_says_how_long_it_is() {
        let (header, body) = HEALTH.split_at(10);
        let length = u32::from_be_bytes(header[..4].try_into().unwrap());
        assert_eq!(length as usize, body.len());
    }

    #[test]
    fn an_address_is_two_numbers() {
        assert_eq!(parse("3:1024").unwrap(), (3, 1024));
        for text in ["", "3", "3:", ":1", "-1:1", "3:1:2", "4294967296:1"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
