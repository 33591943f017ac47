//! Which ids of a user namespace stand for which outside it (OCI
//! `config-linux.md`, "User namespace mappings"; user_namespaces(7)).

use super::error::Refused;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// The most lines of a mapping, user_namespaces(7).
const LINES_MAX: usize = 340;

/// A range of ids and what stands for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdMapping {
    /// Its first id in the namespace.
    pub inside: u32,
    /// What stands for that outside.
    pub outside: u32,
    /// How many ids it is long.
    pub size: u32,
}

/// The mappings of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    /// Of users.
    pub users: Vec<IdMapping>,
    /// Of groups.
    pub groups: Vec<IdMapping>,
}

impl IdMappings {
    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// Whether the kernel takes them.
    pub(super) fn validate(&self) -> Result<(), Refused> {
        validate("uid", &self.users)?;
        validate("gid", &self.groups)
    }

    /// Both, in the order of the ids: as two that mean the same are equal.
    pub(super) fn sorted(mut self) -> Self {
        self.users.sort_unstable();
        self.groups.sort_unstable();
        self
    }
}

fn validate(what: &str, mappings: &[IdMapping]) -> Result<(), Refused> {
    let refuse = |reason: &str| Err(Refused(format!("{what} mappings{reason}")));
    if mappings.is_empty() {
        return refuse(" without a line");
    }
    // All of it is written at once, and in less than a page.
    if mappings.len() > LINES_MAX || lines(mappings).len() >= rustix::param::page_size() {
        return refuse(" of more lines than the kernel takes");
    }
    for first in [|one: &IdMapping| one.inside, |one: &IdMapping| one.outside] {
        let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            let start = u64::from(first(mapping));
            ranges.push((start, start + u64::from(mapping.size)));
        }
        ranges.sort_unstable();
        // The last number is no id, user_namespaces(7).
        if ranges
            .iter()
            .any(|(start, end)| start == end || *end > u64::from(u32::MAX))
        {
            return refuse(" with a range that is empty or has no end");
        }
        let mut pairs = ranges.iter().zip(ranges.iter().skip(1));
        if pairs.any(|(one, next)| one.1 > next.0) {
            return refuse(" that overlap");
        }
    }
    Ok(())
}

/// As the kernel takes them in /proc/PID/uid_map.
pub(super) fn lines(mappings: &[IdMapping]) -> String {
    let mut lines = String::new();
    for one in mappings {
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{} {} {}", one.inside, one.outside, one.size);
    }
    lines
}

/// What /proc/PID/uid_map says; none for what it cannot say.
pub(super) fn parse(text: &str) -> Option<Vec<IdMapping>> {
    text.lines()
        .map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some(IdMapping {
                inside: numbers.next()?.ok()?,
                outside: numbers.next()?.ok()?,
                size: numbers.next()?.ok()?,
            })
        })
        .collect()
}

/// What stands for the id of a namespace outside it.
pub(super) fn outside(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|one| {
        let distance = id.checked_sub(one.inside)?;
        (distance < one.size)
            .then(|| one.outside.checked_add(distance))
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mapping(inside: u32, outside: u32, size: u32) -> IdMapping {
        IdMapping {
            inside,
            outside,
            size,
        }
    }

    fn refused(users: Vec<IdMapping>) -> bool {
        let mappings = IdMappings {
            users,
            groups: vec![mapping(0, 0, 1)],
        };
        mappings.validate().is_err()
    }

    #[test]
    fn what_the_kernel_would_not_take_is_refused_by_name() {
        assert!(!refused(vec![
            mapping(0, 100_000, 65_536),
            mapping(70_000, 5, 1)
        ]));
        assert!(!refused(vec![mapping(0, 0, u32::MAX)]));
        for wrong in [
            vec![],
            vec![mapping(0, 100_000, 0)],
            vec![mapping(0, u32::MAX, 1)],
            vec![mapping(5, 100_000, u32::MAX)],
            vec![mapping(0, 100_000, 10), mapping(9, 200_000, 1)],
            vec![mapping(0, 100_000, 10), mapping(20, 100_009, 1)],
            (0..341).map(|id| mapping(id, id, 1)).collect(),
            // Fewer lines, and more than a page of them.
            (0..300)
                .map(|id| mapping(4_000_000_000 + id, 4_000_000_000 + id, 1))
                .collect(),
        ] {
            assert!(refused(wrong.clone()), "{wrong:?}");
        }
    }

    #[test]
    fn an_id_is_found_in_its_range_alone() {
        let mappings = [mapping(0, 100, 10), mapping(20, 7, 1)];
        for (id, expected) in [(0, Some(100)), (9, Some(109)), (10, None), (20, Some(7))] {
            assert_eq!(outside(&mappings, id), expected, "{id}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(
            numbers in prop::collection::vec(any::<(u32, u32, u32)>(), 0..20),
        ) {
            let all: Vec<IdMapping> = numbers
                .into_iter()
                .map(|(inside, outside, size)| mapping(inside, outside, size))
                .collect();
            prop_assert_eq!(parse(&lines(&all)), Some(all));
        }

        #[test]
        fn nothing_that_a_file_says_makes_it_panic(text in "[0-9 a\n]{0,40}", id: u32) {
            let _ = outside(&parse(&text).unwrap_or_default(), id);
        }
    }
}
