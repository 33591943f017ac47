//! Clones do not repeat each other: a process that draws random numbers in a
//! tight loop across the freeze never draws in one clone what it draws in
//! another. The control, clones without Quiesce and Thaw, does.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as expected"
)]

use hypervisor::qemu::Qemu;
use serde_json::Value;
use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tardigrade_tests::machine::{self, Machine};
use tardigrade_tests::{Home, images, sandbox};

const CLONES: usize = 8;
/// Draws looked at in each clone.
const DRAWS: usize = 4096;
const RECORD: &str = "/tmp/record";
/// Emulated clones draw some thousands a second, eight of them share two cores.
const DEADLINE: Duration = Duration::from_secs(120);
/// What the clock of a clone may be off by, beyond half a round trip.
const CLOCK_TOLERANCE_NANOS: u64 = 50_000_000;

/// One draw of the probe's record.
#[derive(Debug, Clone)]
struct Draw {
    generation: String,
    realtime: i128,
    monotonic: i128,
    random: String,
    uuid: String,
}

fn parse(record: &str) -> Vec<Draw> {
    record
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_epoch, generation, realtime, monotonic, random, uuid] = fields[..] else {
                panic!("not a draw: {line:?}");
            };
            Draw {
                generation: generation.into(),
                realtime: realtime.parse().unwrap(),
                monotonic: monotonic.parse().unwrap(),
                random: random.into(),
                uuid: uuid.into(),
            }
        })
        .collect()
}

/// The record a clone wrote after it saw `generation`.
fn record(home: &Home, sandbox: &str, generation: &str) -> Vec<Draw> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let draws = parse(&home.text(["exec", sandbox, "--", "cat", RECORD]));
        if draws
            .last()
            .is_some_and(|draw| draw.generation == generation)
        {
            return draws;
        }
        assert!(Instant::now() < deadline, "{sandbox} wrote no record");
    }
}

fn host_nanos() -> i128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i128::try_from(now.as_nanos()).unwrap()
}

fn distinct(values: impl Iterator<Item = String>, what: &str, expected: usize) {
    let set: HashSet<String> = values.collect();
    assert_eq!(set.len(), expected, "clones share {what}");
}

#[test]
fn no_draw_after_the_new_generation_repeats_in_another_clone() {
    let home = Home::new();
    let probe = ["/bin/probe", "/run/tardigrade/generation", RECORD];
    let draws = DRAWS.to_string();
    let command = [&probe[..], &[draws.as_str(), "1"]].concat();
    let rootfs = images::busybox();
    let mut arguments = vec!["template", "build", "probe", "--memory", "128", "--rootfs"];
    arguments.extend([rootfs.to_str().unwrap(), "--ready", "cat /tmp/record", "--"]);
    arguments.extend(command);
    home.text(arguments);

    // All at once: eight busy machines that keep each other waiting on the few
    // cores there are, while each is thawed.
    let before = host_nanos();
    let clones = home.clone_template("probe", CLONES);
    let after = host_nanos();
    let mut records = Vec::new();
    for clone in &clones {
        let generation = clone["generation"].as_str().unwrap();
        records.push(record(&home, sandbox(clone), generation));
        see_identity(&home, clone);
        see_clock(&home, clone);
    }

    let mut randoms = HashSet::new();
    let mut uuids = HashSet::new();
    let mut in_flight = Vec::new();
    for (clone, record) in clones.iter().zip(&records) {
        let generation = clone["generation"].as_str().unwrap();
        let fresh: Vec<&Draw> = record
            .iter()
            .filter(|draw| draw.generation == generation)
            .take(DRAWS)
            .collect();
        assert_eq!(fresh.len(), DRAWS);
        for draw in &fresh {
            assert!(
                randoms.insert(draw.random.clone()),
                "getrandom repeats: {draw:?}"
            );
            assert!(uuids.insert(draw.uuid.clone()), "a uuid repeats: {draw:?}");
        }
        // The draw before them was entered under the old generation; it may
        // have been finished by the kernel before the freeze.
        let old = record.len() - record.iter().filter(|d| d.generation == generation).count();
        assert!(old <= 1, "one thread has at most one call in flight");
        in_flight.extend(record.first().filter(|_| old == 1).cloned());

        for pair in record.windows(2) {
            let [one, two] = pair else { unreachable!() };
            assert!(two.monotonic >= one.monotonic, "CLOCK_MONOTONIC went back");
        }
        let bound = clone["clock_error_nanos"].as_u64().unwrap();
        let round_trip = clone["round_trip_nanos"].as_u64().unwrap();
        assert!(
            bound <= CLOCK_TOLERANCE_NANOS + round_trip / 2,
            "the clock is off by up to {bound} ns"
        );
        let first = fresh[0].realtime;
        let margin = i128::from(bound);
        assert!(
            first >= before - margin && first <= after + margin + 1_000_000_000,
            "CLOCK_REALTIME is stale: {first}, the host was at {before} to {after}"
        );
    }
    let shared = in_flight.len()
        - in_flight
            .iter()
            .map(|d| &d.random)
            .collect::<HashSet<_>>()
            .len();
    println!(
        "{CLONES} clones, {DRAWS} draws each: all distinct; of the draws in flight at the freeze {shared} repeat"
    );

    let field = |name: &'static str| {
        clones
            .iter()
            .map(move |clone: &Value| clone["identity"][name].to_string())
    };
    for name in ["hostname", "machine_id", "boot_id"] {
        distinct(field(name), name, CLONES);
    }
}

