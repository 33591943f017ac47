//! A place to make containers in: a cgroup, a root file system of busybox, and
//! a look at what is left afterwards.

use guest_runtime::ContainerId;
use guest_runtime::cgroup::{CgroupPath, WorkloadCgroup};
use guest_runtime::container::{
    Capability, CapabilitySets, ContainerSpec, CreatedContainer, Hooks, IdMapping, IdMappings,
    IdentityFiles, Launcher, MountSpec, NamespaceKind, NamespaceSpec, ProcessSpec, Resources,
    RootSpec, UserSpec,
};
use guest_runtime::process::{OutputReader, Process, Stdio};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 31] = [
    "sh", "cat", "grep", "ls", "id", "hostname", "sleep", "mount", "mknod", "stat", "touch", "env",
    "echo", "readlink", "tty", "stty", "chmod", "mkdir", "dd", "test", "wc", "true", "false",
    "setsid", "kill", "ionice", "head", "mkfifo", "date", "tail", "chown",
];
/// What container engines give by default.
pub(crate) const CAPABILITIES: [&str; 5] = [
    "CAP_CHOWN",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_SETGID",
    "CAP_SETUID",
];

/// The tests look at all mounts, cgroups and children of this process: one at
/// a time.
static ALONE: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Says why a test does not run; an error if none may be skipped.
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
    assert!(
        std::env::var_os("REQUIRE_ALL").is_none_or(|all| all != "1"),
        "REQUIRE_ALL=1 and a test was skipped: {why}"
    );
}

pub(crate) struct Fixture {
    pub(crate) launcher: Launcher,
    pub(crate) directory: tempfile::TempDir,
}

/// What there is of containers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    pub(crate) mounts: String,
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) children: Vec<u32>,
}

/// Runs `test` in a runtime like the agent's, if it can be run here.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Fixture) -> F) {
    if !rustix::process::geteuid().is_root() {
        return skip("containers need root");
    }
    if !Path::new(BUSYBOX).exists() {
        return skip("no /bin/busybox (package busybox-static)");
    }
    let Some(hierarchy) = cgroup2() else {
        return skip("no cgroup v2 hierarchy is mounted");
    };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    leave_the_mounts_of_others();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("tardigrade-test-{}-{number}", std::process::id());
    let cgroup = hierarchy.join(name);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let fixture = Fixture::new(&cgroup);
            tokio::time::timeout(2 * DEADLINE, test(fixture))
                .await
                .expect("the test hangs");
        });
    }));
    runtime.block_on(async {
        let workload = WorkloadCgroup::create(&cgroup).unwrap();
        workload.remove(DEADLINE).await.unwrap();
        assert!(!cgroup.exists());
        let reaped = async {
            while !children().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, reaped).await.unwrap();
    });
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

/// Has this thread, and those it starts, see no mount that others make
/// meanwhile: tests look at all there are.
fn leave_the_mounts_of_others() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    guest_kernel::namespace::unshare_mount().unwrap();
    let apart = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", apart).unwrap();
}

/// Where a cgroup v2 hierarchy is mounted, /proc/self/mounts.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| point.into())
    })
}

/// What root of the user namespaces of the tests is outside.
pub(crate) const OUTSIDE: u32 = 100_000;

/// Their mappings.
pub(crate) fn mappings() -> IdMappings {
    let all = vec![IdMapping {
        inside: 0,
        outside: OUTSIDE,
        size: 65536,
    }];
    IdMappings {
        users: all.clone(),
        groups: all,
    }
}

/// Makes a directory, and what is in it, someone's.
fn give(path: &Path, owner: u32) {
    std::os::unix::fs::lchown(path, Some(owner), Some(owner)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), owner);
        }
    }
}

fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "data"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("bin/not-executable"), "x").unwrap();
    fs::write(root.join("bin/nonsense"), "\u{1}\u{2}").unwrap();
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(root.join("bin/nonsense"), executable).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn mount(destination: &str, fstype: &str, options: &[&str]) -> MountSpec {
    MountSpec {
        destination: destination.into(),
        source: None,
        fstype: Some(fstype.into()),
        options: options.iter().map(ToString::to_string).collect(),
        id_mappings: None,
    }
}

pub(crate) fn bind(source: &Path, destination: &str, options: &[&str]) -> MountSpec {
    MountSpec {
        source: Some(source.into()),
        ..mount(destination, "bind", options)
    }
}

pub(crate) fn capabilities(names: &[&str]) -> CapabilitySets {
    let set: Vec<Capability> = names.iter().map(|name| name.parse().unwrap()).collect();
    CapabilitySets {
        bounding: set.clone(),
        effective: set.clone(),
        inheritable: Vec::new(),
        permitted: set,
        ambient: Vec::new(),
    }
}

pub(crate) fn process(args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        terminal: false,
        console_size: None,
        user: UserSpec::default(),
        args: args.iter().map(ToString::to_string).collect(),
        program: None,
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        capabilities: capabilities(&CAPABILITIES),
        rlimits: Vec::new(),
        no_new_privileges: true,
        apparmor_profile: None,
        selinux_label: None,
        seccomp: None,
        vsock: false,
        oom_score_adj: None,
        umask: None,
        scheduler: None,
        io_priority: None,
    }
}

pub(crate) fn shell(script: &str) -> ProcessSpec {
    process(&["sh", "-c", script])
}

