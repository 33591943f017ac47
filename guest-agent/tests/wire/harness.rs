//! An agent in namespaces of its own, clients of it, the requests the tests
//! have in common, and a look at what is left afterwards.

use guest_runtime::cgroup::{self, WorkloadCgroup};
use protocols::wire::{agent, agent_ttrpc};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tokio::net::UnixStream;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{Context, with_timeout};

pub(crate) use agent_ttrpc::{AgentServiceClient, HealthClient};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Names another agent than the one that was built with the tests.
const AGENT_VARIABLE: &str = "GUEST_AGENT";
const AGENT: &str = env!("CARGO_BIN_EXE_guest-agent");
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 18] = [
    "sh", "cat", "ls", "id", "hostname", "sleep", "mount", "stat", "env", "echo", "readlink",
    "stty", "dd", "wc", "true", "false", "yes", "kill",
];

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Says why a test does not run; an error if none may be skipped.
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
    assert!(
        std::env::var_os("REQUIRE_ALL").is_none_or(|all| all != "1"),
        "REQUIRE_ALL=1 and a test was skipped: {why}"
    );
}

pub(crate) fn agent_program() -> OsString {
    std::env::var_os(AGENT_VARIABLE).unwrap_or_else(|| AGENT.into())
}

/// A program that ends with this thread, whatever ends that: tests that are
/// killed leave no agent behind.
pub(crate) fn mortal(program: &OsStr) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// An agent, and all that belongs to it.
pub(crate) struct Guest {
    /// `unshare`, whose end is the agent's.
    namespaces: Child,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) cgroup: PathBuf,
    agent_pid: i32,
}

/// What there is of containers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    mounts: String,
    cgroups: BTreeSet<PathBuf>,
    processes: BTreeSet<u32>,
    files: BTreeSet<PathBuf>,
}

impl Guest {
    /// An agent that listens, if containers can be made here.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with("true", &[]).await
    }

    /// The same: `prepare` is run by a shell in the agent's namespaces before
    /// it is started, with these arguments more.
    pub(crate) async fn start_with(prepare: &str, arguments: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("namespaces and containers need root");
            return None;
        }
        if !Path::new(BUSYBOX).exists() {
            skip("no /bin/busybox (package busybox-static)");
            return None;
        }
        let Some(hierarchy) = cgroup::hierarchy() else {
            skip("no cgroup v2 hierarchy is mounted");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        make_root(&directory.path().join("root"));
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = hierarchy.join(format!("tardigrade-wire-{}-{number}", std::process::id()));
        let socket = directory.path().join("agent.sock");
        // The shell is the namespace's init: the agent itself would take that
        // for the boot of a machine.
        let script = format!(
            "mount -t tmpfs tmpfs /run && cd '{}' && {prepare} && \"$@\"; exit $?",
            directory.path().display()
        );
        let mut namespaces = mortal("unshare".as_ref())
            .args(["--mount", "--net", "--pid", "--fork", "--mount-proc"])
            .args(["--kill-child", "sh", "-c", &script, "sh"])
            .arg(agent_program())
            .arg("--server")
            .arg(format!("unix://{}", socket.display()))
            .arg("--cgroup")
            .arg(&cgroup)
            .arg("--own-network")
            .args(arguments)
            .env("TMPDIR", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until_it_serves(&mut namespaces);
        let mut guest = Self {
            namespaces,
            directory,
            cgroup,
            agent_pid: 0,
        };
        let stream = UnixStream::connect(&socket).await.unwrap();
        guest.agent_pid = stream.peer_cred().unwrap().pid().unwrap();
        Some(guest)
    }

    fn connect(&self) -> impl Future<Output = std::io::Result<UnixStream>> {
        UnixStream::connect(self.directory.path().join("agent.sock"))
    }

    /// A connection of its own, without a word before the first request, as
    /// clients of the Kata agent make it.
    pub(crate) async fn client(&self) -> AgentServiceClient {
        AgentServiceClient::new(self.raw_client().await)
    }

    pub(crate) async fn raw_client(&self) -> Client {
        Client::new(Socket::new(self.connect().await.unwrap()))
    }

    /// How the agent sees a path of its own.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.agent_pid))
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// The agent's process.
    pub(crate) fn pidfd(&self) -> OwnedFd {
        let pid = Pid::from_raw(self.agent_pid).unwrap();
        pidfd_open(pid, PidfdFlags::empty()).unwrap()
    }

    /// The agent's open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        let listed = fs::read_dir(format!("/proc/{}/fd", self.agent_pid));
        listed.unwrap().count()
    }

    pub(crate) fn traces(&self) -> Traces {
        let own = format!("PPid:\t{}", self.agent_pid);
        let is_own = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status"));
            status.is_ok_and(|status| status.lines().any(|line| line == own))
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut cgroups = BTreeSet::new();
        list(&self.cgroup, &self.cgroup, &mut cgroups);
        cgroups.retain(|path| self.cgroup.join(path).is_dir());
        let mut files = BTreeSet::new();
        let run = self.inside("/run");
        list(&run, &run, &mut files);
        Traces {
            mounts: fs::read_to_string(format!("/proc/{}/mountinfo", self.agent_pid)).unwrap(),
            cgroups,
            processes: processes
                .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
                .filter(is_own)
                .collect(),
            files,
        }
    }

    /// Waits until there is of containers what there was.
    pub(crate) async fn has_left_nothing_since(&self, before: &Traces) {
        let clean = async {
            while self.traces() != *before {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(DEADLINE, clean).await.is_err() {
            assert_eq!(self.traces(), *before);
        }
    }

    /// Waits until the agent has ended by itself; its exit code.
    pub(crate) async fn ended(mut self) -> Option<i32> {
        let ended = tokio::task::spawn_blocking(move || self.namespaces.wait().unwrap().code());
        tokio::time::timeout(DEADLINE, ended)
            .await
            .unwrap()
            .unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself. What was started in its pid namespace
        // ends with it.
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
        if !self.cgroup.exists() {
            return;
        }
        let cgroup = self.cgroup.clone();
        let swept = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let removed = async { WorkloadCgroup::create(&cgroup)?.remove(DEADLINE).await };
            runtime.block_on(removed)
        });
        swept.join().unwrap().unwrap();
    }
}

