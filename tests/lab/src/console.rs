//! The ends of the lab's logs, for when something went wrong.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of a log is looked at, in bytes.
const TAIL_BYTES: u64 = 16 << 10;
/// How many lines of it are shown.
const TAIL_LINES: usize = 40;

/// How the kernel begins its last words.
const PANIC: &str = "Kernel panic - not syncing";

/// The last lines of the file at `path` under a heading; empty when there is
/// nothing to show. Features that the emulator lacks are no news.
pub(crate) fn tail(heading: &str, path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        file.take(TAIL_BYTES).read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => last_lines(heading, &String::from_utf8_lossy(&bytes)),
        Err(_) => String::new(),
    }
}

fn last_lines(heading: &str, text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.contains("TCG doesn't support requested feature"))
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    // The reason of a panic stands above a long trace.
    let panic = lines.iter().rposition(|line| line.contains(PANIC));
    let first = panic.unwrap_or(lines.len().saturating_sub(TAIL_LINES));
    let shown = lines.iter().skip(first).take(TAIL_LINES);
    let mut tail = format!("{heading}:\n");
    for line in shown {
        // Escape sequences of the boot loader would clear a terminal.
        tail.push_str("  | ");
        tail.extend(line.chars().filter(|letter| !letter.is_control()));
        tail.push('\n');
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_shown_and_none_of_the_noise() {
        let mut text = String::from("warning: TCG doesn't support requested feature: x\n");
        for number in 0..100 {
            text.push_str(&format!("\x1bline {number}\r\n\n"));
        }
        let tail = last_lines("console", &text);
        assert!(tail.starts_with("console:\n  | line 60\n"), "{tail}");
        assert!(tail.ends_with("  | line 99\n"), "{tail}");
        assert_eq!(last_lines("console", "\n\n"), "");
    }

    #[test]
    fn a_panic_is_shown_from_its_reason_on() {
        let mut text = String::from("before\nKernel panic - not syncing: why\n");
        text.push_str(&"trace\n".repeat(100));
        let tail = last_lines("console", &text);
        assert!(tail.starts_with("console:\n  | Kernel panic - not syncing: why\n"));
        assert_eq!(tail.lines().count(), 1 + TAIL_LINES);
    }
}
