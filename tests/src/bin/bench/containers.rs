//! Containers and processes through the agent, against crun doing the same
//! below the same cgroups with the same files, in turns.
//!
//! One side is a client's calls to an agent that runs; the other is what a
//! client of crun does, which is to start it. What is held against the goal is
//! the least that can be asked of crun: `crun run`, one process for all of a
//! container's life. The four calls that a shim makes of it (create, start,
//! state, delete) are printed beside.

use super::sizes::{self, START_DEADLINE};
use super::{Failure, Goal, median, program, report};
use agent_client::{AgentClient, ContainerConfig, DEFAULT_CAPABILITIES, ProcessName, Rootfs};
use protocols::{AgentAddress, Link};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// The word by which `bench` knows that it is in namespaces of its own.
pub(super) const WORD: &str = "containers-in-namespaces";
const DEADLINE: Duration = Duration::from_secs(60);
const ROUNDS: usize = 40;
/// Containers whose share of the agent's memory is measured.
const RUNNING: usize = 32;
const CGROUPS: &str = "/sys/fs/cgroup";
/// Both get a /run of their own, and see cgroup v2 where a machine of today has
/// it: crun looks nowhere else.
const PREPARE: &str = "mount -t tmpfs tmpfs /run && \
    if ! [ \"$(stat -fc %T /sys/fs/cgroup)\" = cgroup2fs ]; then mount --bind \"$0\" /sys/fs/cgroup; fi && \
    exec \"$@\"";

/// The figures, taken by this program again in namespaces of its own.
pub(super) fn all() -> Result<(), Failure> {
    let missing = if !rustix::process::geteuid().is_root() {
        Some("it needs root")
    } else if Command::new("crun").arg("--version").output().is_err() {
        Some("crun is not installed")
    } else {
        None
    };
    let Some(cgroups) = hierarchy()?.filter(|_| missing.is_none()) else {
        let why = missing.unwrap_or("no cgroup v2 hierarchy is mounted");
        eprintln!("bench: containers are not compared with crun's: {why}");
        return Ok(());
    };
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", PREPARE])
        .arg(cgroups)
        .arg(std::env::current_exe()?)
        .arg(WORD)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("containers: {status}").into())
    }
}

fn hierarchy() -> Result<Option<PathBuf>, Failure> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let point = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| point.into())
    };
    Ok(mounts.lines().find_map(point))
}

/// In namespaces of its own: the figures.
pub(super) fn measure(runtime: &Runtime) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let rootfs = root(directory.path())?;
    let crun = Crun::new(directory.path(), &rootfs)?;
    let agent = Agent::start(directory.path())?;
    let outcome = runtime.block_on(async {
        let client = agent.client().await?;
        lives(&client, &crun, &rootfs).await?;
        execs(&client, &crun, &rootfs).await?;
        memory(&client, &agent, &rootfs).await
    });
    agent.end()?;
    outcome
}

