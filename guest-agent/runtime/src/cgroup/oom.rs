//! Processes of a container that the kernel killed for want of memory.

use super::{CgroupError, CgroupPath, failed};
use guest_kernel::readiness;
use rustix::io::pread;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::io::Interest;

const EVENTS: &str = "memory.events";
/// The file holds some short lines.
const SIZE: usize = 1024;

impl CgroupPath {
    /// How many were killed so far, in the outer cgroup and all below it,
    /// whichever limit it was for.
    ///
    /// # Errors
    /// Those of the file, which is not there without the memory controller.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let path = self.outer().join(EVENTS);
        let kills = File::open(&path).and_then(kills);
        kills.map_err(failed("read", &path))
    }

    /// Waits until more than `known` were killed; how many then. May be dropped
    /// at any point.
    ///
    /// # Errors
    /// As [`CgroupPath::oom_kills`].
    pub async fn oom_kills_beyond(&self, known: u64) -> Result<u64, CgroupError> {
        let path = self.outer().join(EVENTS);
        let watch = async {
            let events = Arc::new(File::open(&path)?.into());
            // The kernel tells a change by POLLPRI to those who have read the
            // file since the last one: nothing is missed in between.
            let events = readiness::watch(events, Interest::PRIORITY)?;
            loop {
                let kills = kills(events.get_ref())?;
                if kills > known {
                    return Ok::<_, io::Error>(kills);
                }
                events.ready(Interest::PRIORITY).await?.clear_ready();
            }
        };
        watch.await.map_err(failed("watch", &path))
    }
}

fn kills(file: impl AsFd) -> io::Result<u64> {
    let mut buffer = [0; SIZE];
    let length = pread(file, &mut buffer, 0)?;
    Ok(parse(&String::from_utf8_lossy(
        buffer.get(..length).unwrap_or_default(),
    )))
}

fn parse(text: &str) -> u64 {
    let mut lines = text.lines();
    let count = lines.find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killed_processes_are_counted_and_not_the_groups_or_the_failures() {
        let text = "low 0\nhigh 0\nmax 31\noom 5\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(parse(text), 3);
        assert_eq!(parse("low 0\n"), 0);
    }

    #[test]
    fn a_cgroup_without_the_controller_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = CgroupPath::for_tests(directory.path());
        assert!(cgroup.oom_kills().is_err());
    }
}
