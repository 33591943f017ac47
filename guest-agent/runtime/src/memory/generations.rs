//! The kernel's own record of when pages were last used: the generations of
//! multi-gen LRU (Documentation/admin-guide/mm/multigen_lru.rst), read and
//! commanded through `lru_gen` of debugfs.

use super::{MemoryError, failed};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Whether the kernel keeps generations, and how well, as bits.
const ENABLED: &str = "/sys/kernel/mm/lru_gen/enabled";
const FILE: &str = "lru_gen";
/// The most of it that is read, bytes: some thousand cgroups.
const SIZE_MAX: u64 = 4 << 20;
/// So many generations are always kept; a command for a younger one is refused.
const KEPT: u64 = 2;
/// No page is more than so many generations old.
const OLDEST: u64 = 3;

/// What a cgroup holds on one node of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    group: u64,
    number: u64,
    generations: Vec<Generation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Generation {
    number: u64,
    anonymous_pages: u64,
    file_pages: u64,
}

impl Node {
    /// Has what was used since the last time begin a generation of its own.
    pub(super) fn aging(&self, swap: bool) -> Option<String> {
        let youngest = self.youngest()?;
        // Without force (the last word) the kernel makes none when there are as
        // many as it keeps.
        let can_swap = u8::from(swap);
        let Self { group, number, .. } = self;
        Some(format!("+ {group} {number} {youngest} {can_swap} 1"))
    }

    /// Takes at most `pages` that were not used for so many generations.
    pub(super) fn eviction(&self, agings: u64, swappiness: u8, pages: u64) -> Option<String> {
        let last = self.last_idle(agings)?;
        let Self { group, number, .. } = self;
        Some(format!("- {group} {number} {last} {swappiness} {pages}"))
    }

    /// How many pages there are that [`Node::eviction`] may take.
    pub(super) fn idle_pages(&self, agings: u64, swap: bool) -> u64 {
        let Some(last) = self.last_idle(agings) else {
            return 0;
        };
        let idle = self.generations.iter().filter(|one| one.number <= last);
        idle.map(|one| one.file_pages + if swap { one.anonymous_pages } else { 0 })
            .sum()
    }

    fn youngest(&self) -> Option<u64> {
        self.generations.iter().map(|one| one.number).max()
    }

    /// The youngest of the generations that are old enough.
    fn last_idle(&self, agings: u64) -> Option<u64> {
        self.youngest()?.checked_sub(agings.clamp(KEPT, OLDEST))
    }
}

/// `lru_gen` of a debugfs that is mounted nowhere: no process but the agent
/// can reach it.
#[derive(Debug)]
pub(super) struct Generations {
    file: File,
}

impl Generations {
    /// Has the kernel keep generations, if it can. None where it cannot, or
    /// lets nobody see them.
    pub(super) fn open() -> Option<Self> {
        let debugfs = mount_debugfs().ok()?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(debugfs, FILE, flags, Mode::empty()).ok()?;
        let bits = fs::read_to_string(ENABLED).ok()?;
        if is_none(&bits) {
            fs::write(ENABLED, "y").ok()?;
        }
        Some(Self { file: file.into() })
    }

    /// The nodes of the cgroup at `path`, as the hierarchy's root sees it, and
    /// of those below it.
    pub(super) fn of(&mut self, path: &Path) -> Result<Vec<Node>, MemoryError> {
        // Containers name cgroups below their own, in any bytes.
        let mut text = Vec::new();
        let read = self.file.rewind().and_then(|()| {
            let mut file = (&self.file).take(SIZE_MAX);
            file.read_to_end(&mut text)
        });
        read.map_err(failed("read", FILE))?;
        Ok(parse(&String::from_utf8_lossy(&text), path))
    }

    /// Gives a command. A cgroup that is gone needs none.
    pub(super) fn command(&mut self, command: &str) -> Result<(), MemoryError> {
        match self.file.write_all(command.as_bytes()) {
            // What was read of it is no longer so: another time.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            outcome => outcome.map_err(failed("write", FILE)),
        }
    }
}

