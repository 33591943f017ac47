//! The agent's start: configuration, policy, service, transports; then it
//! serves until the sandbox is destroyed.

use super::configuration::{Configuration, DEFAULT_POLICY};
use crate::rpc;
use crate::service::Agent;
use crate::service::identity::{IdentityStore, random_hex};
use crate::service::memory_agent::MemoryAgent;
use authz::Gate;
use guest_runtime::cgroup::{self, WorkloadCgroup};
use guest_runtime::clock;
use guest_runtime::container::Launcher;
use guest_runtime::network::InterfaceSpec;
use policy::{Policy, RegoPolicy};
use protocols::port;
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use slog::{Drain, Logger, error, info, o};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, Service};

/// The word PID 1 starts the agent with.
pub(crate) const AGENT_WORD: &str = "agent";
/// Where PID 1 mounts cgroup v2.
const HIERARCHY: &str = "/sys/fs/cgroup";
/// The one cgroup that all workload lives below.
const WORKLOAD_CGROUP: &str = "/sys/fs/cgroup/tardigrade";
const IDENTITY_DIRECTORY: &str = "/run/tardigrade";
/// Connections accepted and not yet served; more wait in the transport.
const BACKLOG: usize = 16;
/// How long threads of ours may take to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// The agent is the last to be killed when memory runs out, proc(5).
const OOM_SCORE_ADJ: &str = "-1000";

/// Runs the agent: `role` is [`AGENT_WORD`] inside a VM, else the first of the
/// command line's arguments.
pub(crate) fn run(role: Option<OsString>, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let in_guest = role.as_deref() == Some(AGENT_WORD.as_ref());
    let text = |argument: OsString| argument.to_string_lossy().into_owned();
    let configuration = if in_guest {
        match std::fs::read_to_string("/proc/cmdline") {
            Ok(line) => Configuration::from_command_line(&line),
            Err(error) => {
                eprintln!("guest-agent: read /proc/cmdline: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        let arguments = role.into_iter().chain(arguments).map(text);
        Configuration::from_arguments(arguments, |name| std::env::var(name).ok())
    };
    let configuration = match configuration {
        Ok(configuration) => configuration,
        Err(error) => {
            eprintln!("guest-agent: {error}");
            return ExitCode::from(2);
        }
    };
    let log = logger(configuration.log_level);
    // One thread for all requests: the ttrpc server reorders stream data on a
    // multi-thread runtime. What blocks goes to threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = runtime.and_then(|runtime| {
        let served = runtime.block_on(serve(&configuration, &log));
        // A thread stuck in a dead file system does not keep the agent.
        runtime.shutdown_timeout(SHUTDOWN_DEADLINE);
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(log, "the agent cannot serve"; "error" => %error);
            ExitCode::FAILURE
        }
    }
}

/// One JSON object a line on stderr, which is the console inside a VM.
fn logger(level: slog::Level) -> Logger {
    let drain = slog_json::Json::new(io::stderr())
        .add_default_keys()
        .build();
    let drain = Mutex::new(slog::LevelFilter::new(drain, level));
    Logger::root(
        drain.ignore_res(),
        o!("name" => "guest-agent", "version" => env!("CARGO_PKG_VERSION")),
    )
}

async fn serve(configuration: &Configuration, log: &Logger) -> io::Result<()> {
    let policy = load_policy(configuration)?;
    info!(log, "starting"; "address" => %configuration.address, "policy" => policy.name());
    // The first reading finds out where the kernel shows its clock; a clone
    // that wakes up has to know.
    let _ = clock::realtime_nanos();
    let gate = Arc::new(Gate::new(policy));
    let agent = Arc::new(new_agent(configuration, log.clone())?);
    if configuration.in_guest {
        let loopback = InterfaceSpec {
            name: "lo".into(),
            ..InterfaceSpec::default()
        };
        let up = agent.network.update_interface(&loopback).await;
        up.map_err(io::Error::other)?;
        agent.start_memory_agent();
        agent.watch_for_copies();
    }
    let served = serve_until_the_end(configuration, log, gate, &agent).await;
    if configuration.in_guest {
        return served;
    }
    served.and(leave_nothing(&agent).await)
}

async fn serve_until_the_end(
    configuration: &Configuration,
    log: &Logger,
    gate: Arc<Gate>,
    agent: &Arc<Agent>,
) -> io::Result<()> {
    let (rpc_streams, accepted) = mpsc::channel(BACKLOG);
    let mut server = start_server(rpc::services(gate, agent.clone()), accepted).await?;
    let mut listener = listen(configuration)?;
    info!(log, "serving");
    let end = told_to_end(configuration.in_guest);
    tokio::pin!(end);
    loop {
        let incoming = tokio::select! {
            incoming = listener.accept() => incoming?,
            () = agent.destroyed.notified() => {
                info!(log, "the sandbox was destroyed");
                // The reply is on its way: let the connections drain.
                return server.shutdown().await.map_err(io::Error::other);
            }
            told = &mut end => {
                info!(log, "told to end");
                told?;
                return server.shutdown().await.map_err(io::Error::other);
            }
        };
        match incoming.port {
            port::STREAM => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    // A broken stream concerns its client, who sees it end.
                    let _ = agent.attach(incoming.stream).await;
                });
            }
            _ => {
                if rpc_streams.send(Ok(incoming.stream)).await.is_err() {
                    return Err(io::Error::other("the RPC server has ended"));
                }
            }
        }
    }
}

