//! What a VMM writes on its standard error, and its last words, for an error.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, quote};

/// How much of a log's end is looked at for the last line.
const LOG_TAIL: u64 = 2 << 10;

/// Opens a log to append to, and makes it where there is none.
pub(crate) fn open_log(path: &Path) -> Result<File, Error> {
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path);
    opened.map_err(Error::path("open", path))
}

/// The last line of what a VMM wrote on its standard error; empty when there is
/// none.
pub(crate) fn last_line(log: &Path) -> String {
    last_line_of(log, "")
}

/// The same of the lines with a word in them.
pub(crate) fn last_line_of(log: &Path, word: &str) -> String {
    let tail = || tail_with(&File::open(log).ok()?, word);
    tail().unwrap_or_default()
}

/// The last line of a file.
pub(crate) fn read_tail(file: &File) -> Option<String> {
    tail_with(file, "")
}

fn tail_with(file: &File, word: &str) -> Option<String> {
    let start = file.metadata().ok()?.len().saturating_sub(LOG_TAIL);
    let mut bytes = vec![0; usize::try_from(LOG_TAIL).ok()?];
    let length = file.read_at(&mut bytes, start).ok()?;
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty() && line.contains(word))
        .map(quote)
}