/// The paths below `directory`, relative to `base`.
fn list(base: &Path, directory: &Path, found: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        found.insert(path.strip_prefix(base).unwrap().into());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(base, &path, found);
        }
    }
}

/// The agent says so in its log, which is read to its end: a full pipe would
/// hold the agent up.
fn wait_until_it_serves(namespaces: &mut Child) {
    let log = BufReader::new(namespaces.stderr.take().unwrap());
    let (serves, wait) = mpsc::channel();
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            eprintln!("{line}");
            if line.contains("\"serving\"") {
                let _ = serves.send(());
            }
        }
    });
    wait.recv_timeout(DEADLINE).expect("the agent serves");
}

fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "data"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("bin/not-executable"), "x").unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A context with a deadline of its own.
pub(crate) fn context() -> Context {
    with_timeout(i64::try_from(DEADLINE.as_nanos()).unwrap())
}

/// The code and the text of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("not refused: {other:?}"),
    }
}

/// Refused with this code, in a text that holds these words.
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    answer: ttrpc::Result<T>,
    code: Code,
    words: &str,
) {
    let (found, text) = refusal(answer);
    assert!(found == code && text.contains(words), "{found:?}: {text}");
}

/// A mount of a file system of its own.
pub(crate) fn mount(destination: &str, fstype: &str) -> agent::Mount {
    let mut mount = agent::Mount::new();
    mount.destination = destination.into();
    mount.source = fstype.into();
    mount.type_ = fstype.into();
    mount
}

pub(crate) fn process(args: &[&str]) -> agent::Process {
    let mut process = agent::Process::new();
    process.Args = args.iter().map(ToString::to_string).collect();
    process.Env = vec!["PATH=/bin".into()];
    process.Cwd = "/".into();
    process
}

/// An ordinary container that runs `args`.
pub(crate) fn container(guest: &Guest, id: &str, args: &[&str]) -> agent::CreateContainerRequest {
    let mut linux = agent::Linux::new();
    linux.Namespaces = ["pid", "mount", "ipc", "uts", "network"]
        .into_iter()
        .map(|kind| {
            let mut namespace = agent::LinuxNamespace::new();
            namespace.Type = kind.into();
            namespace
        })
        .collect();
    let mut root = agent::Root::new();
    root.Path = guest.root().to_str().unwrap().into();
    let mut spec = agent::Spec::new();
    spec.Version = "1.0.2".into();
    spec.Process = Some(process(args)).into();
    spec.Root = Some(root).into();
    spec.Mounts = vec![mount("/proc", "proc"), mount("/dev", "tmpfs")];
    spec.Linux = Some(linux).into();
    let mut request = agent::CreateContainerRequest::new();
    request.container_id = id.into();
    request.OCI = Some(spec).into();
    request
}

