//! Figures of the agent and of the guest, in the text format of Prometheus, by
//! the names of the Kata agent.
//!
//! All of it is read from /proc (proc(5)); a file that is not there or is
//! malformed has no figures. It may block.

use rustix::fs::statvfs;
use std::collections::HashSet;
use std::fmt::{Display, Write};
use std::fs;

/// File systems whose room is told, if they can be written.
const FILE_SYSTEMS: [&str; 5] = ["ext4", "xfs", "btrfs", "vfat", "overlay"];
/// The columns of /proc/stat's lines for processors.
const CPU_TIMES: [&str; 10] = [
    "user",
    "nice",
    "system",
    "idle",
    "iowait",
    "irq",
    "softirq",
    "steal",
    "guest",
    "guest_nice",
];
/// Those of /proc/net/dev.
const LINK_FIGURES: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];
/// Those of /proc/diskstats behind the name,
/// Documentation/admin-guide/iostats.rst.
const DISK_FIGURES: [&str; 15] = [
    "reads",
    "merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
    "discards",
    "discards_merged",
    "sectors_discarded",
    "time_discarding",
];
/// Columns of /proc/PID/stat behind the program's name, proc_pid_stat(5),
/// counted from the state, which is 0.
const STAT_TIMES: [(&str, usize); 4] =
    [("utime", 11), ("stime", 12), ("cutime", 13), ("cstime", 14)];
const STAT_THREADS: usize = 17;
const STAT_VM: usize = 20;
const STAT_RSS: usize = 21;

/// The text, for one who asks for the `scrape`th time.
#[must_use]
pub fn text(scrape: u64) -> String {
    let mut text = Text(String::new());
    text.agent(scrape);
    text.guest();
    text.file_systems();
    text.0
}

/// The text so far.
struct Text(String);

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let separator = if index == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(
                self.0,
                "{separator}{label}=\"{}\"",
                text.replace('\n', "\\n")
            );
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.value(name, &[], value);
    }

    /// `key value` or `key: value` lines, as far as they are numbers.
    fn keyed(&mut self, name: &str, help: &str, path: &str) {
        self.head(name, "gauge", help);
        for line in read(path).lines() {
            let mut words = line.split_whitespace();
            let (Some(key), Some(value)) = (words.next(), words.next()) else {
                continue;
            };
            let key = key.trim_end_matches(':').to_lowercase();
            if let Ok(value) = value.parse::<u64>() {
                self.value(name, &[("item", &key)], value);
            }
        }
    }

    /// The named columns of a line.
    fn columns<'a>(
        &mut self,
        name: &str,
        label: (&str, &str),
        columns: &[&str],
        values: impl Iterator<Item = &'a str>,
    ) {
        for (item, value) in columns.iter().zip(values) {
            if let Ok(value) = value.parse::<u64>() {
                self.value(name, &[label, ("item", item)], value);
            }
        }
    }

    fn agent(&mut self, scrape: u64) {
        let name = "kata_agent_scrape_count";
        self.head(name, "counter", "How often the figures were asked for.");
        self.value(name, &[], scrape);
        let stat = read("/proc/self/stat");
        // The program's name, in parentheses, may hold anything.
        let columns: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, columns)| columns.split_whitespace().collect())
            .unwrap_or_default();
        let column = |index: usize| {
            let value = columns.get(index).and_then(|value| value.parse().ok());
            value.unwrap_or(0_u64)
        };
        let page = rustix::param::page_size() as u64;
        let threads = column(STAT_THREADS);
        self.gauge("kata_agent_threads", "Threads of the agent.", threads);
        let ticks: u64 = STAT_TIMES.iter().map(|(_, index)| column(*index)).sum();
        let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        let help = "CPU time of the agent and of what it waited for, in seconds.";
        self.gauge("kata_agent_total_time", help, seconds);
        let help = "Virtual memory of the agent, in bytes.";
        self.gauge("kata_agent_total_vm", help, column(STAT_VM));
        let help = "Resident memory of the agent, in bytes.";
        self.gauge("kata_agent_total_rss", help, column(STAT_RSS) * page);
        let name = "kata_agent_proc_stat";
        self.head(name, "gauge", "CPU times of the agent, in clock ticks.");
        for (item, index) in STAT_TIMES {
            self.value(name, &[("item", item)], column(index));
        }
        let help = "Numbers of the agent's /proc/PID/status; memory in KiB.";
        self.keyed("kata_agent_proc_status", help, "/proc/self/status");
        let help = "What the agent read and wrote, /proc/PID/io.";
        self.keyed("kata_agent_io_stat", help, "/proc/self/io");
    }

    fn guest(&mut self) {
        let load = read("/proc/loadavg");
        let mut load = load.split_whitespace();
        let name = "kata_guest_load";
        self.head(name, "gauge", "Load averages of the guest.");
        for (item, value) in ["load1", "load5", "load15"].iter().zip(load.by_ref()) {
            self.value(name, &[("item", item)], value);
        }
        let name = "kata_guest_tasks";
        self.head(name, "gauge", "Threads that run, and all there are.");
        if let Some((current, all)) = load.next().and_then(|tasks| tasks.split_once('/')) {
            self.value(name, &[("item", "cur")], current);
            self.value(name, &[("item", "max")], all);
        }
        let name = "kata_guest_cpu_time";
        self.head(name, "gauge", "CPU times of the guest, in clock ticks.");
        for line in read("/proc/stat").lines() {
            if let Some((cpu, times)) = line
                .strip_prefix("cpu")
                .and_then(|line| line.split_once(' '))
            {
                let cpu = if cpu.is_empty() { "total" } else { cpu };
                self.columns(name, ("cpu", cpu), &CPU_TIMES, times.split_whitespace());
            }
        }
        let help = "Figures of the guest's virtual memory, /proc/vmstat.";
        self.keyed("kata_guest_vm_stat", help, "/proc/vmstat");
        let name = "kata_guest_netdev_stat";
        self.head(name, "gauge", "What went through the guest's links.");
        for line in read("/proc/net/dev").lines() {
            if let Some((link, values)) = line.split_once(':') {
                let label = ("interface", link.trim());
                self.columns(name, label, &LINK_FIGURES, values.split_whitespace());
            }
        }
        let name = "kata_guest_diskstat";
        self.head(name, "gauge", "What the guest's disks did.");
        for line in read("/proc/diskstats").lines() {
            let mut values = line.split_whitespace().skip(2);
            if let Some(disk) = values.next() {
                self.columns(name, ("disk", disk), &DISK_FIGURES, values);
            }
        }
        let help = "The guest's memory in KiB, /proc/meminfo.";
        self.keyed("kata_guest_meminfo", help, "/proc/meminfo");
    }

    /// Each file system once, wherever else it is mounted.
    fn file_systems(&mut self) {
        let mut told = HashSet::new();
        let mounts = read("/proc/self/mountinfo");
        let mounts = mounts.lines().filter_map(Mounted::parse);
        let found: Vec<_> = mounts
            .filter(|mounted| told.insert(mounted.number))
            .filter_map(|mounted| Some((mounted.clone(), statvfs(mounted.point).ok()?)))
            .collect();
        let name = "kata_guest_filesystem_bytes";
        self.head(name, "gauge", "Room on the guest's file systems, in bytes.");
        for (mounted, room) in &found {
            let unit = room.f_frsize;
            mounted.tell(
                self,
                name,
                [room.f_blocks, room.f_bfree, room.f_bavail].map(|n| n.saturating_mul(unit)),
            );
        }
        let name = "kata_guest_filesystem_inodes";
        self.head(name, "gauge", "Inodes of the guest's file systems.");
        for (mounted, room) in &found {
            mounted.tell(self, name, [room.f_files, room.f_ffree, room.f_favail]);
        }
    }
}

