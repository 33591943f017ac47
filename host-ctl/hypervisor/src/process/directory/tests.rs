//! What a process does to a directory that it is given, and to what lies beside it.

use super::super::confinement::Needs;
use super::super::spawn::{Launch, spawn};
use super::*;
use proptest::prelude::*;
use std::fs::{self, Permissions};
use std::io::Seek;
use std::os::unix::fs::{PermissionsExt, chown};

proptest! {
    #[test]
    fn a_map_swaps_two_numbers_and_keeps_each_other_one(
        one in 0..u32::MAX, other in 0..u32::MAX, third in 0..u32::MAX
    ) {
        let map = swap(one, other);
        let outside = |inside: u32| {
            let mut found = map.lines().filter_map(|line| {
                let mut numbers = line.split(' ').map(|number| number.parse::<u32>().unwrap());
                let (first, at, length) = (
                    numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap(),
                );
                let index = inside.checked_sub(first).filter(|index| *index < length)?;
                Some(at + index)
            });
            let is = found.next();
            assert!(found.next().is_none(), "{map}");
            is
        };
        prop_assert_eq!(outside(one), Some(other));
        prop_assert_eq!(outside(other), Some(one));
        if third != one && third != other {
            prop_assert_eq!(outside(third), Some(third));
        }
    }
}

const BASE: u32 = 0x7e00_0000;

fn shared(path: &Path, readonly: bool) -> SharedDirectory {
    SharedDirectory {
        tag: "data".to_owned(),
        path: path.to_owned(),
        readonly,
    }
}

/// What a confined process does to a directory that it was given: what it
/// wrote on its standard output.
fn done_by(
    confinement: &Confinement,
    directory: &SharedDirectory,
    script: &str,
) -> Result<String, Error> {
    done_in(Path::new("/bin/sh"), confinement, directory, script)
}

/// The same, by this shell.
fn done_in(
    shell: &Path,
    confinement: &Confinement,
    directory: &SharedDirectory,
    script: &str,
) -> Result<String, Error> {
    let given = confinement.give(directory)?;
    start(shell, confinement, &given, script)
}

fn start(
    shell: &Path,
    confinement: &Confinement,
    given: &Given,
    script: &str,
) -> Result<String, Error> {
    // It has no /dev/null to write to: what is wrong goes elsewhere.
    let [log, mut output] = [(); 2].map(|()| tempfile::tempfile().unwrap());
    let cell = confinement.cell(Needs::default()).unwrap();
    let cell = cell.map(|cell| cell.with(given));
    let inherited: Vec<_> = given
        .descriptor()
        .into_iter()
        .chain(confinement.user().map(User::lock))
        .collect();
    let script = format!("cd {} && {script}", given.seen().display());
    let pid = spawn(&Launch {
        program: shell,
        arguments: &["-c".to_owned(), script],
        inherited: &inherited,
        placed: &[],
        log: &log,
        output: Some(&output),
        keeps: None,
        filter: None,
        cell: cell.as_ref(),
        cgroup: None,
    })?;
    waitpid(Some(pid), WaitOptions::empty()).unwrap();
    output.rewind().unwrap();
    Ok(io::read_to_string(output).unwrap())
}

/// None where this host refuses mounts of its own to a process, which is said.
fn allowed(told: Result<String, Error>) -> Option<String> {
    match told {
        Err(Error::Confinement { reason }) if reason.contains("which this host refuses") => {
            eprintln!("skipped: {reason}");
            None
        }
        told => Some(told.unwrap()),
    }
}

/// Who this thread is where it has to be somebody, not root.
const SOMEBODY: u32 = 65534;

/// Does it as a user who is not root. None where this host refuses mounts of
/// their own to such.
fn as_somebody(work: impl FnOnce() -> Result<String, Error> + Send + 'static) -> Option<String> {
    let working = std::thread::spawn(|| {
        if geteuid().is_root() {
            // Users are each thread's own.
            let [user, group] = [SOMEBODY; 2];
            let group = rustix::process::Gid::from_raw(group);
            let user = rustix::process::Uid::from_raw(user);
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(group, group, group).unwrap();
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        }
        work()
    });
    allowed(working.join().unwrap())
}

/// A directory that is shared, and what lies beside it: of whoever
/// [`as_somebody`] is, or of root.
fn beside(owner: Option<u32>) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    fs::create_dir(&path).unwrap();
    fs::create_dir(directory.path().join("beside")).unwrap();
    fs::write(directory.path().join("secret"), "secret\n").unwrap();
    fs::write(path.join("theirs"), "read\n").unwrap();
    if let Some(owner) = owner.filter(|_| geteuid().is_root()) {
        for of in [".", "data", "data/theirs", "beside", "secret"] {
            chown(directory.path().join(of), Some(owner), Some(owner)).unwrap();
        }
    }
    (directory, path)
}

