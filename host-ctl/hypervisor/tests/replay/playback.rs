//! Playing back what was recorded.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::stand_in::StandIn;

/// One that plays back what was recorded under a name.
pub(crate) fn replaying(directory: &Path, recording: &str, name: &str, run: &Path) -> StandIn {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let recorded = fs::read(path.join(recording)).unwrap();
    let recorded: Value = serde_json::from_slice(&recorded).unwrap();
    let conversations = &recorded[name];
    assert!(conversations.is_array(), "{recording} has no {name}");
    StandIn::with(directory, run, &json!({ "replay": conversations }))
}

/// One that never answers.
pub(crate) fn silent(directory: &Path, run: &Path) -> StandIn {
    StandIn::with(directory, run, &json!("silent"))
}

/// How often it was started.
pub(crate) fn starts(stand_in: &StandIn) -> usize {
    let started = |start: &usize| stand_in.left(*start, "started").is_file();
    (0..).take_while(started).count()
}
