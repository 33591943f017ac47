//! Memory taken back from containers that do not need it: those that have
//! waited for none for some periods. What they used meanwhile they keep.
//!
//! Where the kernel keeps generations of pages, what was not used for as many
//! periods goes. Elsewhere the kernel's own inactive list is all that is known,
//! and `memory.reclaim` of cgroup v2 takes from it.

use super::generations::Generations;
use super::{MemoryError, Reading, ReclaimSettings, failed};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How much is taken in one piece, bytes: what a freeze may have to wait for.
const PIECE: u64 = 8 << 20;
const RECLAIM: &str = "memory.reclaim";

/// Takes memory back, and knows how calm each container was.
#[derive(Debug)]
pub struct Reclaim {
    /// Where cgroup v2 is mounted.
    hierarchy: PathBuf,
    generations: Option<Generations>,
    calm: BTreeMap<PathBuf, Calm>,
}

/// A container since it last waited for memory.
#[derive(Debug, Clone, Copy)]
struct Calm {
    last: Reading,
    /// For how many periods, up to the last reading.
    periods: u64,
}

impl Calm {
    /// What becomes of it with another reading.
    fn next(before: Option<Self>, now: Reading, limit: u8) -> Self {
        let periods = match before {
            Some(before) if !now.exceeds(&before.last, limit) => before.periods.saturating_add(1),
            // What has happened before the first reading nobody knows.
            _ => 0,
        };
        Self { last: now, periods }
    }
}

/// What a round came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// How many containers were looked at.
    pub seen: usize,
    /// From how many of them memory was taken.
    pub taken_from: usize,
}

impl Reclaim {
    /// Finds out how it can be done for the cgroups below `workload`, in the
    /// hierarchy mounted at `hierarchy`. Has the kernel keep generations of
    /// pages, if it can.
    ///
    /// # Errors
    /// What the kernel has not, or what of it cannot be read.
    pub fn open(hierarchy: &Path, workload: &Path) -> Result<Self, MemoryError> {
        Reading::of(&workload.join("memory.pressure"))?;
        let generations = Generations::open();
        if generations.is_none() && !workload.join(RECLAIM).exists() {
            return Err(MemoryError::Missing(
                "lru_gen in debugfs and no memory.reclaim (Linux 5.19)",
            ));
        }
        Ok(Self {
            hierarchy: hierarchy.into(),
            generations,
            calm: BTreeMap::new(),
        })
    }