/// A ttrpc server fed with the streams that come out of `accepted`.
pub(crate) async fn start_server<S>(
    services: HashMap<String, Service>,
    accepted: mpsc::Receiver<io::Result<S>>,
) -> io::Result<Server>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
{
    let accepted = futures::stream::unfold(accepted, |mut accepted| async {
        accepted.recv().await.map(|stream| (stream, accepted))
    });
    let mut server = Server::new()
        .add_listener(Listener::new(Box::pin(accepted)))
        .register_service(services);
    server.start().await.map_err(io::Error::other)?;
    Ok(server)
}

fn listen(configuration: &Configuration) -> io::Result<protocols::Listener> {
    let ports = [port::RPC, port::STREAM];
    protocols::Listener::bind(&configuration.address, &ports, configuration.vsock_peers)
        .map_err(io::Error::other)
}

/// The policy of the configuration, of the image, or the built-in allow-all. A
/// policy that is there and cannot be used is an error, never an allow-all.
fn load_policy(configuration: &Configuration) -> io::Result<Policy> {
    let path = match &configuration.policy_file {
        Some(path) => path.as_path(),
        None if configuration.in_guest && is_there(Path::new(DEFAULT_POLICY))? => {
            Path::new(DEFAULT_POLICY)
        }
        None => return Ok(Policy::AllowAll),
    };
    let source = std::fs::read_to_string(path)?;
    RegoPolicy::from_source(&path.to_string_lossy(), &source)
        .map(Policy::Rego)
        .map_err(io::Error::other)
}

/// A link that leads nowhere is there as well, and what cannot be looked at is
/// not absent.
fn is_there(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn new_agent(configuration: &Configuration, log: Logger) -> io::Result<Agent> {
    if !configuration.in_guest {
        return Ok(Agent {
            launcher: ordinary_launcher(configuration)?,
            log,
            own_network: configuration.own_network,
            ..ordinary_agent()?
        });
    }
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ)?;
    raise_open_files()?;
    let workload = WorkloadCgroup::create(Path::new(WORKLOAD_CGROUP)).map_err(io::Error::other)?;
    let launcher = Launcher::new(workload).map_err(io::Error::other)?;
    let identity = IdentityStore::create(Path::new(IDENTITY_DIRECTORY), true);
    let agent = Agent::new(identity.map_err(io::Error::other)?)?;
    let memory = configuration.memory.clone();
    let memory_agent = memory.enabled.then(|| {
        let (hierarchy, workload) = (Path::new(HIERARCHY), Path::new(WORKLOAD_CGROUP));
        MemoryAgent::open(hierarchy, workload, memory.reclaim, memory.compaction)
    });
    Ok(Agent {
        launcher: Some(Arc::new(launcher)),
        memory_agent,
        log,
        in_guest: true,
        own_network: true,
        ..agent
    })
}

/// The streams of many processes are many descriptors; what the agent starts
/// gets its limit from its spec.
fn raise_open_files() -> io::Result<()> {
    let files = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// An agent that is an ordinary process: it starts no containers and refuses
/// what would change the machine.
pub(crate) fn ordinary_agent() -> io::Result<Agent> {
    let name = random_hex()?;
    let directory = std::env::temp_dir().join(format!("guest-agent-{name}"));
    Agent::new(IdentityStore::create(&directory, false).map_err(io::Error::other)?)
}

/// What starts containers outside a VM: in the cgroup that was named, or in one
/// of its own below the hierarchy, if there is one and it may.
fn ordinary_launcher(configuration: &Configuration) -> io::Result<Option<Arc<Launcher>>> {
    let path = match (&configuration.cgroup, cgroup::hierarchy()) {
        (Some(path), _) => path.clone(),
        (None, Some(hierarchy)) if geteuid().is_root() => {
            hierarchy.join(format!("tardigrade-{}", random_hex()?))
        }
        _ => return Ok(None),
    };
    raise_open_files()?;
    let workload = WorkloadCgroup::create(&path).map_err(io::Error::other)?;
    let launcher = Launcher::new(workload).map_err(io::Error::other)?;
    Ok(Some(Arc::new(launcher)))
}

/// Outside a VM the machine goes on: nothing of the agent is to stay.
async fn leave_nothing(agent: &Agent) -> io::Result<()> {
    if let Some(launcher) = &agent.launcher {
        agent.remove_all().await.map_err(io::Error::other)?;
        let removed = launcher.workload().remove(SHUTDOWN_DEADLINE).await;
        removed.map_err(io::Error::other)?;
    }
    agent.identity.remove()
}

/// What tells an ordinary process to end. Nobody sends it in a VM, where the
/// end of the agent is the end of the machine.
async fn told_to_end(in_guest: bool) -> io::Result<()> {
    if in_guest {
        return std::future::pending().await;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_cannot_be_read_is_not_taken_for_none() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("absent");
        assert!(!is_there(&absent).unwrap());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&absent, &link).unwrap();
        assert!(is_there(&link).unwrap());
        assert!(is_there(&link.join("below")).is_ok_and(|there| !there));
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(is_there(&file.join("below")).is_err());
    }
}