/// Of bits in hexadecimal.
fn is_none(bits: &str) -> bool {
    let digits = bits.trim().trim_start_matches("0x");
    digits.chars().all(|digit| digit == '0')
}

fn mount_debugfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("debugfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    fsmount(context.as_fd(), flags, MountAttrFlags::empty())
}

/// Lines `memcg ID PATH`, each with lines `node ID` below it, each with lines of
/// four numbers below it: generation, age, anonymous pages, pages of files.
fn parse(text: &str, below: &Path) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut group = None;
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["memcg", id, path @ ..] => {
                let is_below = Path::new(&path.join(" ")).starts_with(below);
                group = id.parse().ok().filter(|_| is_below);
            }
            ["node", number] => {
                if let (Some(group), Ok(number)) = (group, number.parse()) {
                    let generations = Vec::new();
                    nodes.push(Node {
                        group,
                        number,
                        generations,
                    });
                }
            }
            words => {
                if let (Some(_), Some(node), Some(found)) =
                    (group, nodes.last_mut(), generation(words))
                {
                    node.generations.push(found);
                }
            }
        }
    }
    nodes
}

fn generation(words: &[&str]) -> Option<Generation> {
    let [number, _age, anonymous, file] = words else {
        return None;
    };
    // A count that is being changed may be below zero, by a little.
    let pages = |word: &str| word.trim_start_matches('-').parse().ok();
    Some(Generation {
        number: number.parse().ok()?,
        anonymous_pages: pages(anonymous)?,
        file_pages: pages(file)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "memcg     1 /\n node     0\n          0     100000          5          6\n\
        memcg    12 /tardigrade/c-web\n node     0\n\
        \x20         7     30000        100       2000 \n          8     20000         10         20 \n\
        \x20         9     10000          1          2 \n         10       100          0          0 \n\
        memcg    13 /tardigrade/c-web/own\n node     0\n          3     30000          0          0\n node     1\n\
        \x20         4     30000          1          1\n\
        memcg    14 /tardigrade/c-web2\n node     0\n          1     30000          9          9\n";

    #[test]
    fn a_cgroup_and_those_below_it_are_read_and_no_neighbour() {
        let nodes = parse(TEXT, Path::new("/tardigrade/c-web"));
        let found: Vec<_> = nodes.iter().map(|node| (node.group, node.number)).collect();
        assert_eq!(found, [(12, 0), (13, 0), (13, 1)]);
        let web = &nodes[0];
        assert_eq!(web.aging(false).unwrap(), "+ 12 0 10 0 1");
        assert_eq!(web.eviction(3, 50, 4096).unwrap(), "- 12 0 7 50 4096");
        assert_eq!(
            (web.idle_pages(3, false), web.idle_pages(3, true)),
            (2000, 2100)
        );
        // The kernel keeps two, whatever is asked for, and knows of no more than four.
        assert_eq!(web.eviction(0, 0, 1).unwrap(), "- 12 0 8 0 1");
        assert_eq!(web.eviction(99, 0, 1).unwrap(), "- 12 0 7 0 1");
        assert_eq!(web.idle_pages(0, true), 2130);
    }

    #[test]
    fn a_kernel_that_keeps_some_generations_is_left_as_it_is() {
        assert!(is_none("0x0000\n") && is_none("0"));
        assert!(!is_none("0x0007\n") && !is_none("0x0010"));
    }

    #[test]
    fn a_node_whose_pages_are_all_young_has_none_to_give() {
        let young = Node {
            group: 1,
            number: 0,
            generations: vec![Generation {
                number: 1,
                anonymous_pages: 5,
                file_pages: 5,
            }],
        };
        assert_eq!(young.eviction(3, 0, 1), None);
        assert_eq!(young.idle_pages(3, true), 0);
        let none = Node {
            generations: Vec::new(),
            ..young
        };
        assert_eq!(none.aging(true), None);
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "(memcg|node|[0-9]{1,20}|-1|/a| |\n){0,40}") {
            for node in parse(&text, Path::new("/")) {
                let _ = node.aging(true);
                let _ = node.eviction(3, 200, 1);
            }
        }
    }
}
