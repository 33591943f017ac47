//! Draws random numbers in a tight loop across a freeze.
//!
//! Runs as a container's process. Before each pair of draws it reads the
//! generation file and the clocks. When the generation changes it keeps what
//! it draws from then on, and writes a record once it has enough: the last
//! `HISTORY` draws under the old generation, then `DRAWS` under the new one.
//! The record lets a test tell the draws whose call was *entered* after the new
//! generation became visible from the one a thread may have had in flight.
//!
//! `uniqueness-probe GENERATION_FILE RECORD_FILE DRAWS HISTORY`. The control
//! (clones resumed without a thaw) names a file of its own instead of the
//! generation file, changes it after the resume, and looks into the history:
//! the freeze is where the clocks of two clones begin to differ.
//!
//! With `dial` as its first word it is something else: see [`dial`].

mod dial;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

/// Bytes of a generation, at most.
const GENERATION_LIMIT: usize = 64;
const UUID: &str = "/proc/sys/kernel/random/uuid";

/// One draw: what was visible before it, and what it gave.
struct Draw {
    generation: Vec<u8>,
    realtime_nanos: i128,
    monotonic_nanos: i128,
    random: [u8; 16],
    uuid: String,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("dial", addresses)) = arguments
        .split_first()
        .map(|(word, rest)| (word.as_str(), rest))
    {
        return match dial::run(addresses) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("uniqueness-probe: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let [generation, record, draws, history] = arguments.as_slice() else {
        eprintln!(
            "usage: uniqueness-probe GENERATION_FILE RECORD_FILE DRAWS HISTORY | dial CID:PORT..."
        );
        return ExitCode::from(2);
    };
    let (Ok(draws), Ok(history)) = (draws.parse(), history.parse()) else {
        eprintln!("uniqueness-probe: {draws} or {history} is not a number");
        return ExitCode::from(2);
    };
    match run(generation, record, draws, history) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("uniqueness-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(
    generation: &str,
    record: &str,
    draws: usize,
    history: usize,
) -> io::Result<std::convert::Infallible> {
    let generation = File::open(generation)?;
    let mut old: VecDeque<Draw> = VecDeque::with_capacity(history + 1);
    let mut new: Vec<Draw> = Vec::with_capacity(draws);
    let mut epoch = 0u64;
    loop {
        let draw = draw(&generation)?;
        let is_new = new
            .first()
            .is_none_or(|first| first.generation != draw.generation);
        if is_new {
            epoch += 1;
            // The last of them may have been in flight at the freeze.
            old.extend(new.drain(..));
        }
        // Once a record is written the loop goes on, so that a freeze always
        // finds a call in flight.
        if new.len() < draws {
            new.push(draw);
            if new.len() == draws {
                write_record(record, epoch, old.iter().chain(&new))?;
            }
        } else {
            old.push_back(draw);
        }
        old.drain(..old.len().saturating_sub(history));
    }
}

fn draw(generation: &File) -> io::Result<Draw> {
    // One read: two could see the end of another text than the beginning.
    let mut seen = vec![0; GENERATION_LIMIT];
    let length = generation.read_at(&mut seen, 0)?;
    seen.truncate(length);
    let realtime_nanos = nanos(rustix::time::ClockId::Realtime);
    let monotonic_nanos = nanos(rustix::time::ClockId::Monotonic);
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let uuid = fs::read_to_string(UUID)?;
    Ok(Draw {
        generation: seen,
        realtime_nanos,
        monotonic_nanos,
        random,
        uuid,
    })
}

fn nanos(clock: rustix::time::ClockId) -> i128 {
    let now = rustix::time::clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// One line a draw: epoch, generation, realtime, monotonic, random, uuid. The
/// rename makes a record whole or absent.
fn write_record<'a>(
    path: &str,
    epoch: u64,
    draws: impl Iterator<Item = &'a Draw>,
) -> io::Result<()> {
    let partial = format!("{path}.partial");
    let mut out = io::BufWriter::new(File::create(&partial)?);
    for draw in draws {
        let generation = String::from_utf8_lossy(&draw.generation);
        let random: String = draw
            .random
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        writeln!(
            out,
            "{epoch} {} {} {} {random} {}",
            generation.trim(),
            draw.realtime_nanos,
            draw.monotonic_nanos,
            draw.uuid.trim()
        )?;
    }
    out.flush()?;
    fs::rename(partial, path)
}
