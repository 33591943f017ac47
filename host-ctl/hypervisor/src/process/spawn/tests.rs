//! What a child is and has when it runs.

use super::super::confinement::{Confined, Confinement, Needs};
use super::*;
use rustix::process::{WaitOptions, waitpid};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::read_to_string;

fn start(program: &str, arguments: &[&str], log: &File) -> Result<Pid, Error> {
    start_in(None, program, arguments, log)
}

fn start_in(
    cell: Option<&Cell>,
    program: &str,
    arguments: &[&str],
    log: &File,
) -> Result<Pid, Error> {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    spawn(&Launch {
        program: Path::new(program),
        arguments: &arguments,
        inherited: &[],
        placed: &[],
        log,
        output: None,
        keeps: None,
        filter: None,
        cell,
        cgroup: None,
    })
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim_start_matches(':').trim()
}

#[test]
fn a_child_has_default_signals_and_ours_are_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let log = File::create(&path).unwrap();
    let ours = || {
        let status = read_to_string("/proc/thread-self/status").unwrap();
        ["SigBlk", "SigIgn", "SigCgt"].map(|name| field(&status, name).to_owned())
    };
    let before = ours();
    let pid = start("/bin/cat", &["/proc/self/status"], &log).unwrap();
    assert_eq!(ours(), before);
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0));
    let theirs = read_to_string(&path).unwrap();
    for name in ["SigBlk", "SigCgt", "CapEff"] {
        assert_eq!(field(&theirs, name), "0000000000000000", "{name}");
    }
    // What whoever started us ignores, we and it do.
    let ignored = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let pipe = 1 << (libc::SIGPIPE - 1);
    assert_ne!(ignored(&before[1]) & pipe, 0, "Rust ignores SIGPIPE");
    assert_eq!(
        ignored(field(&theirs, "SigIgn")),
        ignored(&before[1]) & !pipe
    );
    assert_eq!(field(&theirs, "NoNewPrivs"), "1");
}

/// What a confined child tells of itself, a line each.
const WHO: &str = "id -u; id -G; readlink /proc/self/ns/mnt /proc/self/ns/pid \
    /proc/self/ns/net; (echo > /tmp/written) 2>/dev/null && echo wrote; \
    (echo x > /proc/self/comm) 2>/dev/null && echo wrote to /proc; cut -s -d: -f1 /proc/self/net/dev | tr -d ' '; ls /dev";

fn told_by(confinement: &Confinement) -> Result<Vec<String>, String> {
    told(confinement, Needs::default(), WHO)
}

fn told(confinement: &Confinement, needs: Needs, asked: &str) -> Result<Vec<String>, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let log = File::create(&path).unwrap();
    let cell = confinement.cell(needs).unwrap();
    let pid = start_in(cell.as_ref(), "/bin/sh", &["-c", asked], &log);
    let pid = pid.map_err(|error| error.to_string())?;
    waitpid(Some(pid), WaitOptions::empty()).unwrap();
    let told = read_to_string(&path).unwrap();
    Ok(told.lines().map(str::to_owned).collect())
}

/// None where this host refuses namespaces or mounts of its own to such a child,
/// which is said.
fn allowed<T>(told: Result<T, String>) -> Option<T> {
    let has = |told: &str, words: &[&str]| words.iter().any(|word| told.contains(word));
    match told {
        Err(told)
            if has(&told, &["clone with namespaces", "mount"])
                && has(&told, &["not permitted", "denied", "No space left"]) =>
        {
            eprintln!("skipped: {told}");
            None
        }
        told => Some(told.unwrap()),
    }
}

fn are_not_ours(namespaces: &[String]) {
    for (name, theirs) in ["mnt", "pid", "net"].into_iter().zip(namespaces) {
        let ours = std::fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap();
        assert_ne!(ours.to_string_lossy(), *theirs);
        assert!(theirs.starts_with(name), "{theirs}");
    }
}

#[test]
fn a_child_of_root_has_a_user_and_namespaces_of_its_own_and_listed_devices() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root gives users away");
        return;
    }
    const BASE: u32 = 0x7e00_0000;
    let confinement = Confinement::strictest(BASE).unwrap();
    let Some(told) = allowed(told_by(&confinement)) else {
        return;
    };
    let Confined::User { uid } = confinement.noted() else {
        panic!("{confinement:?}");
    };
    assert_eq!(told[..2], [uid.to_string(), format!("{uid} {BASE}")]);
    are_not_ours(&told[2..5]);
    // One link, and nothing of ours in /dev; nothing was written.
    assert_eq!(told[5], "lo", "{told:?}");
    let devices = &told[6..];
    assert!(devices.contains(&"null".to_owned()), "{devices:?}");
    assert!(devices.len() <= 5, "{devices:?}");
}

