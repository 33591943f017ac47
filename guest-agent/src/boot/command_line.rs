//! The kernel command line, in words.

use std::borrow::Cow;

/// The words of a command line, as the kernel's `next_arg` (lib/cmdline.c) takes
/// them: spaces between quotes belong to the word, and a word or a value that is
/// quoted as a whole loses its quotes.
pub(crate) fn words(line: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let mut rest = line;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = rest.find(|letter: char| {
            quoted ^= letter == '"';
            letter.is_ascii_whitespace() && !quoted
        });
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        Some(unquote(word))
    })
}

/// The value of a key; if it is there twice the last one, as for the kernel.
pub(crate) fn last_value(line: &str, key: &str) -> Option<String> {
    words(line)
        .filter_map(|word| {
            let (found, value) = word.split_once('=')?;
            (found == key).then(|| value.to_owned())
        })
        .last()
}

fn unquote(word: &str) -> Cow<'_, str> {
    if let Some(inside) = word.strip_prefix('"') {
        return inside.strip_suffix('"').unwrap_or(inside).into();
    }
    match word.split_once("=\"") {
        Some((key, value)) if !key.contains(['=', '"']) => {
            let value = value.strip_suffix('"').unwrap_or(value);
            format!("{key}={value}").into()
        }
        _ => word.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(line: &str) -> Vec<String> {
        words(line).map(Cow::into_owned).collect()
    }

    #[test]
    fn quotes_hold_a_word_together_and_are_taken_off() {
        assert_eq!(list(" a  b=c\td \n"), ["a", "b=c", "d"]);
        assert_eq!(list("a=\"b c\" d"), ["a=b c", "d"]);
        assert_eq!(list("\"a=b c\" d"), ["a=b c", "d"]);
        assert_eq!(list("a=b\" \"c d"), ["a=b\" \"c", "d"]);
        assert_eq!(list("a=\"b c"), ["a=b c"]);
        assert_eq!(list(""), [""; 0]);
    }

    #[test]
    fn the_last_value_of_a_key_counts() {
        let line = "root=/dev/a x=\"root=/dev/b\" root=/dev/c rootwait";
        assert_eq!(last_value(line, "root").as_deref(), Some("/dev/c"));
        assert_eq!(last_value(line, "rootwait"), None);
    }
}
