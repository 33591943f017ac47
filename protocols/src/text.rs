//! Text that the other side of the wire chose, made fit for a terminal.

/// Makes a string that an untrusted peer chose fit to be printed: at most
/// `limit` characters of it, with control characters, the bidirectional
/// overrides and the backslash written as escapes, so that it can neither move
/// the cursor nor disguise itself.
#[must_use]
pub fn escape_untrusted(text: &str, limit: usize) -> String {
    let mut escaped = String::with_capacity(text.len().min(limit));
    let mut characters = text.chars();
    for character in characters.by_ref().take(limit) {
        if is_dangerous(character) {
            escaped.extend(character.escape_unicode());
        } else {
            escaped.push(character);
        }
    }
    if characters.next().is_some() {
        escaped.push_str("...");
    }
    escaped
}

/// Control characters, line and paragraph separators, zero-width and
/// bidirectional formatting (Unicode general categories Cc, Zl, Zp and the
/// part of Cf that reorders or hides text).
fn is_dangerous(character: char) -> bool {
    character == '\\'
        || character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::escape_untrusted;
    use proptest::prelude::*;

    #[test]
    fn cursor_movements_and_overrides_become_escapes() {
        assert_eq!(
            escape_untrusted("a\x1b[2Jb\u{202e}c\\", 64),
            "a\\u{1b}[2Jb\\u{202e}c\\u{5c}"
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        assert_eq!(escape_untrusted("abcdef", 3), "abc...");
        assert_eq!(escape_untrusted("abc", 3), "abc");
    }

    proptest! {
        #[test]
        fn escaped_text_is_bounded_and_holds_no_control_character(text: String, limit in 0_usize..100) {
            let escaped = escape_untrusted(&text, limit);
            prop_assert!(escaped.chars().count() <= limit * 10 + 3);
            prop_assert!(!escaped.chars().any(char::is_control));
        }
    }
}