/// What a guest can have done whose names are those of no file, but paths.
const LEFT: &str = "cat theirs; echo x > own && echo wrote; for d in .. ../.. ../../..; do \
    cat $d/secret; ls $d; mkdir $d/beside/new; mv own $d/taken; rm $d/secret; \
    ln theirs $d/linked; done; \
    cat BESIDE/secret; mkdir BESIDE/new; rm BESIDE/secret; ls";

#[test]
fn nothing_beside_a_shared_directory_is_got_at_through_it_whoever_shares_it() {
    let seen = |told: &str, directory: &tempfile::TempDir, readonly: bool| {
        assert!(told.starts_with("read\n"), "{told}");
        assert!(!told.contains("secret"), "{told}");
        assert_eq!(told.contains("wrote"), !readonly, "{told}");
        let names = |path: &Path| {
            let entries = fs::read_dir(path).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(directory.path()), ["beside", "data", "secret"]);
        assert!(names(&directory.path().join("beside")).is_empty());
    };
    let script =
        |directory: &tempfile::TempDir| LEFT.replace("BESIDE", directory.path().to_str().unwrap());
    for readonly in [false, true] {
        let (directory, path) = beside(Some(SOMEBODY));
        let (shared, script_text) = (shared(&path, readonly), script(&directory));
        let told = as_somebody(move || done_by(&Confinement::Namespaces, &shared, &script_text));
        if let Some(told) = told {
            seen(&told, &directory, readonly);
        }
    }
    if !geteuid().is_root() {
        eprintln!("skipped in part: only root gives users away");
        return;
    }
    for readonly in [false, true] {
        let (directory, path) = beside(None);
        let confinement = Confinement::strictest(BASE).unwrap();
        let told = done_by(&confinement, &shared(&path, readonly), &script(&directory));
        let Some(told) = allowed(told) else { return };
        seen(&told, &directory, readonly);
        // So it is where the VMM has no user of its own.
        let shared = shared(&path, readonly);
        let told = done_by(&Confinement::Namespaces, &shared, &script(&directory));
        seen(&told.unwrap(), &directory, readonly);
    }
}

#[test]
fn a_directory_is_not_shared_where_a_guest_could_leave_it() {
    let (_directory, path) = beside(None);
    let error = Confinement::Insecure.give(&shared(&path, false));
    assert!(error.unwrap_err().to_string().contains("could leave it"));
    // So a virtiofsd is never as little confined as a VMM may be.
    let another = Confinement::Insecure.for_virtiofsd().unwrap();
    assert!(matches!(another, Confinement::Namespaces));
}

const TRIED: &str = "cat theirs; (echo x > new) && echo wrote; \
    (echo x > others) && echo wrote what is another\\'s; cat secret; rm -f theirs; ls; true";

#[test]
fn a_process_with_a_user_of_its_own_is_a_directorys_owner_in_it_and_nobody_elsewhere() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root gives users away");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    fs::create_dir(&path).unwrap();
    for owner in [0, 1234] {
        fs::write(path.join("theirs"), "read\n").unwrap();
        for (name, mode) in [("others", 0o644), ("secret", 0o600)] {
            fs::write(path.join(name), "secret\n").unwrap();
            fs::set_permissions(path.join(name), Permissions::from_mode(mode)).unwrap();
            chown(path.join(name), Some(owner + 1), Some(owner + 1)).unwrap();
        }
        chown(&path, Some(owner), Some(owner)).unwrap();
        chown(path.join("theirs"), Some(owner), Some(owner)).unwrap();
        // No other gets into it.
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        let confinement = Confinement::strictest(BASE).unwrap();
        let told = done_by(&confinement, &shared(&path, true), TRIED);
        let Some(told) = allowed(told) else { return };
        assert_eq!(told, "read\nothers\nsecret\ntheirs\n");
        let told = done_by(&confinement, &shared(&path, false), TRIED).unwrap();
        assert_eq!(told, "read\nwrote\nnew\nothers\nsecret\n");
        let made = fs::metadata(path.join("new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (owner, owner));
        assert_eq!(fs::read_to_string(path.join("others")).unwrap(), "secret\n");
        fs::remove_file(path.join("new")).unwrap();
    }
}

#[test]
fn a_directory_that_is_only_to_be_read_is_read_only_whoever_shares_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("theirs"), "read\n").unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let given = shared(directory.path(), true);
    let told = as_somebody(move || done_by(&Confinement::Namespaces, &given, TRIED));
    assert_eq!(
        told.unwrap_or("read\ntheirs\n".to_owned()),
        "read\ntheirs\n"
    );
    if geteuid().is_root() {
        let given = shared(directory.path(), true);
        let told = allowed(done_by(&Confinement::Namespaces, &given, TRIED));
        assert_eq!(
            told.unwrap_or("read\ntheirs\n".to_owned()),
            "read\ntheirs\n"
        );
    }
}

