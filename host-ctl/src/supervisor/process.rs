//! The supervisor's own process: its first task (a boot, a clone or an
//! adoption), the report of how that went, and then its service.

use super::line::{self, LineError};
use super::make::{Ready, make, take_back};
use super::order::{Order, Outcome};
use super::server::{ServeError, Sockets, Supervised};
use crate::config::{ConfigError, Paths, SandboxId};
use crate::host::{
    LockError, ProcessIdentity, RunDirectory, RunDirectoryError, Stage, explain, kill_all,
};
use crate::sandbox::agent::destination;
use crate::sandbox::limits::give_back;
use crate::sandbox::link::AgentLink;
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::state::State;
use hypervisor::{Deadlines, VmState};
use rustix::io::Errno;
use std::fs::OpenOptions;
use std::future::pending;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{BufReader, Interest};
use tokio::net::unix::pipe;
use tokio::time::timeout;

/// How long whoever started us may take to give its order, and to take our
/// report.
const STARTER_DEADLINE: Duration = Duration::from_secs(30);
/// How long an adoption waits for the agent before it reports: a paused VM's
/// does not answer, and is adopted all the same.
const REDIAL_DEADLINE: Duration = Duration::from_secs(5);
/// How long a killed VMM may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Why a supervisor ended early. What a client can understand is reported to
/// it instead.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// No state root.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Standard streams are no pipes, or the runtime does not start.
    #[error("{call}")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No order that can be understood.
    #[error("read the order")]
    Order(#[source] LineError),
    /// Nobody gave an order, or took the report, in time.
    #[error("{0}: the starter did not answer")]
    Starter(&'static str),
    /// The report could not be handed over; the sandbox was taken back.
    #[error("report to the starter")]
    Report(#[source] LineError),
    /// The service ended.
    #[error("serve")]
    Serve(#[from] ServeError),
}

/// The life of a supervisor process, with its order on standard input and its
/// report on standard output.
///
/// # Errors
/// Any [`SuperviseError`]; to be written to standard error, which is the
/// sandbox's log by then.
pub fn supervise(adopt: Option<SandboxId>) -> Result<(), SuperviseError> {
    // A session of our own: no terminal's signals. Fails only for one that
    // leads its group already, started by hand.
    let _ = rustix::process::setsid();
    // Else it would be called "exe", after the link it was started by.
    let _ = rustix::thread::set_name(c"host-ctl");
    let paths = Paths::from_environment()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    runtime.block_on(async {
        match adopt {
            Some(id) => adopt_and_serve(&paths, &id).await,
            None => make_and_serve(&paths).await,
        }
    })
}

async fn make_and_serve(paths: &Paths) -> Result<(), SuperviseError> {
    let order = read_order().await?;
    match make(paths, order, pin!(starter_gone())).await {
        Err(reason) => report(&Outcome::Failed { reason }).await,
        Ok(Ready {
            mut supervised,
            sockets,
            handover,
        }) => match report(&Outcome::HandedOver { handover }).await {
            Ok(()) => Ok(supervised.serve(sockets).await?),
            Err(error) => {
                // Whoever asked is gone and knows no name to ask for: a
                // sandbox that nobody can miss is taken back. Should we die in
                // the middle of that, a sweep goes on.
                supervised.record.head.stage = Stage::Ending;
                let _ = supervised.directory.write_record(&supervised.record);
                if supervised.vm.kill().await.is_ok() {
                    drop(sockets);
                    take_back(supervised.directory, supervised.record).await;
                }
                Err(error)
            }
        },
    }
}

async fn adopt_and_serve(paths: &Paths, id: &SandboxId) -> Result<(), SuperviseError> {
    match adopt(paths, id).await {
        Err(outcome) => report(&outcome).await,
        Ok((supervised, sockets)) => {
            // The VM needs a supervisor, whether or not the client waits.
            let _ = report(&Outcome::Adopted).await;
            Ok(supervised.serve(sockets).await?)
        }
    }
}

/// Takes over the VM of a sandbox whose supervisor died.
async fn adopt(paths: &Paths, id: &SandboxId) -> Result<(Supervised, Sockets), Outcome> {
    let directory = match RunDirectory::open(paths, id, "supervise") {
        Ok(directory) => directory,
        Err(RunDirectoryError::Lock(LockError::Held { .. })) => return Err(Outcome::Owned),
        Err(error) => return Err(failed(&error)),
    };
    log_to(&directory.paths().supervisor_log());
    let mut record = SandboxRecord::read(paths, id).map_err(|error| failed(&error))?;
    let has_ended = record.state != State::Stopped && record.present_state() == State::Stopped;
    // The guest of one that is being saved is frozen for a save that nobody will
    // end.
    if has_ended || record.state == State::Saved {
        for killed in kill_all(&record.head.processes(), KILL_DEADLINE) {
            killed.map_err(|error| failed(&error))?;
        }
        record.set_exit("its VMM ended while nobody watched".to_owned());
        // What could not be given back stays in the record, for a sweep.
        let _ = give_back(&mut record.head).await;
        directory
            .write_record(&record)
            .map_err(|error| failed(&error))?;
    }
    // A record from before it was kept there: a save must know it.
    if let Some(vm) = record.vm.as_mut().filter(|vm| vm.memory_mib == 0) {
        vm.memory_mib = record.spec.memory_mib;
    }
    let recorded = match (&record.vm, record.state) {
        (Some(vm), State::Running | State::Paused) => vm,
        (_, state) => {
            return Err(Outcome::Failed {
                reason: format!("is {state} and cannot be supervised"),
            });
        }
    };
    let vm = hypervisor::adopt(recorded, Deadlines::default())
        .await
        .map_err(|error| failed(&error))?;
    let info = vm.info().await.map_err(|error| failed(&error))?;
    record.set_state(match info.state {
        VmState::Paused => State::Paused,
        _ => State::Running,
    });
    record.head.supervisor = Some(ProcessIdentity::current().map_err(|error| failed(&error))?);
    let link = AgentLink::keep(destination(&vm.record()), None);
    // Without an agent the sandbox can still be looked at and stopped.
    let _ = link.handle().ready(REDIAL_DEADLINE).await;
    let sockets = Sockets::bind(&directory).map_err(|error| failed(&error))?;
    directory
        .write_record(&record)
        .map_err(|error| failed(&error))?;
    let supervised = Supervised {
        paths: paths.clone(),
        vm: vm.into(),
        link,
        console: None,
        directory,
        record,
    };
    Ok((supervised, sockets))
}

fn failed(error: &dyn std::error::Error) -> Outcome {
    Outcome::Failed {
        reason: explain(error),
    }
}

async fn read_order() -> Result<Order, SuperviseError> {
    let stdin = rustix::io::dup(io::stdin()).map_err(system_errno("dup stdin"))?;
    let stdin = pipe::Receiver::from_owned_fd(stdin).map_err(system("read stdin"))?;
    let mut stdin = BufReader::new(stdin);
    timeout(STARTER_DEADLINE, line::read(&mut stdin))
        .await
        .map_err(|_| SuperviseError::Starter("read the order"))?
        .map_err(SuperviseError::Order)?
        .ok_or(SuperviseError::Order(LineError::Cut))
}

/// Resolves when nobody is left to take the report: a sandbox that is made for
/// nobody is not made to its end.
async fn starter_gone() {
    let stdout = rustix::io::dup(io::stdout()).map_err(io::Error::from);
    // With doubt about it the report will tell.
    let Ok(stdout) = stdout.and_then(pipe::Sender::from_owned_fd) else {
        return pending().await;
    };
    // The error state of a pipe is that it has no reader (poll(2)).
    if stdout.ready(Interest::ERROR).await.is_err() {
        pending::<()>().await;
    }
}

/// Hands the outcome over and lets go of the starter: from here on nothing of
/// it is held open.
async fn report(outcome: &Outcome) -> Result<(), SuperviseError> {
    let stdout = rustix::io::dup(io::stdout()).map_err(system_errno("dup stdout"))?;
    let mut stdout = pipe::Sender::from_owned_fd(stdout).map_err(system("write stdout"))?;
    timeout(STARTER_DEADLINE, line::write(&mut stdout, outcome))
        .await
        .map_err(|_| SuperviseError::Starter("report"))?
        .map_err(SuperviseError::Report)?;
    drop(stdout);
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(system("open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(system_errno("dup2 stdin"))?;
    rustix::stdio::dup2_stdout(&null).map_err(system_errno("dup2 stdout"))
}

/// Sends standard error to a file. One that cannot be opened leaves it where
/// it is: nothing depends on it.
pub(super) fn log_to(path: &Path) {
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path);
    if let Ok(log) = opened {
        let _ = rustix::stdio::dup2_stderr(&log);
    }
}

fn system(call: &'static str) -> impl FnOnce(io::Error) -> SuperviseError {
    move |source| SuperviseError::System { call, source }
}

fn system_errno(call: &'static str) -> impl FnOnce(Errno) -> SuperviseError {
    move |source| system(call)(source.into())
}
