//! Nor can a line be added outside.
use protocols::wire::agent::CheckRequest;

struct Mine(CheckRequest);

impl authz::Request for Mine {
    const RULE: &'static str = "StartContainerRequest";
    const WHILE_QUIESCED: bool = true;
}

fn main() {
    let _ = Mine;
}
