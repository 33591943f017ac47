//! See `tardigrade_fuzz::replies`.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use tardigrade_fuzz::replies;
use tardigrade_fuzz::structure::write_seeds;

fuzz_target!(init: write_seeds(replies::inputs()), |input: &[u8]| replies::run(input));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    replies::mutate(data, size, max_size, seed)
});