/// A root file system of busybox; its `true` does nothing else.
fn root(directory: &Path) -> Result<PathBuf, Failure> {
    let root = directory.join("rootfs");
    for name in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for name in ["true", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    Ok(root)
}

fn config(id: String, rootfs: &Path, args: &[&str]) -> ContainerConfig {
    let rootfs = Rootfs::Existing(rootfs.to_string_lossy().into_owned());
    let args = args.iter().map(ToString::to_string).collect();
    ContainerConfig::new(id, rootfs, args)
}

/// A container of /bin/true: made, started, waited for, removed.
async fn lives(client: &AgentClient, crun: &Crun, rootfs: &Path) -> Result<(), Failure> {
    let (mut ours, mut least, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each is not counted.
    for round in 0..=ROUNDS {
        let begun = Instant::now();
        let id = format!("life-{round}");
        let config = config(id.clone(), rootfs, &["/bin/true"]);
        client.create_container(&config, DEADLINE).await?;
        client.start_container(&id, DEADLINE).await?;
        let status = client
            .wait_process(ProcessName::init(&id), DEADLINE)
            .await?;
        client.remove_container(&id, DEADLINE).await?;
        ours.push(milliseconds(begun));
        if status != 0 {
            return Err(format!("/bin/true: status {status}").into());
        }
        let begun = Instant::now();
        crun.call(&["run", "-b"], Some(&crun.brief), &id)?;
        least.push(milliseconds(begun));
        let begun = Instant::now();
        crun.call(&["create", "-b"], Some(&crun.brief), &id)?;
        crun.call(&["start"], None, &id)?;
        crun.call(&["state"], None, &id)?;
        crun.call(&["delete", "--force"], None, &id)?;
        steps.push(milliseconds(begun));
    }
    let [ours, least, steps] = [ours, least, steps].map(|times| median(&times[1..]));
    report("container_ms", ours, "ms", Goal::None);
    report("container_crun_ms", least, "ms", Goal::None);
    report("container_ratio", ours / least, "ratio", Goal::AtMost(1.3));
    report("container_steps_ratio", ours / steps, "ratio", Goal::None);
    Ok(())
}

/// /bin/true in a container that runs, to its end.
async fn execs(client: &AgentClient, crun: &Crun, rootfs: &Path) -> Result<(), Failure> {
    const ID: &str = "execs";
    let config = config(ID.into(), rootfs, &["/bin/sleep", "1000"]);
    client.create_container(&config, DEADLINE).await?;
    client.start_container(ID, DEADLINE).await?;
    crun.call(&["create", "-b"], Some(&crun.long), ID)?;
    crun.call(&["start"], None, ID)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let begun = Instant::now();
        let exec = format!("exec-{round}");
        let process = ProcessName::exec(ID, &exec);
        let args = ["/bin/true"];
        client.exec_process(process, &args, DEADLINE).await?;
        let status = client.wait_process(process, DEADLINE).await?;
        ours.push(milliseconds(begun));
        if status != 0 {
            return Err(format!("/bin/true: status {status}").into());
        }
        let begun = Instant::now();
        crun.run(Command::new("crun").args(["exec", ID, "/bin/true"]))?;
        theirs.push(milliseconds(begun));
    }
    client.remove_container(ID, DEADLINE).await?;
    crun.call(&["delete", "--force"], None, ID)?;
    let [ours, theirs] = [ours, theirs].map(|times| median(&times[1..]));
    report("exec_ms", ours, "ms", Goal::None);
    report("exec_crun_ms", theirs, "ms", Goal::None);
    report("exec_ratio", ours / theirs, "ratio", Goal::AtMost(1.0));
    Ok(())
}

/// What the agent holds for each container that runs.
async fn memory(client: &AgentClient, agent: &Agent, rootfs: &Path) -> Result<(), Failure> {
    let resident = || sizes::status(agent.child.id(), "VmRSS:");
    let before = resident()?;
    for number in 0..RUNNING {
        let id = format!("running-{number}");
        let config = config(id.clone(), rootfs, &["/bin/sleep", "1000"]);
        client.create_container(&config, DEADLINE).await?;
        client.start_container(&id, DEADLINE).await?;
    }
    let each = (resident()? - before) / RUNNING as f64;
    for number in 0..RUNNING {
        let id = format!("running-{number}");
        client.remove_container(&id, DEADLINE).await?;
    }
    report("container_rss", each / 1024.0, "KB", Goal::AtMost(60.0));
    Ok(())
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// The agent as an ordinary process.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(directory: &Path) -> Result<Self, Failure> {
        let socket = directory.join("agent.sock");
        let cgroup = Path::new(CGROUPS).join(format!("tardigrade-bench-{}", std::process::id()));
        let mut child = Command::new(program("GUEST_AGENT")?)
            .arg("--server")
            .arg(format!("unix://{}", socket.display()))
            .arg("--cgroup")
            .arg(cgroup)
            .stderr(Stdio::null())
            .spawn()?;
        sizes::wait_for(&mut child, &socket)?;
        Ok(Self { child, socket })
    }

    async fn client(&self) -> Result<AgentClient, Failure> {
        let address: AgentAddress = format!("unix://{}", self.socket.display()).parse()?;
        let link = Link::connect(address, START_DEADLINE).await?;
        Ok(AgentClient::connect(&link, START_DEADLINE).await?)
    }

    /// It removes its cgroup and its files.
    fn end(mut self) -> Result<(), Failure> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the agent's end: {status}").into())
        }
    }
}

/// Bundles like the agent's containers.
struct Crun {
    brief: PathBuf,
    long: PathBuf,
}

impl Crun {
    fn new(directory: &Path, rootfs: &Path) -> Result<Self, Failure> {
        let bundle = |name: &str, args: &[&str], devices: bool| -> Result<PathBuf, Failure> {
            let bundle = directory.join(name);
            fs::create_dir_all(&bundle)?;
            let spec = serde_json::to_vec(&spec(rootfs, args, devices))?;
            fs::write(bundle.join("config.json"), spec)?;
            Ok(bundle)
        };
        let make = |devices| {
            Ok::<_, Failure>(Self {
                brief: bundle("brief", &["/bin/true"], devices)?,
                long: bundle("long", &["/bin/sleep", "1000"], devices)?,
            })
        };
        let crun = make(true)?;
        if crun.call(&["run", "-b"], Some(&crun.brief), "try").is_ok() {
            return Ok(crun);
        }
        // It lifts its limit of locked memory for the program, which takes
        // CAP_SYS_RESOURCE; the agent needs none.
        eprintln!("bench: crun cannot control devices here, and is measured without");
        make(false)
    }

    fn call(&self, words: &[&str], bundle: Option<&Path>, id: &str) -> Result<(), Failure> {
        let mut command = Command::new("crun");
        command.arg("--cgroup-manager=cgroupfs").args(words);
        if let Some(bundle) = bundle {
            command.arg(bundle);
        }
        self.run(command.arg(id))
    }

    fn run(&self, command: &mut Command) -> Result<(), Failure> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.stderr(Stdio::null()).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{command:?}: {status}").into())
        }
    }
}

/// What `agent_client` asks the agent for, in the specification's own form.
fn spec(rootfs: &Path, args: &[&str], devices: bool) -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let namespaces = ["pid", "mount", "ipc", "cgroup"].map(|kind| json!({"type": kind}));
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": DEFAULT_CAPABILITIES,
                "effective": DEFAULT_CAPABILITIES,
                "permitted": DEFAULT_CAPABILITIES,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
        },
        "root": {"path": rootfs, "readonly": false},
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
                "/sys/devices/virtual/powercap", "/sys/firmware",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    });
    if devices {
        spec["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    }
    spec
}