impl Fixture {
    fn new(cgroup: &Path) -> Self {
        let workload = WorkloadCgroup::create(cgroup).unwrap();
        let program = File::open(env!("CARGO_BIN_EXE_container-stage")).unwrap();
        let directory = tempfile::tempdir().unwrap();
        make_root(&directory.path().join("root"));
        Self {
            launcher: Launcher::with_program(workload, program),
            directory,
        }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// An ordinary container.
    pub(crate) fn spec(&self, process: ProcessSpec) -> ContainerSpec {
        let kinds = [
            NamespaceKind::Pid,
            NamespaceKind::Mount,
            NamespaceKind::Ipc,
            NamespaceKind::Uts,
            NamespaceKind::Network,
        ];
        let id: ContainerId = "test".parse().unwrap();
        ContainerSpec {
            process,
            root: RootSpec {
                path: self.root(),
                readonly: false,
                propagation: None,
            },
            hostname: Some("inside".into()),
            mount_label: None,
            mounts: vec![
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount(
                    "/dev",
                    "tmpfs",
                    &["nosuid", "strictatime", "mode=755", "size=65536k"],
                ),
                mount(
                    "/dev/pts",
                    "devpts",
                    &[
                        "nosuid",
                        "noexec",
                        "newinstance",
                        "ptmxmode=0666",
                        "mode=0620",
                        "gid=5",
                    ],
                ),
                mount(
                    "/dev/shm",
                    "tmpfs",
                    &["nosuid", "noexec", "nodev", "mode=1777"],
                ),
                mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount(
                    "/sys/fs/cgroup",
                    "cgroup",
                    &["nosuid", "noexec", "nodev", "rw"],
                ),
            ],
            namespaces: kinds
                .into_iter()
                .map(|kind| NamespaceSpec { kind, path: None })
                .collect(),
            id_mappings: IdMappings::default(),
            time_offsets: BTreeMap::new(),
            cgroup_name: id.to_string(),
            resources: Resources::default(),
            sysctl: BTreeMap::new(),
            devices: Vec::new(),
            device_rules: Vec::new(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            hooks: Hooks::default(),
            bundle: "/no/bundle".into(),
            annotations: BTreeMap::new(),
            identity_files: IdentityFiles::default(),
            id,
        }
    }

    /// One with a user namespace of its own, whose files are its root's.
    pub(crate) fn mapped_spec(&self, process: ProcessSpec) -> ContainerSpec {
        let mut spec = self.spec(process);
        let kind = NamespaceKind::User;
        spec.namespaces.push(NamespaceSpec { kind, path: None });
        spec.id_mappings = mappings();
        give(&self.root(), OUTSIDE);
        spec
    }

    /// Creates, starts, and gives everything it says until it ends.
    pub(crate) async fn output(&self, spec: &ContainerSpec) -> (i32, String, String) {
        let created = self.launcher.create(spec, false).await.unwrap();
        let CreatedContainer {
            process,
            stdio,
            start,
            cgroup,
        } = created;
        start.start(DEADLINE).await.unwrap();
        let ended = finish(&process, &stdio).await;
        self.remove(&cgroup).await;
        ended
    }

    /// What a script says in an ordinary container; it must succeed.
    pub(crate) async fn say(&self, script: &str) -> String {
        let (status, stdout, stderr) = self.output(&self.spec(shell(script))).await;
        assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
        stdout
    }

    /// A started container that sleeps.
    pub(crate) async fn sleeper(&self) -> (Process, CgroupPath) {
        let spec = self.spec(process(&["sleep", "1000"]));
        let created = self.launcher.create(&spec, false).await.unwrap();
        created.start.start(DEADLINE).await.unwrap();
        (created.process, created.cgroup)
    }

    pub(crate) async fn exec(
        &self,
        init: &Process,
        cgroup: &CgroupPath,
        process: &ProcessSpec,
    ) -> (i32, String, String) {
        let exec = self.launcher.exec(init, cgroup, process, false).await;
        let exec = exec.unwrap();
        finish(&exec.process, &exec.stdio).await
    }

    pub(crate) async fn remove(&self, cgroup: &CgroupPath) {
        let workload = self.launcher.workload();
        workload.remove_container(cgroup, DEADLINE).await.unwrap();
        workload.remove_container(cgroup, DEADLINE).await.unwrap();
    }

    pub(crate) fn traces(&self) -> Traces {
        let mut cgroups: Vec<PathBuf> = fs::read_dir(self.launcher.workload().path())
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| entry.path())
            .collect();
        cgroups.sort();
        Traces {
            mounts: fs::read_to_string("/proc/thread-self/mountinfo").unwrap(),
            cgroups,
            children: children(),
        }
    }
}

/// The process ids of this process's children, zombies too, proc(5).
fn children() -> Vec<u32> {
    let own = format!("PPid:\t{}", std::process::id());
    let is_own = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| status.lines().any(|line| line == own))
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(is_own)
        .collect()
}

pub(crate) async fn finish(process: &Process, stdio: &Stdio) -> (i32, String, String) {
    let (stdout, stderr) = tokio::join!(
        read_all(stdio.stdout.as_ref()),
        read_all(stdio.stderr.as_ref())
    );
    let status = tokio::time::timeout(DEADLINE, process.wait())
        .await
        .unwrap();
    (status.code(), stdout, stderr)
}

async fn read_all(reader: Option<&OutputReader>) -> String {
    let mut all = Vec::new();
    let Some(reader) = reader else {
        return String::new();
    };
    loop {
        let data = reader.read(usize::MAX).await.unwrap();
        if data.is_empty() {
            return String::from_utf8(all).unwrap();
        }
        all.extend(data);
    }
}
