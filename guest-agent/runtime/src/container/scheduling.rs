//! How a process gets its time and its place before disks (OCI `config.md`,
//! "Linux Process": `scheduler`, `ioPriority`).

use guest_kernel::scheduling::{Attributes, set_io_priority, set_scheduler};
use serde::{Deserialize, Serialize};
use std::io;
use std::str::FromStr;

/// The last level of a class, ioprio_set(2).
const LEVEL_MAX: i64 = 7;

/// How a process is scheduled, sched_setattr(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// By which rules.
    pub policy: SchedulerPolicy,
    /// Its nice value, where the policy has one.
    pub nice: i32,
    /// Its priority, where the policy has one.
    pub priority: u32,
    /// More.
    pub flags: Vec<SchedulerFlag>,
    /// Of the deadline policy: nanoseconds of time in each period.
    pub runtime: u64,
    /// Of the deadline policy: by when they are had, in nanoseconds.
    pub deadline: u64,
    /// Of the deadline policy, in nanoseconds.
    pub period: u64,
}

/// `SCHED_*`, sched(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SchedulerPolicy(u32);

/// `SCHED_FLAG_*`, sched_setattr(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SchedulerFlag(u64);

/// A class before disks, ioprio_set(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IoPriorityClass(u8);

/// The place of a process before disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoPriority {
    class: IoPriorityClass,
    level: u8,
}

/// A word or a number that means nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("scheduling by {0:?}")]
pub struct UnknownScheduling(String);

/// linux/sched.h; there is no `SCHED_ISO` in any kernel.
const POLICIES: [(&str, u32); 6] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
/// Those that need no more than is said.
const FLAGS: [(&str, u64); 3] = [
    ("SCHED_FLAG_RESET_ON_FORK", 1),
    ("SCHED_FLAG_RECLAIM", 2),
    ("SCHED_FLAG_DL_OVERRUN", 4),
];
const CLASSES: [(&str, u8); 3] = [
    ("IOPRIO_CLASS_RT", 1),
    ("IOPRIO_CLASS_BE", 2),
    ("IOPRIO_CLASS_IDLE", 3),
];

fn number<T: Copy>(table: &[(&str, T)], word: &str) -> Result<T, UnknownScheduling> {
    let mut table = table.iter();
    let found = table.find(|(name, _)| *name == word);
    found
        .map(|(_, number)| *number)
        .ok_or_else(|| UnknownScheduling(word.into()))
}

fn name<T: PartialEq>(table: &[(&str, T)], number: &T) -> String {
    let mut table = table.iter();
    let found = table.find(|(_, other)| other == number);
    found.map_or_else(String::new, |(name, _)| (*name).into())
}

macro_rules! named {
    ($type:ty, $table:ident) => {
        impl FromStr for $type {
            type Err = UnknownScheduling;

            /// The OCI form.
            fn from_str(word: &str) -> Result<Self, UnknownScheduling> {
                number(&$table, word).map(Self)
            }
        }

        impl TryFrom<String> for $type {
            type Error = UnknownScheduling;

            fn try_from(word: String) -> Result<Self, UnknownScheduling> {
                word.parse()
            }
        }

        impl From<$type> for String {
            fn from(one: $type) -> Self {
                name(&$table, &one.0)
            }
        }
    };
}

named!(SchedulerPolicy, POLICIES);
named!(SchedulerFlag, FLAGS);
named!(IoPriorityClass, CLASSES);

impl Scheduler {
    pub(super) fn apply(&self) -> io::Result<()> {
        let mut attributes = Attributes::default();
        attributes.policy = self.policy.0;
        attributes.flags = self.flags.iter().fold(0, |all, flag| all | flag.0);
        attributes.nice = self.nice;
        attributes.priority = self.priority;
        attributes.runtime = self.runtime;
        attributes.deadline = self.deadline;
        attributes.period = self.period;
        set_scheduler(attributes)
    }
}

impl IoPriority {
    /// Level 0 to 7 of a class.
    ///
    /// # Errors
    /// There is no such level.
    pub fn new(class: IoPriorityClass, level: i64) -> Result<Self, UnknownScheduling> {
        let within = u8::try_from(level).ok().filter(|_| level <= LEVEL_MAX);
        let level = within.ok_or_else(|| UnknownScheduling(level.to_string()))?;
        Ok(Self { class, level })
    }

    pub(super) fn apply(self) -> io::Result<()> {
        set_io_priority(self.class.0, self.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lead_back_to_themselves_and_unknown_ones_nowhere() {
        for (word, _) in POLICIES {
            let policy: SchedulerPolicy = word.parse().unwrap();
            assert_eq!(String::from(policy), word);
        }
        for word in ["SCHED_ISO", "OTHER", ""] {
            assert!(word.parse::<SchedulerPolicy>().is_err(), "{word}");
        }
        assert!("SCHED_FLAG_KEEP_ALL".parse::<SchedulerFlag>().is_err());
        let class: IoPriorityClass = "IOPRIO_CLASS_BE".parse().unwrap();
        for (level, within) in [(-1, false), (0, true), (7, true), (8, false), (256, false)] {
            assert_eq!(IoPriority::new(class, level).is_ok(), within, "{level}");
        }
    }
}
