//! The life of a sandbox on every VMM, in the nested host: the same body, a
//! module for each.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use host_ctl::config::SandboxPaths;
use host_ctl::host::network::HostNetwork;
use host_ctl::host::{RecordHead, read_record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;
use tardigrade_tests::place::Place;
use tardigrade_tests::{Home, confinement, processes, sandbox};

/// The step at which a clone's guest may run already and has no receipt yet.
const BEFORE_THE_RECEIPT: &str = "clone: agent call Thaw";
/// The variable by which a debug build of `host-ctl` is told where to die.
const KILL_AT: &str = "TARDIGRADE_KILL_AT";
/// How long a guest may take to call the host.
const CALL_DEADLINE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// Sees that a sandbox's VMM is as confined as its kind can be.
fn assert_confined(place: &Place, handover: &Value) {
    let (pid, confined) = confinement::vmm_of(&place.home, sandbox(handover));
    assert_eq!(handover["confined"], confined);
    let uid = u32::try_from(confined["user"]["uid"].as_u64().unwrap()).unwrap();
    confinement::assert_confined(pid, uid);
    assert_limited(place, handover);
}

/// Sees that a sandbox's VMM is in a cgroup of its own that limits it, and gives
/// that cgroup's directory.
fn assert_limited(place: &Place, handover: &Value) -> PathBuf {
    let inspected = place.home.json(["inspect", sandbox(handover)]);
    let limits = &handover["limited"]["cgroup"];
    assert_eq!(inspected["limited"]["cgroup"], *limits, "{handover}");
    let path = PathBuf::from(inspected["cgroup"]["path"].as_str().unwrap());
    for (file, name) in [("memory.max", "memory_max"), ("pids.max", "pids_max")] {
        let set = fs::read_to_string(path.join(file)).unwrap();
        assert_eq!(set.trim(), limits[name].to_string(), "{file}");
    }
    let (pid, _) = confinement::vmm_of(&place.home, sandbox(handover));
    let told = confinement::told(pid, "cgroup");
    let theirs = told.lines().find_map(|line| line.strip_prefix("0::/"));
    assert!(path.ends_with(theirs.unwrap()), "{told}");
    let events = fs::read_to_string(path.join("memory.events")).unwrap();
    assert!(events.contains("oom_kill 0"), "{events}");
    path
}

fn run_freeze_and_clone(vmm: &'static str) {
    let place = Place::new(vmm);
    let booted = place.make(&["run"], &[]);
    let id = sandbox(&booted).to_owned();
    assert_eq!(
        place.home.text(["exec", &id, "--", "echo", "here"]),
        "here\n"
    );
    let inspected = place.home.json(["inspect", &id]);
    assert_eq!(inspected["spec"]["vmm"], vmm);
    assert_eq!(inspected["vm"]["driver"], vmm);
    assert_confined(&place, &booted);
    let cgroup = assert_limited(&place, &booted);
    assert!(!place.home.text(["logs", "--console", &id]).is_empty());
    place.home.text(["stop", &id]);
    assert!(processes::machines(place.home.path()).is_empty());
    assert!(!cgroup.exists(), "{}", cgroup.display());

    // A warm container: what it wrote before the freeze is in every clone.
    let warm = ["--ready", "true", "--warm", "sh -c 'echo warm > /tmp/warm'"];
    let _ = place.make(&["template", "build", "shell"], &warm);
    let clones = place.home.clone_template("shell", 2);
    let mut said = HashSet::new();
    for clone in &clones {
        assert_confined(&place, clone);
        let id = sandbox(clone);
        assert_eq!(place.shell(id, "cat /tmp/warm"), "warm\n");
        let identity = &clone["identity"];
        let who = place.who(id);
        assert_eq!(identity["hostname"], *who[0]);
        assert_eq!(identity["boot_id"], *who[1]);
        assert_eq!(identity["machine_id"], *who[2]);
        said.extend(who);
    }
    assert_eq!(said.len(), 8, "clones share something: {said:?}");
    let counted = &place.home.json(["template", "inspect", "shell"])["cold_boots"]["count"];
    assert_eq!(counted, 0);
    place.end();
}

/// Sandboxes of one size are woken from one machine that was frozen with nothing
/// in it.
fn fill(vmm: &'static str) {
    let place = Place::new(vmm);
    let words = place.machine(&["template", "build", "small"]);
    let _ = place.home.json(words);
    let mut said = HashSet::new();
    for _ in 0..2 {
        let made = place.make(&["run"], &[]);
        assert_eq!(made["booted"], false, "{made}");
        said.extend(place.who(sandbox(&made)));
    }
    assert_eq!(said.len(), 8, "they share something: {said:?}");
    place.end();
}

fn adopt(vmm: &'static str) {
    let place = Place::new(vmm);
    let booted = place.make(&["run"], &[]);
    let id = sandbox(&booted);
    let before = place.shell(id, "cat /proc/sys/kernel/random/boot_id");
    let inspected = place.home.json(["inspect", id]);
    let pid = inspected["supervisor"]["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let after = place.shell(id, "cat /proc/sys/kernel/random/boot_id");
    assert_eq!(after, before);
    place.end();
}

/// A file of a link in /sys, as text; empty when there is no such link.
fn link(tap: &str, file: &str) -> String {
    let path = PathBuf::from("/sys/class/net").join(tap).join(file);
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

fn taps() -> usize {
    let links = fs::read_dir("/sys/class/net").unwrap();
    let names = links.map(|link| link.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("tg"))
        .count()
}

/// Whether the link takes frames: IFF_UP, netdevice(7).
fn is_up(tap: &str) -> bool {
    let flags = link(tap, "flags");
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap();
    flags & 1 == 1
}

/// Whether no frame of a sandbox's guest goes anywhere, by what the kernel says
/// of the tap that is in its record.
fn is_fenced(place: &Place, id: &str) -> bool {
    let record = place.home.path().join("run").join(id);
    let head: RecordHead = read_record(&record.join(SandboxPaths::RECORD)).unwrap();
    let tap = head.tap.unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let network = HostNetwork::open().unwrap();
        network.is_fenced(&tap).await.unwrap()
    })
}

/// Has the guest send its hostname to the host, and gives where it came from.
fn call_home(place: &Place, clone: &Value) -> String {
    let addresses = &clone["addresses"];
    let host = addresses["host"].as_str().unwrap();
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!("hostname | /bin/busybox nc -w 20 {host} {port}");
    let caller = std::thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let mut ready = [PollFd::new(&listener, PollFlags::IN)];
            let heard = poll(&mut ready, Some(&CALL_DEADLINE)).unwrap();
            assert_eq!(heard, 1, "nobody called");
            let (mut stream, from) = listener.accept().unwrap();
            let deadline = Duration::from_secs(CALL_DEADLINE.tv_sec.unsigned_abs());
            stream.set_read_timeout(Some(deadline)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            (text, from)
        });
        let _ = place.shell(sandbox(clone), &script);
        heard.join().unwrap()
    });
    let (text, from) = caller;
    assert_eq!(text.trim(), clone["identity"]["hostname"]);
    assert_eq!(from.ip().to_string(), addresses["guest"]);
    from.ip().to_string()
}