    /// By what pages are known that are not used.
    #[must_use]
    pub fn by(&self) -> &'static str {
        match self.generations {
            Some(_) => "lru_gen",
            None => RECLAIM,
        }
    }

    /// One round over these cgroups, one a container: to be called once a
    /// period. It ends early when `go_on` no longer says so.
    ///
    /// # Errors
    /// The first that the kernel refused; the other containers had their turn.
    pub fn round(
        &mut self,
        settings: &ReclaimSettings,
        containers: &[PathBuf],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Reclaimed, MemoryError> {
        self.calm.retain(|path, _| containers.contains(path));
        let mut reclaimed = Reclaimed::default();
        let mut outcome = Ok(());
        for container in containers {
            if !go_on() {
                break;
            }
            match self.visit(settings, container, go_on) {
                Ok(taken) => {
                    reclaimed.seen += 1;
                    reclaimed.taken_from += usize::from(taken);
                }
                // It has ended meanwhile.
                Err(_) if !container.exists() => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.map(|()| reclaimed)
    }

    /// Whether memory was taken.
    fn visit(
        &mut self,
        settings: &ReclaimSettings,
        container: &Path,
        go_on: &dyn Fn() -> bool,
    ) -> Result<bool, MemoryError> {
        let now = Reading::of(&container.join("memory.pressure"))?;
        let before = self.calm.get(container).copied();
        let calm = Calm::next(before, now, settings.period_pressure_limit);
        self.calm.insert(container.into(), calm);
        if calm.periods == 0 {
            return Ok(false);
        }
        let is_due = calm.periods >= settings.agings_min;
        let begun = Reading::of(&container.join("memory.pressure"))?;
        let may_take = || {
            let now = Reading::of(&container.join("memory.pressure"));
            let is_calm =
                now.is_ok_and(|now| !now.exceeds(&begun, settings.eviction_pressure_limit));
            is_calm && go_on()
        };
        match &mut self.generations {
            Some(generations) => {
                let path = container.strip_prefix(&self.hierarchy);
                let path = Path::new("/").join(path.unwrap_or(container));
                age(generations, &path, settings, go_on)?;
                if !is_due {
                    return Ok(false);
                }
                evict(generations, &path, settings, &may_take)
            }
            None if is_due => take_inactive(container, settings, &may_take),
            None => Ok(false),
        }
    }
}

fn age(
    generations: &mut Generations,
    container: &Path,
    settings: &ReclaimSettings,
    go_on: &dyn Fn() -> bool,
) -> Result<(), MemoryError> {
    let nodes = generations.of(container)?;
    let commands = nodes.iter().filter_map(|node| node.aging(settings.swap));
    // Each looks through page tables, and a container may have many cgroups.
    for command in commands {
        if !go_on() {
            break;
        }
        generations.command(&command)?;
    }
    Ok(())
}

fn evict(
    generations: &mut Generations,
    container: &Path,
    settings: &ReclaimSettings,
    may_take: &dyn Fn() -> bool,
) -> Result<bool, MemoryError> {
    let swappiness = if settings.swap {
        settings.swappiness_max
    } else {
        0
    };
    let pages = (PIECE / rustix::param::page_size() as u64).max(1);
    let mut taken = false;
    for node in generations.of(container)? {
        let idle = node.idle_pages(settings.agings_min, settings.swap);
        for _ in 0..idle.div_ceil(pages) {
            let command = node.eviction(settings.agings_min, swappiness, pages);
            let (Some(command), true) = (command, may_take()) else {
                return Ok(taken);
            };
            generations.command(&command)?;
            taken = true;
        }
    }
    Ok(taken)
}

/// As much as the kernel holds for inactive, in pieces.
fn take_inactive(
    container: &Path,
    settings: &ReclaimSettings,
    may_take: &dyn Fn() -> bool,
) -> Result<bool, MemoryError> {
    let file = container.join("memory.stat");
    let text = fs::read_to_string(&file).map_err(failed("read", &file))?;
    let mut left = inactive(&text, settings.swap);
    let mut taken = false;
    while left > 0 && may_take() {
        let piece = left.min(PIECE);
        if !take(container, piece, settings)? {
            break;
        }
        taken = true;
        left -= piece;
    }
    Ok(taken)
}

/// In bytes.
fn inactive(stat: &str, swap: bool) -> u64 {
    let count = |name: &str| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(key, _)| *key == name);
        found.and_then(|(_, value)| value.trim().parse::<u64>().ok())
    };
    let anonymous = count("inactive_anon").filter(|_| swap);
    count("inactive_file")
        .unwrap_or(0)
        .saturating_add(anonymous.unwrap_or(0))
}

/// Has the kernel take so many bytes. Whether it found them.
fn take(container: &Path, bytes: u64, settings: &ReclaimSettings) -> Result<bool, MemoryError> {
    let swappiness = if settings.swap {
        settings.swappiness_max
    } else {
        0
    };
    let wanted = format!("{bytes} swappiness={swappiness}");
    match write(container, &wanted) {
        // A kernel before 6.9 takes the number alone, and swaps as it likes:
        // that is not it, where nothing is to be swapped and something could be.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            if !settings.swap && has_swap() {
                return Err(MemoryError::Missing(
                    "swappiness for memory.reclaim (Linux 6.9), to leave swap alone",
                ));
            }
            found(container, write(container, &bytes.to_string()))
        }
        outcome => found(container, outcome),
    }
}

fn found(container: &Path, outcome: io::Result<()>) -> Result<bool, MemoryError> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(failed("write", container.join(RECLAIM))(error)),
        Ok(()) => Ok(true),
    }
}

fn write(container: &Path, text: &str) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(container.join(RECLAIM));
    file.and_then(|mut file| file.write_all(text.as_bytes()))
}

