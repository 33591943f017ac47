//! See `tardigrade_fuzz::containers`.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use protocols::wire::agent::CreateContainerRequest;
use tardigrade_fuzz::structure::{descriptor, first, mutate, write_seeds};
use tardigrade_fuzz::{containers, seeds};

fuzz_target!(
    init: {
        let mut inputs = first(&descriptor::<CreateContainerRequest>());
        inputs.extend(seeds::of("CreateContainerRequest"));
        write_seeds(inputs);
    },
    |input: &[u8]| containers::container(input)
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let kind = descriptor::<CreateContainerRequest>();
    mutate(data, 0, size, max_size, seed, &kind)
});