#[test]
fn a_child_with_a_user_of_its_own_sees_no_process_but_its_own_and_nothing_of_the_hosts_users() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root gives users away");
        return;
    }
    // For everyone to read, where every user may go.
    let directory = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in("/var/tmp")
        .unwrap();
    std::fs::write(directory.path().join("file"), "seen\n").unwrap();
    let asked = format!(
        "cat {}/file 2>/dev/null; ls /tmp /var /run; (echo > /var/new) 2>/dev/null && echo wrote; \
         ls /proc | grep -c '^[0-9]'; ls /dev | grep empty; true",
        directory.path().display()
    );
    let confinement = Confinement::strictest(0x7e00_0000).unwrap();
    let Some(hidden) = allowed(told(&confinement, Needs::default(), &asked)) else {
        return;
    };
    // Of its own there are up to three: the shell, ls and grep.
    let (count, names) = hidden.split_last().unwrap();
    assert!(count.parse::<u32>().unwrap() <= 3, "{hidden:?}");
    assert_eq!(
        names.join(" ").replace(":", ""),
        "/run  /tmp  /var",
        "{hidden:?}"
    );
    let all = told(&Confinement::Namespaces, Needs::default(), &asked).unwrap();
    assert_eq!(all[0], "seen");
}

#[test]
fn a_program_is_started_for_a_user_that_may_not_go_where_it_lies() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root gives users away");
        return;
    }
    // For its owner only, which tempdir(3) makes sure of.
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    let log = File::create(directory.path().join("log")).unwrap();
    let confinement = Confinement::strictest(0x7e00_0000).unwrap();
    let cell = confinement.cell(Needs::default()).unwrap();
    let pid = start_in(cell.as_ref(), program.to_str().unwrap(), &[], &log);
    let Some(pid) = allowed(pid.map_err(|error| error.to_string())) else {
        return;
    };
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0));
}

#[test]
fn a_child_that_opens_taps_by_their_names_has_their_device_and_our_network_and_no_more() {
    const ASKED: &str = "id -u; readlink /proc/self/ns/net; stat -c %a /dev/net; \
        (exec 3<>/dev/net/tun) && echo opened; (echo > /tmp/written) 2>/dev/null && echo wrote; \
        ls /dev /dev/net | grep -c .";
    if !geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: it takes root and /dev/net/tun");
        return;
    }
    let confinement = Confinement::strictest(0x7e00_0000).unwrap();
    let needs = Needs {
        host_network: true,
        opens_taps: true,
        writes_by_path: false,
    };
    // The directory of a device is passable whatever our umask is.
    let asked = std::thread::spawn(move || {
        // SAFETY: this thread gets an umask of its own; its descriptors stay.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::FS) };
        unshared.unwrap();
        umask(Mode::RWXG | Mode::RWXO);
        let told = told(&confinement, needs, ASKED);
        (told, confinement.noted())
    });
    let (told, noted) = asked.join().unwrap();
    let Some(told) = allowed(told) else { return };
    let Confined::User { uid } = noted else {
        panic!("{noted:?}");
    };
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    let ours = ours.to_str().unwrap();
    assert_eq!(told[..4], [&uid.to_string(), ours, "755", "opened"]);
    // Two names of directories, that of one device, and at most six others.
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(told[4].parse::<u32>().unwrap() <= 9, "{told:?}");
}

#[test]
fn a_child_that_makes_files_by_their_paths_writes_to_nothing_of_the_kernels() {
    let directory = tempfile::tempdir().unwrap();
    let asked = format!(
        "(echo > {}/made) && echo made; (echo x > /proc/self/comm) 2>/dev/null && echo wrote; true",
        directory.path().display()
    );
    let needs = Needs {
        writes_by_path: true,
        ..Needs::default()
    };
    if let Some(told) = allowed(told(&Confinement::Namespaces, needs, &asked)) {
        assert_eq!(told, ["made"]);
    }
}

#[test]
fn a_child_of_anybody_has_namespaces_of_its_own_or_is_not_started() {
    let told = std::thread::spawn(|| {
        if geteuid().is_root() {
            // Users are each thread's own.
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        told_by(&Confinement::strictest(0).unwrap())
    });
    if let Some(told) = allowed(told.join().unwrap()) {
        are_not_ours(&told[2..5]);
        assert_eq!(told[5], "lo", "{told:?}");
    }
}

#[test]
fn what_this_thread_would_hand_down_of_its_capabilities_stays_here() {
    use rustix::thread::configure_capability_in_ambient_set;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let log = File::create(&path).unwrap();
    // Capabilities are each thread's own.
    let started = std::thread::spawn(move || {
        let mut own = capabilities(None).unwrap();
        if own.permitted.is_empty() {
            eprintln!("skipped in part: this user has no capability to hand down");
        }
        own.inheritable = own.permitted;
        set_capabilities(None, own).unwrap();
        for capability in own.permitted.iter() {
            configure_capability_in_ambient_set(capability, true).unwrap();
        }
        let pid = start("/bin/cat", &["/proc/self/status"], &log).unwrap();
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
    });
    started.join().unwrap();
    let theirs = read_to_string(&path).unwrap();
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(&theirs, name), "0000000000000000", "{name}");
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_told_and_leaves_no_child() {
    let log = tempfile::tempfile().unwrap();
    let kind =
        |program: &str, arguments: &[&str]| match start(program, arguments, &log).unwrap_err() {
            Error::Path { path, source, .. } => {
                assert_eq!(path, Path::new(program));
                source.kind()
            }
            other => panic!("{other}"),
        };
    assert_eq!(kind("/no/such/program", &[]), io::ErrorKind::NotFound);
    assert_eq!(kind("/etc/passwd", &[]), io::ErrorKind::PermissionDenied);
    let refused = kind("/bin/true", &["nul\0in it"]);
    assert_eq!(refused, io::ErrorKind::InvalidInput);
    let children = read_to_string("/proc/thread-self/children");
    assert_eq!(children.unwrap_or_default(), "");
}