fn network(vmm: &'static str) {
    let place = Place::new(vmm);
    let tap = ["--network", "tap"];
    let _ = place.make(&["template", "build", "net"], &tap);
    assert_eq!(taps(), 0, "a template keeps its tap");
    let clones = place.home.clone_template("net", 2);
    let callers: HashSet<String> = clones.iter().map(|one| call_home(&place, one)).collect();
    assert_eq!(callers.len(), 2);
    for clone in &clones {
        assert!(!is_fenced(&place, sandbox(clone)));
        let (pid, confined) = confinement::vmm_of(&place.home, sandbox(clone));
        let uid = confined["user"]["uid"].as_u64().unwrap_or_default();
        assert_ne!(uid, 0, "{confined}");
        assert!(confinement::told(pid, "status").contains(&format!("\nUid:\t{uid}\t{uid}\t")));
    }
    place.home.text(["rm", "--all"]);
    assert_eq!(taps(), 0);

    let mut command = place.home.command(["clone", "net"]);
    command.env(KILL_AT, BEFORE_THE_RECEIPT);
    assert!(!command.output().unwrap().status.success());
    let listed = place.home.json(["list"]);
    let id = listed["sandboxes"][0]["sandbox"].as_str().unwrap();
    let name = format!("tg{id}");
    // A VMM can write to it, whose frames go nowhere.
    assert!(is_up(&name));
    assert!(is_fenced(&place, id), "{name} is open before the receipt");
    assert_eq!(link(&name, "ifalias"), id);
    place.home.text(["gc"]);
    assert_eq!(taps(), 0, "a sweep leaves a tap");
    place.end();
}

/// A clone is used, saved with what was done in it, and cloned; so is one of
/// those.
fn generations(vmm: &'static str) {
    let place = Place::new(vmm);
    let built = place.make(&["template", "build", "g1"], &[]);
    let mut parent = built["digest"].clone();
    let mut said = HashSet::new();
    let mut written = String::new();
    let mut people = 0;
    for generation in 1..=3 {
        let name = format!("g{generation}");
        let clones = place.home.clone_template(&name, generation.min(2));
        for clone in &clones {
            let id = sandbox(clone);
            assert_eq!(place.shell(id, "cat /tmp/kept 2>/dev/null; true"), written);
            said.extend(place.who(id));
            people += 1;
        }
        if generation == 3 {
            break;
        }
        let id = sandbox(&clones[0]);
        written = place.shell(id, "echo once more >> /tmp/kept; cat /tmp/kept");
        let next = format!("g{}", generation + 1);
        let saved = place.home.json(["template", "save", &next, id]);
        assert_eq!(saved["generation"], generation + 1);
        assert_eq!(saved["parent"], parent);
        let ended = place.home.json(["inspect", id]);
        assert_eq!(ended["state"], "stopped", "{saved}");
        // What was before is needed no more: neither sandboxes nor template.
        place.home.text(["rm", "--all"]);
        place.home.text(["template", "rm", &name]);
        place.home.text(["gc"]);
        place.home.text(["template", "verify", &next]);
        parent = saved["digest"].clone();
    }
    assert_eq!(written.lines().count(), 2);
    assert_eq!(
        said.len(),
        4 * people,
        "somebody shares something: {said:?}"
    );
    place.end();
}

