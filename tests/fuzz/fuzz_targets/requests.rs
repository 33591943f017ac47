//! See `tardigrade_fuzz::requests`.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use tardigrade_fuzz::requests;

fuzz_target!(init: requests::begin(), |input: &[u8]| requests::run(input));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    requests::mutate(data, size, max_size, seed)
});