/// The calls about a container that carry its name alone, and the few others
/// that nearly every test makes.
#[derive(Clone)]
pub(crate) struct Calls(pub(crate) AgentServiceClient);

impl Calls {
    pub(crate) async fn create(&self, guest: &Guest, id: &str, args: &[&str]) {
        let request = container(guest, id, args);
        self.0.create_container(context(), &request).await.unwrap();
    }

    pub(crate) async fn start(&self, id: &str) -> ttrpc::Result<()> {
        let mut request = agent::StartContainerRequest::new();
        request.container_id = id.into();
        self.0.start_container(context(), &request).await.map(drop)
    }

    pub(crate) async fn run(&self, guest: &Guest, id: &str, args: &[&str]) {
        self.create(guest, id, args).await;
        self.start(id).await.unwrap();
    }

    pub(crate) async fn remove(&self, id: &str) -> ttrpc::Result<()> {
        let mut request = agent::RemoveContainerRequest::new();
        request.container_id = id.into();
        self.0.remove_container(context(), &request).await.map(drop)
    }

    pub(crate) async fn exec(&self, id: &str, exec: &str, args: &[&str]) -> ttrpc::Result<()> {
        let mut request = agent::ExecProcessRequest::new();
        request.container_id = id.into();
        request.exec_id = exec.into();
        request.process = Some(process(args)).into();
        self.0.exec_process(context(), &request).await.map(drop)
    }

    pub(crate) async fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<i32> {
        let mut request = agent::WaitProcessRequest::new();
        request.container_id = id.into();
        request.exec_id = exec.into();
        let reply = self.0.wait_process(context(), &request).await?;
        Ok(reply.status)
    }

    pub(crate) async fn signal(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let mut request = agent::SignalProcessRequest::new();
        request.container_id = id.into();
        request.exec_id = exec.into();
        request.signal = signal;
        self.0.signal_process(context(), &request).await.map(drop)
    }

    pub(crate) async fn read(&self, id: &str, exec: &str, len: u32) -> ttrpc::Result<Vec<u8>> {
        let reply = self.0.read_stdout(context(), &stream(id, exec, len)).await;
        Ok(reply?.data)
    }

    pub(crate) async fn read_stderr(&self, id: &str, exec: &str) -> ttrpc::Result<Vec<u8>> {
        let reply = self.0.read_stderr(context(), &stream(id, exec, 4096)).await;
        Ok(reply?.data)
    }

    pub(crate) async fn write(&self, id: &str, exec: &str, data: &[u8]) -> ttrpc::Result<u32> {
        let mut request = agent::WriteStreamRequest::new();
        request.container_id = id.into();
        request.exec_id = exec.into();
        request.data = data.into();
        let reply = self.0.write_stdin(context(), &request).await?;
        Ok(reply.len)
    }

    /// Everything a process says, and its exit status.
    pub(crate) async fn output(&self, id: &str, exec: &str) -> (String, i32) {
        let mut said = Vec::new();
        loop {
            let data = self.read(id, exec, 4096).await.unwrap();
            if data.is_empty() {
                break;
            }
            said.extend(data);
        }
        let status = self.wait(id, exec).await.unwrap();
        (String::from_utf8(said).unwrap(), status)
    }

    /// What a script says in a container; it must succeed.
    pub(crate) async fn say(&self, id: &str, exec: &str, script: &str) -> String {
        self.exec(id, exec, &["sh", "-c", script]).await.unwrap();
        let (said, status) = self.output(id, exec).await;
        assert_eq!(status, 0, "{said}");
        said
    }
}

fn stream(id: &str, exec: &str, len: u32) -> agent::ReadStreamRequest {
    let mut request = agent::ReadStreamRequest::new();
    request.container_id = id.into();
    request.exec_id = exec.into();
    request.len = len;
    request
}