/// The clock a container sees is the host's, within what the clone was said to
/// be off by at most and the steps of what prints it.
fn see_clock(home: &Home, clone: &Value) {
    const MICROSECOND: i128 = 1_000;
    let before = host_nanos();
    let shown = home.text(["exec", sandbox(clone), "--", "busybox", "adjtimex"]);
    let after = host_nanos();
    let field = |name: &str| -> i128 {
        let mut lines = shown.lines();
        let value = lines.find_map(|line| line.trim().strip_prefix(name));
        value.unwrap().trim().parse().unwrap()
    };
    let now = field("time.tv_sec:") * 1_000_000_000 + field("time.tv_usec:") * MICROSECOND;
    let bound = i128::from(clone["clock_error_nanos"].as_u64().unwrap()) + MICROSECOND;
    assert!(
        (before - bound..=after + bound).contains(&now),
        "the clock shows {now}, the host was at {before} to {after}, off by at most {bound}"
    );
}

/// What the receipt says is what a container sees.
fn see_identity(home: &Home, clone: &Value) {
    let see = |command: &[&str]| {
        let words = [&["exec", sandbox(clone), "--"], command].concat();
        home.text(words).trim().to_owned()
    };
    let identity = &clone["identity"];
    assert_eq!(see(&["hostname"]), identity["hostname"]);
    assert_eq!(see(&["cat", "/etc/machine-id"]), identity["machine_id"]);
    let boot_id = "/proc/sys/kernel/random/boot_id";
    assert_eq!(see(&["cat", boot_id]), identity["boot_id"]);
}

/// The control: without Quiesce and Thaw the very same program repeats itself,
/// and the clock is stale. If this test fails, the one above proves nothing.
///
/// A young kernel reseeds by itself, all copies of a template at the same
/// moment; where that comes before the first draws, they differ by luck. It
/// does so whenever its last seed is half as old as the machine
/// (`crng_reseed_interval` in Linux), so at ages each twice the one before. The
/// templates tried are frozen at ages spread evenly over such an octave: where
/// one is about to reseed, the next has done so and has long to go.
#[tokio::test]
async fn naive_clones_repeat_each_other_and_live_in_the_past() {
    const TEMPLATES: usize = 6;
    let qemu = machine::qemu().await.unwrap();
    for template in 0..TEMPLATES {
        let part = template as f64 / TEMPLATES as f64;
        let (randoms, uuids, behind) = naive_copies(&qemu, part).await;
        println!(
            "control: {randoms} results of getrandom and {uuids} uuids repeat; the clock is {} ms behind",
            behind / 1_000_000
        );
        assert!(behind > 2_000_000_000, "the clock is not stale");
        if randoms > 0 && uuids > 0 {
            return;
        }
    }
    panic!("naive clones drew no equal random numbers");
}