/// The first line of proc(5)'s swaps is its heading.
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    fn write_pressure(container: &Path, micros: u64) {
        let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={micros}\n");
        fs::write(container.join("memory.pressure"), text).unwrap();
    }

    /// A directory that plays a container's cgroup with so much inactive.
    fn container(inactive_file: u64) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        write_pressure(directory.path(), 0);
        let stat = format!("anon 1\ninactive_anon 7\ninactive_file {inactive_file}\n");
        fs::write(directory.path().join("memory.stat"), stat).unwrap();
        fs::write(directory.path().join(RECLAIM), "").unwrap();
        directory
    }

    fn asked(container: &Path) -> String {
        let file = container.join(RECLAIM);
        let asked = fs::read_to_string(&file).unwrap();
        fs::write(file, "").unwrap();
        asked
    }

    fn reclaim(container: &Path) -> Reclaim {
        Reclaim {
            hierarchy: container.into(),
            generations: None,
            calm: BTreeMap::new(),
        }
    }

    #[test]
    fn memory_is_taken_after_calm_periods_and_not_from_who_waits_for_it() {
        let directory = container(3 << 20);
        let path = directory.path();
        let mut reclaim = reclaim(path);
        let settings = ReclaimSettings {
            agings_min: 2,
            ..ReclaimSettings::default()
        };
        let mut round = || {
            let round = reclaim.round(&settings, &[path.into()], &|| true);
            (round.unwrap().taken_from, asked(path))
        };
        let nothing = (0, String::new());
        // Nothing is known, then one calm period, then two.
        assert_eq!(round(), nothing);
        assert_eq!(round(), nothing);
        assert_eq!(round(), (1, "3145728 swappiness=0".into()));
        assert_eq!(round(), (1, "3145728 swappiness=0".into()));
        write_pressure(path, 60_000_000);
        assert_eq!(round(), nothing);
        assert_eq!(round(), nothing);
        assert_eq!(round(), (1, "3145728 swappiness=0".into()));
    }

    #[test]
    fn it_is_taken_in_pieces_until_the_container_waits_or_the_freeze_comes() {
        let directory = container(10 * PIECE);
        let path = directory.path();
        let mut reclaim = reclaim(path);
        let settings = ReclaimSettings {
            agings_min: 1,
            ..ReclaimSettings::default()
        };
        let pieces = Cell::new(0);
        let mut round = |stop: u64, wait: u64| {
            pieces.set(0);
            let go_on = || {
                pieces.set(pieces.get() + 1);
                if pieces.get() == wait {
                    write_pressure(path, 60_000_000);
                }
                pieces.get() <= stop
            };
            let round = reclaim.round(&settings, &[path.into()], &go_on);
            (round.unwrap().taken_from, pieces.get())
        };
        // The first question is whether to look at the container at all.
        assert_eq!(round(99, 0), (0, 1));
        assert_eq!(round(99, 0), (1, 11));
        assert_eq!(round(4, 0), (1, 5));
        assert_eq!(round(0, 0), (0, 1));
        // It waits from the fifth question on: nobody is asked again.
        assert_eq!(round(99, 5), (1, 5));
    }

    #[test]
    fn a_container_that_is_gone_is_forgotten_and_keeps_no_other_from_its_turn() {
        let (gone, there) = (container(PIECE), container(PIECE));
        let paths = [gone.path().to_owned(), there.path().to_owned()];
        let mut reclaim = reclaim(there.path());
        let settings = ReclaimSettings {
            agings_min: 1,
            ..ReclaimSettings::default()
        };
        reclaim.round(&settings, &paths, &|| true).unwrap();
        drop(gone);
        let round = reclaim.round(&settings, &paths, &|| true).unwrap();
        assert_eq!((round.seen, round.taken_from), (1, 1));
        reclaim.round(&settings, &paths[1..], &|| true).unwrap();
        assert_eq!(reclaim.calm.len(), 1);
    }

    #[test]
    fn a_kernel_that_counts_no_pressure_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let refused = Reclaim::open(directory.path(), directory.path()).unwrap_err();
        assert!(refused.to_string().contains("CONFIG_PSI"), "{refused}");
        // One that counts, and says what nobody understands, is another matter.
        fs::write(directory.path().join("memory.pressure"), "x").unwrap();
        let refused = Reclaim::open(directory.path(), directory.path()).unwrap_err();
        assert!(refused.to_string().starts_with("parse /"), "{refused}");
    }

    #[test]
    fn what_is_inactive_is_of_files_and_with_swap_anonymous_as_well() {
        let stat = "inactive_anon 7\nactive_anon 1\ninactive_file 20\nactive_file 300\n";
        assert_eq!((inactive(stat, false), inactive(stat, true)), (20, 27));
        assert_eq!(inactive("inactive_file_x 9\n", true), 0);
    }

    proptest! {
        #[test]
        fn calm_periods_are_those_in_a_row_since_the_last_wait(waits in prop::collection::vec(any::<bool>(), 1..30)) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            let (mut total, mut calm) = (0, None);
            for wait in &waits {
                // More than any time that has passed here.
                total += if *wait { 3_600_000_000 } else { 0 };
                write_pressure(path, total);
                let now = Reading::of(&path.join("memory.pressure")).unwrap();
                calm = Some(Calm::next(calm, now, 1));
            }
            let known = &waits[1..];
            let expected = known.iter().rev().take_while(|wait| !**wait).count();
            prop_assert_eq!(calm.unwrap().periods, expected as u64);
        }
    }
}
