//! What a Lifecycle request amounts to in terms of the Kata agent API. A
//! policy that forbids a thing there must not find it done by the new way, so
//! the old rules are asked as well, about the old request that comes closest.
//!
//! | request | is also asked about |
//! |---|---|
//! | Exec | ExecProcess, ReadStream, WriteStream |
//! | Copy into the guest | CopyFile (here for the path; again for each entry) |
//! | Copy out, Logs | ReadStream |
//! | Forward | ReadStream, WriteStream |
//! | Events | GetOOMEvent |
//! | Release that corrects the clock | SetGuestDateTime |
//! | Thaw | ReseedRandomDev, SetGuestDateTime, UpdateInterface for each (for a nameless one if there is none), UpdateRoutes; AddARPNeighbors if some are given |

use policy::Question;
use protobuf::MessageField;
use protocols::wire::{agent, lifecycle, types};

use crate::copy_file;
use crate::input::InputError;
use crate::request::question;

type Questions = Result<Vec<Question>, InputError>;

/// Stands for the exec id the agent will pick. No process can have it, ids
/// begin with a letter or a digit; an empty one would name the init process,
/// whose streams a policy may well leave open.
const UNNAMED_EXEC: &str = "-";

const NANOS_PER_SECOND: i64 = 1_000_000_000;
const NANOS_PER_MICRO: i64 = 1_000;

pub(crate) fn of_exec(request: &lifecycle::ExecRequest) -> Questions {
    let user = request.user.as_ref().map(|user| agent::User {
        UID: user.uid,
        GID: user.gid,
        ..Default::default()
    });
    let console = request.terminal.then(|| agent::Box {
        Height: request.rows,
        Width: request.columns,
        ..Default::default()
    });
    let process = agent::Process {
        Terminal: request.terminal,
        ConsoleSize: console.into(),
        User: user.into(),
        Args: request.args.clone(),
        Env: request.env.clone(),
        Cwd: request.cwd.clone(),
        ..Default::default()
    };
    let exec = agent::ExecProcessRequest {
        container_id: request.container_id.clone(),
        exec_id: request.exec_id.clone(),
        process: MessageField::some(process),
        ..Default::default()
    };
    let exec_id = match request.exec_id.as_str() {
        "" => UNNAMED_EXEC,
        exec_id => exec_id,
    };
    Ok(vec![
        question(&exec)?,
        read(&request.container_id, exec_id)?,
        write(&request.container_id, exec_id)?,
    ])
}

pub(crate) fn of_copy(request: &lifecycle::CopyRequest) -> Questions {
    if !request.into_guest {
        return Ok(vec![read(&request.container_id, "")?]);
    }
    // CopyFile names files as the guest sees them; there a container's files
    // are below its rootfs.
    let path = match request.container_id.as_str() {
        "" => request.path.clone(),
        container => format!(
            "/run/kata-containers/{container}/rootfs/{}",
            request.path.trim_start_matches('/')
        ),
    };
    let copy = agent::CopyFileRequest {
        path,
        file_mode: copy_file::regular(0o600),
        ..Default::default()
    };
    Ok(vec![question(&copy)?])
}

pub(crate) fn of_forward(request: &lifecycle::ForwardRequest) -> Questions {
    Ok(vec![
        read(&request.container_id, "")?,
        write(&request.container_id, "")?,
    ])
}

pub(crate) fn of_logs(request: &lifecycle::LogsRequest) -> Questions {
    Ok(vec![read(&request.container_id, "")?])
}

pub(crate) fn of_events(_: &lifecycle::EventsRequest) -> Questions {
    Ok(vec![question(&agent::GetOOMEventRequest::default())?])
}

pub(crate) fn of_thaw(request: &lifecycle::ThawRequest) -> Questions {
    let mut questions = vec![
        question(&agent::ReseedRandomDevRequest {
            data: request.entropy.clone(),
            ..Default::default()
        })?,
        set_clock(request.host_realtime_nanos)?,
    ];
    // What is not given is removed: that takes the same rules.
    let network = request.network.clone().unwrap_or_default();
    let mut interfaces = network.interfaces.clone();
    if interfaces.is_empty() {
        interfaces.push(types::Interface::default());
    }
    for interface in interfaces {
        questions.push(question(&agent::UpdateInterfaceRequest {
            interface: MessageField::some(interface),
            ..Default::default()
        })?);
    }
    questions.push(question(&agent::UpdateRoutesRequest {
        routes: MessageField::some(agent::Routes {
            Routes: network.routes.clone(),
            ..Default::default()
        }),
        ..Default::default()
    })?);
    if !network.neighbors.is_empty() {
        questions.push(question(&agent::AddARPNeighborsRequest {
            neighbors: MessageField::some(agent::ARPNeighbors {
                ARPNeighbors: network.neighbors.clone(),
                ..Default::default()
            }),
            ..Default::default()
        })?);
    }
    Ok(questions)
}

pub(crate) fn of_release(request: &lifecycle::ReleaseRequest) -> Questions {
    match request.corrected_realtime_nanos {
        0 => Ok(Vec::new()),
        nanos => Ok(vec![set_clock(nanos)?]),
    }
}

fn set_clock(realtime_nanos: i64) -> Result<Question, InputError> {
    question(&agent::SetGuestDateTimeRequest {
        Sec: realtime_nanos.div_euclid(NANOS_PER_SECOND),
        Usec: realtime_nanos.rem_euclid(NANOS_PER_SECOND) / NANOS_PER_MICRO,
        ..Default::default()
    })
}

fn read(container_id: &str, exec_id: &str) -> Result<Question, InputError> {
    question(&agent::ReadStreamRequest {
        container_id: container_id.to_string(),
        exec_id: exec_id.to_string(),
        ..Default::default()
    })
}

fn write(container_id: &str, exec_id: &str) -> Result<Question, InputError> {
    question(&agent::WriteStreamRequest {
        container_id: container_id.to_string(),
        exec_id: exec_id.to_string(),
        ..Default::default()
    })
}
