//! `cgroup.events`: waiting until the kernel says that a cgroup is frozen or
//! empty.

use super::{CgroupError, failed};
use guest_kernel::readiness;
use rustix::io::pread;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;

const EVENTS: &str = "cgroup.events";
/// The file holds two short lines.
const SIZE: usize = 256;

/// Waits until `cgroup.events` of `directory` holds the line `wanted`.
///
/// The kernel tells a change by POLLPRI to those who have read the file since
/// the last one, so that nothing is missed between a read and the wait.
pub(super) async fn wait_for(
    directory: &Path,
    wanted: &'static str,
    deadline: Duration,
) -> Result<(), CgroupError> {
    let path = directory.join(EVENTS);
    let watch = async {
        let file = File::open(&path)?;
        let events = readiness::watch(Arc::new(file.into()), Interest::PRIORITY)?;
        loop {
            if holds(events.get_ref(), wanted)? {
                return Ok::<(), io::Error>(());
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    };
    match tokio::time::timeout(deadline, watch).await {
        Ok(outcome) => outcome.map_err(failed("watch", &path)),
        Err(_) => Err(CgroupError::Deadline {
            path,
            wanted,
            millis: deadline.as_millis(),
        }),
    }
}

fn holds(file: impl AsFd, wanted: &str) -> io::Result<bool> {
    let mut buffer = [0; SIZE];
    let length = pread(file, &mut buffer, 0)?;
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    Ok(text.lines().any(|line| line == wanted))
}
