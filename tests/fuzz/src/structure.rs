//! Mutations that know what a message is made of. Bytes put one behind the
//! other are the messages merged: an input with a message behind it is that
//! input with fields changed and added.

use crate::arbitrary::{WORDS, message_of};
use protobuf::MessageFull;
use protobuf::reflect::MessageDescriptor;
use std::path::Path;

/// Where the inputs to begin with are to be written.
const SEEDS: &str = "FUZZ_SEEDS";
/// Made messages among the inputs to begin with, for each type of message.
const MADE: u64 = 64;
/// Random numbers a made message may be made of.
const NUMBERS: u64 = 300;

/// The numbers that follow from a seed (splitmix64).
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    (1..=NUMBERS).map(move |step| {
        let mut number = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    })
}

/// The bytes of a made message.
fn made(descriptor: &MessageDescriptor, seed: u64) -> Vec<u8> {
    let message = message_of(descriptor, numbers(seed).collect());
    message.write_to_bytes_dyn().unwrap_or_default()
}

/// Messages of a type to begin with, beside the real ones.
#[must_use]
pub fn first(descriptor: &MessageDescriptor) -> Vec<Vec<u8>> {
    let made = (0..MADE).map(|seed| made(descriptor, seed));
    [Vec::new()].into_iter().chain(made).collect()
}

/// Changes `data[header..size]`, a message of that type, and gives the new
/// size of all.
pub fn mutate(
    data: &mut [u8],
    header: usize,
    size: usize,
    max_size: usize,
    seed: u32,
    descriptor: &MessageDescriptor,
) -> usize {
    let header = header.min(size);
    let put = |data: &mut [u8], at: usize| {
        let message = made(descriptor, seed.into());
        let end = at + message.len();
        (end <= max_size).then(|| {
            data[at..end].copy_from_slice(&message);
            end
        })
    };
    let changed = match seed % 5 {
        0 => put(data, size),
        1 => put(data, header),
        2 => word(data, header, size, seed),
        _ => None,
    };
    changed.unwrap_or_else(|| {
        let room = max_size - header;
        header + libfuzzer_sys::fuzzer_mutate(&mut data[header..], size - header, room)
    })
}

/// Puts a word in the place of others: lengths stay as they are.
fn word(data: &mut [u8], header: usize, size: usize, seed: u32) -> Option<usize> {
    let seed = seed as usize / 5;
    let word = WORDS[seed % WORDS.len()].as_bytes();
    let room = size.checked_sub(header + word.len())?;
    let at = header + (seed / WORDS.len()) % (room + 1);
    data[at..at + word.len()].copy_from_slice(word);
    Some(size)
}

/// Messages of one type: what the mutator of a target needs.
#[must_use]
pub fn descriptor<M: MessageFull>() -> MessageDescriptor {
    M::descriptor()
}

/// Writes the inputs to begin with and ends, if that is what this process was
/// started for.
///
/// # Panics
/// They cannot be written.
pub fn write_seeds(inputs: impl IntoIterator<Item = Vec<u8>>) {
    let Some(directory) = std::env::var_os(SEEDS) else {
        return;
    };
    let directory = Path::new(&directory);
    std::fs::create_dir_all(directory).expect("make the directory of the seeds");
    for (number, input) in inputs.into_iter().enumerate() {
        let path = directory.join(format!("seed-{number:04}"));
        std::fs::write(path, input).expect("write a seed");
    }
    std::process::exit(0);
}
