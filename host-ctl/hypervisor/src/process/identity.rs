//! Which process is meant, beyond its reusable number.

use std::fs::read_to_string;

use rustix::process::Pid;

use crate::error::Error;

/// Index of the start time, field 22 of proc_pid_stat(5), among the fields after
/// the command name (which is field 2, in brackets, and may contain anything).
const START_TIME: usize = 19;

/// A process number with what makes it unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Process number.
    pub(crate) pid: i32,
    /// Start, in clock ticks since boot.
    pub(crate) start_time: u64,
    /// Which boot of the host.
    pub(crate) boot_id: String,
}

impl Identity {
    /// The identity of whoever has this number now; a zombie counts.
    pub(crate) fn of(pid: Pid) -> Result<Self, Error> {
        let pid = pid.as_raw_nonzero().get();
        let path = format!("/proc/{pid}/stat");
        let stat = read_to_string(&path).map_err(Error::path("read", &path))?;
        let start_time = parse_stat(&stat).ok_or(Error::Identity {
            pid,
            difference: "its /proc/PID/stat can't be read",
        })?;
        let path = "/proc/sys/kernel/random/boot_id";
        let boot_id = read_to_string(path).map_err(Error::path("read", path))?;
        Ok(Self {
            pid,
            start_time,
            boot_id: boot_id.trim().to_owned(),
        })
    }

    /// In what this differs from a process found.
    pub(crate) fn difference(&self, found: &Self) -> Option<&'static str> {
        if self.boot_id != found.boot_id {
            Some("the host has booted since")
        } else if self.pid != found.pid || self.start_time != found.start_time {
            Some("another process has its number")
        } else {
            None
        }
    }
}

/// The start time in a /proc/PID/stat.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(START_TIME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a ) R (b) S {}", fields.join(" "));
        assert_eq!(parse_stat(&stat), Some(22));
    }

    #[test]
    fn a_process_differs_by_start_time_and_by_boot() {
        let own = Identity::of(rustix::process::getpid()).unwrap();
        assert_eq!(own.difference(&own), None);
        let later = Identity {
            start_time: own.start_time + 1,
            ..own.clone()
        };
        assert_eq!(
            own.difference(&later),
            Some("another process has its number")
        );
        let before = Identity {
            boot_id: "0".into(),
            ..own.clone()
        };
        assert_eq!(own.difference(&before), Some("the host has booted since"));
    }
}