/// A line of mountinfo whose room is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted<'a> {
    number: &'a str,
    point: &'a str,
    device: &'a str,
}

impl<'a> Mounted<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (head, tail) = line.split_once(" - ")?;
        let head: Vec<&str> = head.split(' ').collect();
        let mut tail = tail.split(' ');
        let (fstype, device) = (tail.next()?, tail.next()?);
        let is_written = |options: &str| options.split(',').any(|option| option == "rw");
        let is_told =
            FILE_SYSTEMS.contains(&fstype) && is_written(head.get(5)?) && is_written(tail.next()?);
        is_told.then_some(Self {
            number: head.get(2)?,
            point: head.get(4)?,
            device,
        })
    }

    fn tell(&self, text: &mut Text, name: &str, [size, free, available]: [u64; 3]) {
        for (item, value) in [("size", size), ("free", free), ("available", available)] {
            let labels = [
                ("mount", self.point),
                ("device", self.device),
                ("item", item),
            ];
            text.value(name, &labels, value);
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a line is one of the format: a comment, or a name with its
    /// labels and a number.
    fn is_of_the_format(line: &str) -> bool {
        if let Some(comment) = line.strip_prefix("# ") {
            return comment.starts_with("HELP kata_") || comment.starts_with("TYPE kata_");
        }
        let Some((name, value)) = line.rsplit_once(' ') else {
            return false;
        };
        let labelled = !name.contains('{') || name.ends_with("\"}");
        name.starts_with("kata_") && labelled && value.parse::<f64>().is_ok()
    }

    #[test]
    fn every_line_is_of_the_format_and_every_family_is_there() {
        let text = text(7);
        for line in text.lines() {
            assert!(is_of_the_format(line), "{line}");
        }
        assert!(text.contains("\nkata_agent_scrape_count 7\n"));
        for sample in [
            "kata_agent_threads ",
            "kata_agent_total_rss ",
            "kata_agent_proc_status{item=\"vmrss\"} ",
            "kata_agent_proc_stat{item=\"utime\"} ",
            "kata_guest_load{item=\"load1\"} ",
            "kata_guest_tasks{item=\"max\"} ",
            "kata_guest_cpu_time{cpu=\"total\",item=\"user\"} ",
            "kata_guest_cpu_time{cpu=\"0\",item=\"idle\"} ",
            "kata_guest_vm_stat{item=\"pgfault\"} ",
            "kata_guest_netdev_stat{interface=\"lo\",item=\"recv_bytes\"} ",
            "kata_guest_meminfo{item=\"memtotal\"} ",
        ] {
            assert!(text.contains(&format!("\n{sample}")), "{sample}");
        }
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut text = Text(String::new());
        text.value("kata_x", &[("item", "a\"b\\c\nd")], 1);
        assert_eq!(text.0, "kata_x{item=\"a\\\"b\\\\c\\nd\"} 1\n");
    }

    #[test]
    fn a_file_system_that_cannot_be_written_is_not_told() {
        let line = "36 35 98:0 / /data rw,noatime - ext4 /dev/vda rw";
        let expected = Mounted {
            number: "98:0",
            point: "/data",
            device: "/dev/vda",
        };
        assert_eq!(Mounted::parse(line), Some(expected));
        for line in [
            "36 35 98:0 / /data ro,noatime - ext4 /dev/vda rw",
            "36 35 98:0 / /data rw - ext4 /dev/vda ro",
            "36 35 98:0 / /proc rw - proc proc rw",
            "",
        ] {
            assert_eq!(Mounted::parse(line), None, "{line}");
        }
    }
}
