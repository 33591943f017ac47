//! The end of an output of any length, for an error that is to show it.

use protocols::text::escape_untrusted;

/// The last bytes of what a guest or a command said.
#[derive(Debug, Default)]
pub struct Tail(Vec<u8>);

impl Tail {
    /// Most bytes kept.
    pub const LIMIT: usize = 2048;

    /// Takes more of the output.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(Self::LIMIT);
        self.0.drain(..excess);
    }

    /// Fit for an error: on one line, escaped, and never empty.
    #[must_use]
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
        match lines.join(" | ").as_str() {
            "" => "(nothing)".to_owned(),
            // The separators are longer than what they stand for.
            line => escape_untrusted(line, 3 * Self::LIMIT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_bounded_end_of_an_output() {
        let mut tail = Tail::default();
        for _ in 0..100 {
            tail.add(&[b'x'; 1000]);
        }
        tail.add(b"the end\n");
        assert_eq!(tail.0.len(), Tail::LIMIT);
        assert!(tail.text().ends_with("xthe end"), "{}", tail.text());
        assert_eq!(Tail::default().text(), "(nothing)");
    }

    #[test]
    fn a_tail_moves_no_cursor() {
        let mut tail = Tail::default();
        tail.add(b"\x1b[2Jpanic\xff\r\nthe end\r\n");
        assert!(!tail.text().chars().any(char::is_control));
        assert!(tail.text().ends_with("| the end"), "{}", tail.text());
    }
}
