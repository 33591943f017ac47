//! Changes an archive as an image's layers do: entries take the place of others,
//! and are taken away again.

use super::{Archive, ArchiveError, Content, Entry, EntryPath};
use std::ops::Bound;

/// How many links a path may lead through: the kernel's MAXSYMLINKS.
const MAX_LINKS: usize = 40;
/// And how many components, those of the links included: a layer of links that
/// lead far would else take forever.
const MAX_STEPS: usize = 512;

impl Archive {
    /// The entry of that path.
    #[must_use]
    pub fn get(&self, path: &EntryPath) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Where an entry of that path would lie: links above its last component are
    /// followed as the guest will follow them, inside the archive.
    ///
    /// # Errors
    /// [`ArchiveError::Links`] for a circle of links, and for a way that is too
    /// long.
    pub fn real(&self, path: &EntryPath) -> Result<EntryPath, ArchiveError> {
        let error = || ArchiveError::Links(path.clone());
        let mut pending: Vec<String> = path.as_str().split('/').rev().map(str::to_owned).collect();
        let mut real = String::new();
        let (mut links, mut steps) = (0, 0);
        while let Some(component) = pending.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(error());
            }
            match component.as_str() {
                "" | "." => continue,
                // Above the root is the root.
                ".." => {
                    real.truncate(real.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let above = real.len();
            if above > 0 {
                real.push('/');
            }
            real.push_str(&component);
            if pending.is_empty() {
                break;
            }
            let here: EntryPath = real.parse().map_err(|_| error())?;
            if let Some(Content::Symlink(target)) = self.get(&here).map(|entry| &entry.content) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(error());
                }
                real.truncate(if target.starts_with('/') { 0 } else { above });
                pending.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        real.parse().map_err(|_| error())
    }

    /// Adds an entry in the place of what is there. Only a directory that takes
    /// the place of a directory leaves what lies in it.
    ///
    /// # Errors
    /// See [`ArchiveError`]; what was there may be gone then.
    pub fn put(&mut self, path: EntryPath, entry: Entry) -> Result<(), ArchiveError> {
        match self.entries.get_mut(&path) {
            Some(present)
                if present.content == Content::Directory && entry.content == Content::Directory =>
            {
                present.permissions = entry.permissions;
                Ok(())
            }
            Some(_) => {
                self.remove(&path);
                self.add(path, entry)
            }
            None => self.add(path, entry),
        }
    }

    /// Takes an entry away, with all that lies below it.
    pub fn remove(&mut self, path: &EntryPath) {
        self.retain_below(Some(path), |_| false);
        self.entries.remove(path);
    }

    /// Takes away what lies below a directory, or below the root, unless it is
    /// to be kept. To keep an entry is to keep the directories above it: that is
    /// the caller's part.
    pub fn retain_below(
        &mut self,
        directory: Option<&EntryPath>,
        mut keep: impl FnMut(&EntryPath) -> bool,
    ) {
        let start = directory.map(|path| format!("{path}/")).unwrap_or_default();
        // Sorted, what lies below a directory lies together.
        let below = self
            .entries
            .range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded))
            .map(|(path, _)| path)
            .take_while(|path| path.as_str().starts_with(&start));
        let gone: Vec<_> = below.filter(|path| !keep(path)).cloned().collect();
        for path in gone {
            self.entries.remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        text.parse().unwrap()
    }

    fn archive(entries: &[(&str, Content)]) -> Archive {
        let mut archive = Archive::default();
        for (name, content) in entries {
            let entry = Entry {
                permissions: 0o755,
                content: content.clone(),
            };
            archive.put(path(name), entry).unwrap();
        }
        archive
    }

    fn link(target: &str) -> Content {
        Content::Symlink(target.into())
    }

    #[test]
    fn links_are_followed_inside_the_archive_and_the_last_one_is_not() {
        let archive = archive(&[
            ("usr/sbin", Content::Directory),
            ("sbin", link("usr/sbin")),
            ("lib", link("/usr/lib")),
            ("up", link("../../../../etc")),
            ("usr/back", link("../sbin")),
            ("loop", link("loop2")),
            ("loop2", link("loop/x")),
            ("far", link(&"a/../".repeat(300))),
            ("long", link(&"x/".repeat(2047))),
        ]);
        for (from, to) in [
            ("sbin/init", "usr/sbin/init"),
            ("sbin", "sbin"),
            ("lib/modules/x", "usr/lib/modules/x"),
            ("up/shadow", "etc/shadow"),
            ("usr/back/init", "usr/sbin/init"),
            ("nowhere/x", "nowhere/x"),
        ] {
            assert_eq!(archive.real(&path(from)), Ok(path(to)), "{from}");
        }
        for circle in ["loop/x", "long/x/y", "far/x"] {
            let error = archive.real(&path(circle)).unwrap_err();
            assert!(matches!(error, ArchiveError::Links(_)), "{error}");
        }
    }

    #[test]
    fn what_takes_a_directorys_place_takes_what_lies_in_it_away() {
        let file = Content::File(Vec::new());
        let with = |content| {
            archive(&[
                ("a/b/c", file.clone()),
                ("a-b", file.clone()),
                ("a", content),
            ])
        };
        let names = |archive: &Archive| {
            let names = archive.entries().map(|(path, _)| path.to_string());
            names.collect::<Vec<_>>()
        };
        assert_eq!(
            names(&with(Content::Directory)),
            ["a", "a-b", "a/b", "a/b/c"]
        );
        assert_eq!(names(&with(link("/"))), ["a", "a-b"]);
        let mut archive = with(Content::Directory);
        archive.remove(&path("a/b"));
        assert_eq!(names(&archive), ["a", "a-b"]);
        archive.retain_below(None, |path| path.as_str() == "a-b");
        assert_eq!(names(&archive), ["a-b"]);
    }
}