/// How long a guest has been up, in seconds.
async fn age(guest: &Machine) -> f64 {
    let (_, shown) = guest.exec(&["cat", "/proc/uptime"]).await.unwrap();
    shown.split(' ').next().unwrap().parse().unwrap()
}

/// Draws that copies of one template share after the freeze, of getrandom and
/// of uuids, and how many nanoseconds the copies' clock is behind. The machine
/// is frozen when the logarithm of its age has this fractional part, to base 2.
async fn naive_copies(qemu: &Qemu, part: f64) -> (usize, usize, i128) {
    const TRIGGER: &str = "/tmp/trigger";
    /// Draws looked at around the freeze: some seconds of them.
    const HISTORY: usize = 30_000;
    const COPIES: usize = 2;
    let (_kept, template) = machine::directory();
    let spec = machine::spec(&template, 128, Some(&images::busybox()));
    let booted = Machine::boot(qemu, &spec).await.unwrap();
    let script =
        format!("echo boot > {TRIGGER}; exec /bin/probe {TRIGGER} {RECORD} {DRAWS} {HISTORY}");
    booted.start(&["sh", "-c", &script]).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while booted.exec(&["cat", RECORD]).await.unwrap().0 != 0 {
        assert!(Instant::now() < deadline, "the probe wrote no record");
    }
    let deadline = Instant::now() + DEADLINE;
    let octaves = age(&booted).await.log2();
    let frozen_from = ((octaves - part).ceil() + part).exp2();
    while age(&booted).await < frozen_from {
        assert!(Instant::now() < deadline, "the guest does not age");
    }
    booted.save(&template).await.unwrap();
    // So that a stale clock can be told from a good one.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let resumed_at = host_nanos();

    let mut records = Vec::new();
    for _ in 0..COPIES {
        let (_kept, directory) = machine::directory();
        let copy = Machine::resume_copy(qemu, &template, &spec, &directory).await;
        let copy = copy.unwrap();
        let script = format!("echo resumed > {TRIGGER}");
        copy.exec(&["sh", "-c", &script]).await.unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let draws = parse(&copy.exec(&["cat", RECORD]).await.unwrap().1);
            if draws
                .last()
                .is_some_and(|draw| draw.generation == "resumed")
            {
                records.push(draws);
                break;
            }
            assert!(Instant::now() < deadline, "no record");
        }
        copy.kill().await.unwrap();
    }
    // Before the freeze the copies are one: their draws are equal to the
    // nanosecond. What they drew at different times was drawn after it.
    let stamp = |draw: &Draw| (draw.monotonic, draw.random.clone());
    let mut before: HashSet<_> = records[0].iter().map(stamp).collect();
    for record in &records[1..] {
        let other: HashSet<_> = record.iter().map(stamp).collect();
        before.retain(|draw| other.contains(draw));
    }
    assert!(
        !before.is_empty(),
        "the history does not reach back to the freeze"
    );
    let (mut randoms, mut uuids) = (0, 0);
    let (mut seen_randoms, mut seen_uuids) = (HashSet::new(), HashSet::new());
    let mut first_realtime = Vec::new();
    for record in &records {
        let freeze = record
            .iter()
            .rposition(|draw| before.contains(&stamp(draw)));
        let after = &record[freeze.map_or(0, |last| last + 1)..];
        first_realtime.extend(after.first().map(|draw| draw.realtime));
        // A whole copy at a time: what one copy draws twice is not asked here.
        randoms += after
            .iter()
            .filter(|d| seen_randoms.contains(&d.random))
            .count();
        uuids += after
            .iter()
            .filter(|d| seen_uuids.contains(&d.uuid))
            .count();
        seen_randoms.extend(after.iter().map(|draw| draw.random.clone()));
        seen_uuids.extend(after.iter().map(|draw| draw.uuid.clone()));
    }
    (randoms, uuids, resumed_at - first_realtime[0])
}
