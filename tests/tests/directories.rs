//! Directories of the host in containers: read, written, and gone with the
//! sandbox, whoever dies first. It takes the crate virtiofsd, which `make test`
//! sees to.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tardigrade_tests::{Home, confinement, images, processes, sandbox, virtiofsd};

/// For a process that was killed to be missed, on a busy machine.
const GONE: Duration = Duration::from_secs(60);
/// The variable by which a debug build of `host-ctl` is told where to die.
const KILL_AT: &str = "TARDIGRADE_KILL_AT";

/// A home, with a directory to write to and one to read.
struct Shared {
    home: Home,
    directory: tempfile::TempDir,
}

impl Shared {
    /// None where there is no virtiofsd, which is said.
    fn new() -> Option<Self> {
        virtiofsd()?;
        let directory = tempfile::tempdir().unwrap();
        for name in ["data", "lower"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("found"), "of the host\n").unwrap();
        }
        let home = Home::new();
        Some(Self { home, directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The words of a `run` that sees both.
    fn words(&self) -> Vec<String> {
        let mut words = vec!["run".to_owned(), "--rootfs".to_owned()];
        words.push(images::busybox().display().to_string());
        words.extend(["--memory".to_owned(), "128".to_owned()]);
        for option in [
            format!("{}:/data", self.path("data").display()),
            format!("{}:/mnt/lower:ro", self.path("lower").display()),
        ] {
            words.extend(["--directory".to_owned(), option]);
        }
        words.extend(["--", "sleep", "100000"].map(str::to_owned));
        words
    }

    fn run(&self) -> String {
        sandbox(&self.home.json(self.words())).to_owned()
    }

    fn shell(&self, id: &str, script: &str) -> String {
        self.home.text(["exec", id, "--", "sh", "-c", script])
    }
}

/// A process by the record of a sandbox.
fn pid_of(recorded: &Value) -> Pid {
    let pid = recorded["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::metadata(path).unwrap();
    (found.uid(), found.gid())
}

#[test]
fn a_container_sees_directories_of_the_host_and_writes_where_it_may() {
    let Some(shared) = Shared::new() else { return };
    let data = shared.path("data");
    if geteuid().is_root() {
        // Nobody else gets into it; its owner is not who shares it.
        chown(&data, Some(1234), Some(1235)).unwrap();
        chown(data.join("found"), Some(1234), Some(1235)).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    }
    let id = shared.run();
    let found = shared.shell(
        &id,
        "cat /data/found /mnt/lower/found; echo new > /data/new",
    );
    assert_eq!(found, "of the host\nof the host\n");
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new\n");
    assert_eq!(owner(&data.join("new")), owner(&data));
    // What the host writes the guest sees, and it is the guest's root's.
    fs::write(data.join("later"), "later\n").unwrap();
    let later = "cat /data/later; ls -n /data/new | { read m n u g rest; echo $u $g; }";
    assert_eq!(shared.shell(&id, later), "later\n0 0\n");
    let refused = "(echo x > /mnt/lower/new) 2>&1; echo $?; ls /mnt/lower";
    let said = shared.shell(&id, refused);
    assert!(said.contains("ead-only"), "{said}");
    assert!(said.ends_with("1\nfound\n"), "{said}");
    assert!(!shared.path("lower").join("new").exists());

    // Each has a virtiofsd, as confined as a VMM, with another user.
    let vm = &shared.home.json(["inspect", &id])["vm"];
    let served = vm["directories"].as_array().unwrap();
    assert_eq!(served.len(), 2, "{vm}");
    let mut users = vec![vm["confined"].clone()];
    for one in served {
        confinement::assert_serves_alone(pid_of(one));
        if let Some(uid) = one["confined"]["user"]["uid"].as_u64() {
            confinement::assert_confined(pid_of(one), u32::try_from(uid).unwrap());
        }
        users.push(one["confined"].clone());
    }
    if geteuid().is_root() {
        users.sort_by_key(|user| user["user"]["uid"].as_u64().unwrap());
        users.dedup();
        assert_eq!(users.len(), 3, "{users:?}");
    }

    // It is no template, and says why; then it is gone with all that served it.
    let error = shared.home.failure(["template", "save", "second", &id]);
    assert!(error.contains("shared directory"), "{error}");
    assert_eq!(shared.shell(&id, "cat /data/new"), "new\n");
    shared.home.text(["stop", &id]);
    assert!(processes::machines(shared.home.path()).is_empty());
    shared.home.text(["rm", &id]);
    let left = fs::read_dir(shared.home.path().join("run")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn no_guest_leaves_a_program_that_runs_as_its_directorys_owner() {
    let Some(shared) = Shared::new() else { return };
    let id = shared.run();
    // What busybox copies it makes with the mode that it has.
    let said = shared.shell(
        &id,
        "b=/bin/busybox; $b cp $b /own && $b chmod 6755 /own && $b cp /own /data/copied; \
         $b cp -p /own /data/kept 2>/dev/null; $b cp $b /data/program; \
         for mode in 4755 2755 6711; do \
         $b chmod $mode /data/program 2>/dev/null && echo $mode; done; \
         $b mkdir -m 2777 /data/directory 2>/dev/null; $b chmod 1751 /data/program; \
         ls -l /own /data/program | $b cut -c1-10",
    );
    assert_eq!(said, "-rwxr-x--t\n-rwsr-sr-x\n");
    let data = shared.path("data");
    let mode = |name: &str| fs::metadata(data.join(name)).unwrap().mode() & 0o7777;
    for name in ["copied", "kept", "program", "directory"] {
        assert_eq!(mode(name) & 0o6000, 0, "{name}: {:o}", mode(name));
    }
    assert_eq!(mode("program"), 0o1751);
    let length = |name: &str| fs::metadata(data.join(name)).unwrap().len();
    assert_eq!(length("copied"), length("program"));
}

#[test]
fn what_serves_a_directory_is_confined_also_where_its_vmm_is_not() {
    let Some(shared) = Shared::new() else { return };
    let mut words = shared.words();
    words.insert(1, "--insecure".to_owned());
    let id = sandbox(&shared.home.json(words)).to_owned();
    let found = shared.shell(&id, "cat /data/found; echo new > /data/new");
    assert_eq!(found, "of the host\n");
    assert_eq!(owner(&shared.path("data/new")), owner(&shared.path("data")));
    let vm = &shared.home.json(["inspect", &id])["vm"];
    assert_eq!(vm["confined"], "insecure");
    for one in vm["directories"].as_array().unwrap() {
        assert_eq!(one["confined"], "namespaces");
        confinement::assert_serves_alone(pid_of(one));
    }
}

#[test]
fn a_directory_outlives_its_supervisor_and_a_sandbox_does_not_outlive_its_virtiofsd() {
    let Some(shared) = Shared::new() else { return };
    let id = shared.run();
    let inspected = shared.home.json(["inspect", &id]);
    let supervisor = pid_of(&inspected["supervisor"]);
    kill_process(supervisor, Signal::KILL).unwrap();
    let found = shared.shell(&id, "cat /data/found; echo more > /data/more");
    assert_eq!(found, "of the host\n");
    assert!(shared.path("data").join("more").exists());
    let again = shared.home.json(["inspect", &id]);
    assert_eq!(again["vm"]["directories"], inspected["vm"]["directories"]);

    kill_process(pid_of(&again["vm"]["directories"][1]), Signal::KILL).unwrap();
    let deadline = Instant::now() + GONE;
    loop {
        let now = shared.home.json(["inspect", &id]);
        // That its VMM is gone is seen before its supervisor has written why.
        if let (Some("stopped"), Some(how)) = (now["state"].as_str(), now["exit"].as_str()) {
            assert!(how.contains("virtiofsd"), "{how}");
            break;
        }
        assert!(Instant::now() < deadline, "{now}");
    }
    assert!(processes::machines(shared.home.path()).is_empty());
}

#[test]
fn a_sandbox_whose_supervisor_dies_in_its_making_leaves_no_virtiofsd() {
    let Some(shared) = Shared::new() else { return };
    for step in [
        "boot: agent call CreateSandbox",
        "hand over: write the record",
    ] {
        let output = shared
            .home
            .command(shared.words())
            .env(KILL_AT, step)
            .output()
            .unwrap();
        assert!(output.status.signal().is_none() && !output.status.success());
        let living = processes::machines(shared.home.path());
        assert_eq!(living.len(), 3, "{step}: a VMM and two virtiofsds");
        shared.home.text(["gc"]);
        assert!(processes::machines(shared.home.path()).is_empty(), "{step}");
    }
}

#[test]
fn what_cannot_be_shared_is_refused_by_its_name_and_nothing_is_left() {
    let home = Home::new();
    let directory = tempfile::tempdir().unwrap();
    let rootfs = images::busybox();
    let refused = |option: &str, further: &[&str], variable: Option<&str>| {
        let mut command = home.command(["run", "--rootfs"]);
        command.arg(&rootfs).args(["--memory", "128"]);
        command.args(["--directory", option]).args(further);
        command.args(["--", "true"]);
        if let Some(virtiofsd) = variable {
            command.env("VIRTIOFSD", virtiofsd);
        }
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let shared = format!("{}:/data", directory.path().display());
    let error = refused("/no/such:/data", &[], None);
    assert!(error.contains("/no/such"), "{error}");
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = refused(&format!("{}:/data", file.display()), &[], None);
    assert!(error.contains("not a directory"), "{error}");
    let error = refused(&shared, &["--vmm", "firecracker"], None);
    assert!(error.contains("no virtio-fs"), "{error}");
    let error = refused(&shared, &[], Some("/no/such/virtiofsd"));
    assert!(error.contains("/no/such/virtiofsd"), "{error}");
    let error = refused(&shared, &[], Some("/bin/true"));
    assert!(error.contains("not the crate virtiofsd"), "{error}");
    assert!(processes::machines(home.path()).is_empty());
    assert_eq!(fs::read_dir(home.path().join("run")).unwrap().count(), 0);
}
