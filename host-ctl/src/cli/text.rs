//! Text for people: tables, durations, and strings made harmless.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Makes a string of somebody else's safe to print: what a terminal could act
/// on (control characters, and the invisible ones that reorder text) becomes
/// its escape.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() || reorders(letter) {
            safe.extend(letter.escape_default());
        } else {
            safe.push(letter);
        }
    }
    safe
}

/// Bidirectional controls (Unicode Standard Annex 9) and separators that some
/// terminals take for line ends.
fn reorders(letter: char) -> bool {
    matches!(letter,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Like [`escape`], but lines stay lines and tabs stay tabs: for logs.
#[must_use]
pub fn escape_lines(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for piece in text.split_inclusive(['\n', '\t']) {
        match piece.char_indices().next_back() {
            Some((end, last @ ('\n' | '\t'))) => {
                // A serial console ends its lines with a carriage return too.
                let body = &piece[..end];
                safe.push_str(&escape(body.strip_suffix('\r').unwrap_or(body)));
                safe.push(last);
            }
            _ => safe.push_str(&escape(piece)),
        }
    }
    safe
}

/// A size in the unit that fits a table.
#[must_use]
pub fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

/// How long ago a moment was, given in seconds since 1970.
#[must_use]
pub fn since(moment: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let ago = now.map_or(0, |now| now.as_secs()).saturating_sub(moment);
    match ago {
        0..120 => format!("{ago} s ago"),
        120..7200 => format!("{} min ago", ago / 60),
        7200..172_800 => format!("{} h ago", ago / 3600),
        _ => format!("{} days ago", ago / 86_400),
    }
}

/// A table whose cells are escaped and whose columns line up.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    #[must_use]
    pub fn new(heads: &[&str]) -> Self {
        Self {
            rows: vec![heads.iter().map(ToString::to_string).collect()],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| escape(&cell)).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let width =
                    |row: &Vec<String>| row.get(column).map_or(0, |cell| cell.chars().count());
                self.rows.iter().map(width).max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, "{cell:width$}  ")?;
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_a_terminal_acts_on_survives(text in any::<String>()) {
            let safe = escape(&text);
            prop_assert!(!safe.chars().any(|letter| letter.is_control() || reorders(letter)));
            let lines = escape_lines(&text);
            prop_assert!(!lines.chars().any(
                |letter| letter != '\n' && letter != '\t' && (letter.is_control() || reorders(letter))
            ));
        }

        #[test]
        fn plain_text_stays_as_it_is(text in "[ -~äöü]{0,60}") {
            prop_assert_eq!(escape(&text), text.clone());
            prop_assert_eq!(escape_lines(&text), text);
        }

        #[test]
        fn a_table_has_one_line_a_row(cells in prop::collection::vec(any::<String>(), 0..6)) {
            let mut table = Table::new(&["one", "two"]);
            for cell in &cells {
                table.row([cell.clone(), "x".into()]);
            }
            prop_assert_eq!(table.to_string().lines().count(), cells.len() + 1);
        }
    }

    #[test]
    fn an_escape_sequence_is_shown_and_not_obeyed() {
        assert_eq!(escape("a\x1b[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(
            escape_lines("a\r\n\x1b]0;x\x07\tb"),
            "a\n\\u{1b}]0;x\\u{7}\tb"
        );
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["long".into(), "1".into()]);
        table.row(["x".into(), "2".into()]);
        assert_eq!(table.to_string(), "A     B\nlong  1\nx     2\n");
    }
}
