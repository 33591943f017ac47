//! The texts that arguments are made of.

use std::path::{Component, Path, PathBuf};

/// A command as words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

/// Splits a command at white space; single and double quotes keep words
/// together, and nothing else is special: there is no shell here.
pub(super) fn parse_words(text: &str) -> Result<Words, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    if words.first().is_none_or(String::is_empty) {
        return Err("an empty command".into());
    }
    Ok(Words(words))
}

/// As the agent takes them: 2 to 128 letters, digits, `.`, `-` and `_`, a letter
/// or digit first.
pub(super) fn parse_container_id(text: &str) -> Result<String, String> {
    let fits = (2..=128).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if fits {
        Ok(text.into())
    } else {
        Err("expected 2 to 128 letters, digits, '.', '-' and '_', a letter or digit first".into())
    }
}

pub(super) fn parse_variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.into()),
        _ => Err("expected NAME=VALUE".into()),
    }
}

pub(super) fn parse_guest_directory(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') {
        Ok(text.into())
    } else {
        Err("expected an absolute path".into())
    }
}

/// A directory of this host's for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryArgument {
    /// Where it is on this host.
    pub host: PathBuf,
    /// Where the container sees it.
    pub guest: PathBuf,
    /// Whether it can only be read.
    pub readonly: bool,
}

/// The guest's path is absolute, so that the last `:/` is where it begins.
pub(super) fn parse_directory(text: &str) -> Result<DirectoryArgument, String> {
    let (rest, readonly) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let split = rest.rfind(":/").filter(|at| *at > 0);
    let (host, guest) = split
        .map(|at| (&rest[..at], &rest[at + 1..]))
        .ok_or("expected HOST:GUEST or HOST:GUEST:ro, GUEST an absolute path")?;
    let mut parts = Path::new(guest).components().skip(1).peekable();
    if parts.peek().is_none() || !parts.all(|part| matches!(part, Component::Normal(_))) {
        return Err("GUEST must be below / and have no .. in it".into());
    }
    Ok(DirectoryArgument {
        host: host.into(),
        guest: guest.into(),
        readonly,
    })
}