/// A clone that was on its network is saved; its clones have one each, and
/// nothing of its.
fn second_network(vmm: &'static str) {
    let place = Place::new(vmm);
    let _ = place.make(&["template", "build", "n1"], &["--network", "tap"]);
    let parent = place.home.clone_template("n1", 1).remove(0);
    let own = parent["addresses"]["guest"].as_str().unwrap();
    place
        .home
        .text(["template", "save", "n2", sandbox(&parent)]);
    assert_eq!(taps(), 0, "a saved sandbox keeps its tap");
    let clones = place.home.clone_template("n2", 2);
    for clone in &clones {
        let id = sandbox(clone);
        let shown = place.shell(id, "/bin/busybox ip -4 addr show eth0");
        assert_eq!(shown.matches("inet ").count(), 1, "{shown}");
        assert!(!shown.contains(&format!("{own}/")), "{shown}");
        let routes = place.shell(id, "/bin/busybox ip route");
        assert_eq!(routes.matches("default").count(), 1, "{routes}");
    }
    let callers: HashSet<String> = clones.iter().map(|one| call_home(&place, one)).collect();
    assert_eq!(callers.len(), 2);
    place.end();
}

/// How many times, unless the variable CYCLES says.
const CYCLES: usize = 3;
/// Every so many cycles the clones are those of another generation.
const CYCLES_A_GENERATION: usize = 10;

/// Saved, restored and thawed again and again: none may be wedged. The variable
/// HOST_CTL may name a release build, which takes a third of the time.
fn cycles(vmm: &'static str) {
    let count = std::env::var("CYCLES").map_or(CYCLES, |text| text.parse().unwrap());
    let home = match std::env::var_os("HOST_CTL") {
        Some(program) => Home::with_program(program.into()),
        None => Home::new(),
    };
    let place = Place::with_home(vmm, home);
    let _ = place.make(&["template", "build", "c1"], &[]);
    let begun = Instant::now();
    let mut generation = 1;
    for cycle in 1..=count {
        let began = Instant::now();
        let name = format!("c{generation}");
        let outcome = place.home.json(["clone", &name]);
        let clone = &outcome["clones"][0];
        let at = format!("{vmm}, cycle {cycle} of {count}, generation {generation}");
        assert_eq!(clone["booted"], false, "{at}: {outcome}");
        let id = sandbox(clone);
        let script = format!("echo {cycle}");
        assert_eq!(place.shell(id, &script), format!("{cycle}\n"), "{at}");
        if cycle % CYCLES_A_GENERATION == 2 {
            generation += 1;
            let next = format!("c{generation}");
            place.home.text(["template", "save", &next, id]);
            place.home.text(["template", "rm", &name]);
            place.home.text(["gc"]);
        }
        place.home.text(["rm", id]);
        assert!(processes::machines(place.home.path()).is_empty(), "{at}");
        println!("{at}: {:.1} s", began.elapsed().as_secs_f64());
    }
    println!(
        "{vmm}: {count} cycles, {generation} generations, none wedged, {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    place.end();
}

macro_rules! on_each_vmm {
    ($($module:ident: $vmm:literal),*) => {$(
        mod $module {
            #[test]
            fn a_sandbox_is_run_frozen_cloned_and_stopped_and_leaves_nothing() {
                super::run_freeze_and_clone($vmm);
            }

            #[test]
            fn runs_of_one_size_are_woken_from_one_machine_and_share_nothing() {
                super::fill($vmm);
            }

            #[test]
            fn a_killed_supervisor_is_replaced_and_the_guest_does_not_notice() {
                super::adopt($vmm);
            }

            #[test]
            fn clones_have_a_network_of_their_own_and_none_before_their_receipt() {
                super::network($vmm);
            }

            #[test]
            fn a_clone_is_saved_again_and_its_clones_keep_what_it_did_and_share_nothing() {
                super::generations($vmm);
            }

            #[test]
            fn the_clones_of_a_saved_clone_have_a_network_each_and_nothing_of_its() {
                super::second_network($vmm);
            }

            #[test]
            fn cycles_of_save_restore_and_thaw_wedge_none() {
                super::cycles($vmm);
            }
        }
    )*};
}

on_each_vmm! {
    qemu: "qemu",
    cloud_hypervisor: "cloud-hypervisor",
    firecracker: "firecracker"
}