/// A directory that everyone may get at, in one that is hidden.
fn passable() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.permissions(Permissions::from_mode(0o755));
    builder.tempdir_in("/var/tmp").unwrap()
}

/// The same for each who may share one: what each was told.
fn by_everyone(
    work: impl Fn(&Confinement) -> Result<String, Error> + Clone + Send + 'static,
) -> Vec<String> {
    let mut told = Vec::new();
    if geteuid().is_root() {
        told.extend(allowed(work(&Confinement::strictest(BASE).unwrap())));
        told.extend(allowed(work(&Confinement::Namespaces)));
    }
    told.extend(as_somebody(move || work(&Confinement::Namespaces)));
    told
}

#[test]
fn what_serves_a_directory_opens_no_device_and_no_shared_memory_whoever_shares_it() {
    const ASKED: &str = "(: < /dev/null) && echo opened; (: > /dev/null) && echo opened; \
        ls -A /dev; cat /dev/shm/*; cat /proc/self/mountinfo";
    let data = passable();
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in("/dev/shm");
    if let Ok(file) = &mut file {
        file.write_all(b"secret\n").unwrap();
    } else {
        eprintln!("skipped in part: there is no shared memory here");
    }
    let given = shared(data.path(), true);
    for told in by_everyone(move |confinement| done_by(confinement, &given, ASKED)) {
        let mounts: Vec<&str> = told.lines().collect();
        assert!(!mounts.is_empty());
        for line in mounts {
            // Its sixth field is options (proc_pid_mountinfo(5)).
            let options = line.split(' ').nth(5).unwrap_or_default();
            assert!(options.split(',').any(|option| option == "nodev"), "{line}");
        }
    }
}

#[test]
fn what_hosts_have_for_their_users_is_empty_to_what_serves_a_directory_wherever_it_lies() {
    const ASKED: &str = "for d in /boot /home /media /mnt /root /run /srv /tmp /var; do \
        ls -A $d; done; echo ran";
    let programs = passable();
    let shell = programs.path().join("sh");
    // By another process: while one of ours had it open, it could not run.
    let copied = std::process::Command::new("cp")
        .args([Path::new("/bin/sh"), &shell])
        .status();
    assert!(copied.unwrap().success());
    let data = passable();
    let given = shared(data.path(), true);
    let work = move |confinement: &Confinement| done_in(&shell, confinement, &given, ASKED);
    for told in by_everyone(work) {
        assert_eq!(told, "ran\n");
    }
}

#[test]
fn a_host_that_refuses_mounts_is_told_as_why_no_directory_is_shared() {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    if !geteuid().is_root() {
        eprintln!("skipped: only root has a capability to lose");
        return;
    }
    let data = passable();
    let directory = shared(data.path(), true);
    let Ok(given) = Confinement::Namespaces.give(&directory) else {
        eprintln!("skipped: this host refuses them to us, too");
        return;
    };
    // Capabilities are each thread's own.
    let refused = std::thread::spawn(move || {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).unwrap();
        let confinement = Confinement::Namespaces;
        let giving = confinement.give(&directory).map(drop).unwrap_err();
        let starting = start(Path::new("/bin/sh"), &confinement, &given, "true");
        [giving, starting.map(drop).unwrap_err()]
    });
    for (error, call) in refused.join().unwrap().iter().zip(["open_tree", "clone"]) {
        let error = error.to_string();
        for word in ["mounts of its own", "which this host refuses", call] {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
    // Another failure of these steps is told as what it is, and so are others.
    let failed = |step, errno: Errno| without_mounts(step, &errno.into()).is_some();
    assert!(failed("mount_setattr /", Errno::ACCESS) && failed("clone", Errno::NOSPC));
    assert!(!failed("clone3 into a cgroup", Errno::ACCESS));
    assert!(!failed("open_tree", Errno::NOENT));
    assert!(!failed("open the shared directory", Errno::ACCESS));
}

#[test]
fn what_is_no_directory_or_is_not_there_is_refused_by_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file, directory.path().join("none")] {
        let error = Confinement::Insecure.give(&shared(&path, true));
        let error = error.unwrap_err();
        assert!(
            matches!(&error, Error::Path { path: named, .. } if *named == path),
            "{error}"
        );
    }
}

#[test]
fn a_directory_that_its_owner_may_not_write_to_is_refused_before_anything_is_started() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root gives users away");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o500)).unwrap();
    let confinement = Confinement::strictest(BASE).unwrap();
    let given = confinement.give(&shared(directory.path(), true));
    if allowed(given.map(|_| String::new())).is_none() {
        return;
    }
    let error = confinement.give(&shared(directory.path(), false));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("mode 500"), "{error}");
}
