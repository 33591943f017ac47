//! What went through the links of a process's network namespace.

use std::io;

/// One link's counters, since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Its name.
    pub name: String,
    /// What it received.
    pub received: Counters,
    /// What it sent.
    pub sent: Counters,
}

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// The links that process `pid` sees, without the loopback one. It may block.
///
/// # Errors
/// Those of read(2): the process may have ended.
pub fn link_counters(pid: i32) -> io::Result<Vec<LinkCounters>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let links = text.lines().filter_map(parse);
    Ok(links.filter(|link| link.name != "lo").collect())
}

/// `eth0: BYTES PACKETS ERRORS DROPPED FIFO FRAME COMPRESSED MULTICAST` and the
/// first four again for what was sent, proc_pid_net(5). Titles have no numbers.
fn parse(line: &str) -> Option<LinkCounters> {
    const SENT: usize = 8;
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    let direction = |from: usize| {
        let numbers = numbers.get(from..from + 4)?;
        Some(Counters {
            bytes: numbers[0],
            packets: numbers[1],
            errors: numbers[2],
            dropped: numbers[3],
        })
    };
    Some(LinkCounters {
        name: name.trim().into(),
        received: direction(0)?,
        sent: direction(SENT)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_directions_are_told_apart() {
        let line = "  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0";
        let link = parse(line).unwrap();
        assert_eq!(link.name, "eth0");
        assert_eq!((link.received.bytes, link.received.dropped), (1, 4));
        assert_eq!((link.sent.bytes, link.sent.dropped), (5, 8));
        assert_eq!(parse("Inter-|   Receive  |  Transmit"), None);
        assert_eq!(parse(" face |bytes packets"), None);
    }

    #[test]
    fn the_loopback_link_is_not_told() {
        let own = i32::try_from(std::process::id()).unwrap();
        let links = link_counters(own).unwrap();
        assert!(links.iter().all(|link| link.name != "lo"));
    }
}
