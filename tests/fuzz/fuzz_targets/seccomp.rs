//! See `tardigrade_fuzz::containers`.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use protobuf::Message;
use protocols::wire::agent::LinuxSeccomp;
use tardigrade_fuzz::structure::{descriptor, first, mutate, write_seeds};
use tardigrade_fuzz::{containers, seeds};

fuzz_target!(
    init: {
        let mut inputs = first(&descriptor::<LinuxSeccomp>());
        inputs.extend(seeds::profile().write_to_bytes());
        write_seeds(inputs);
    },
    |input: &[u8]| containers::seccomp(input)
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(data, 0, size, max_size, seed, &descriptor::<LinuxSeccomp>())
});
