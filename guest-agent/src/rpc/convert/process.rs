//! Processes: exec, signal, wait and the streams by request.

use super::container::container_id;
use super::{ConvertError, invalid, refuse};
use crate::service::process::{
    CloseStdin, ExecProcess, ProcessName, ReadStream, ResizeTerminal, SignalProcess, WaitProcess,
    WriteStdin,
};
use guest_runtime::container::{Capability, CapabilitySets, ProcessSpec, RlimitSpec, UserSpec};
use guest_runtime::process::WindowSize;
use protocols::wire::agent;

impl TryFrom<agent::ExecProcessRequest> for ExecProcess {
    type Error = ConvertError;

    fn try_from(request: agent::ExecProcessRequest) -> Result<Self, ConvertError> {
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        refuse(
            ports.iter().any(|port| *port != 0),
            "passing of stdio (ports)",
        )?;
        let process = request.process.into_option();
        let process = process.ok_or(ConvertError::Missing { field: "process" })?;
        Ok(Self {
            container: container_id(&request.container_id)?,
            exec: request
                .exec_id
                .parse()
                .map_err(invalid("exec_id", &request.exec_id))?,
            inherits_capabilities: process.Capabilities.is_none(),
            process: process_from_wire(process)?,
        })
    }
}

impl TryFrom<agent::SignalProcessRequest> for SignalProcess {
    type Error = ConvertError;

    fn try_from(request: agent::SignalProcessRequest) -> Result<Self, ConvertError> {
        Ok(Self {
            signal: i32::try_from(request.signal)
                .map_err(invalid("signal", &request.signal.to_string()))?,
            name: name(&request.container_id, request.exec_id)?,
        })
    }
}

impl TryFrom<agent::WaitProcessRequest> for WaitProcess {
    type Error = ConvertError;

    fn try_from(request: agent::WaitProcessRequest) -> Result<Self, ConvertError> {
        name(&request.container_id, request.exec_id).map(Self)
    }
}

impl TryFrom<agent::CloseStdinRequest> for CloseStdin {
    type Error = ConvertError;

    fn try_from(request: agent::CloseStdinRequest) -> Result<Self, ConvertError> {
        name(&request.container_id, request.exec_id).map(Self)
    }
}

impl TryFrom<agent::ReadStreamRequest> for ReadStream {
    type Error = ConvertError;

    fn try_from(request: agent::ReadStreamRequest) -> Result<Self, ConvertError> {
        Ok(Self {
            limit: usize::try_from(request.len)
                .map_err(invalid("len", &request.len.to_string()))?,
            name: name(&request.container_id, request.exec_id)?,
        })
    }
}

impl TryFrom<agent::WriteStreamRequest> for WriteStdin {
    type Error = ConvertError;

    fn try_from(request: agent::WriteStreamRequest) -> Result<Self, ConvertError> {
        Ok(Self {
            name: name(&request.container_id, request.exec_id)?,
            data: request.data,
        })
    }
}

impl TryFrom<agent::TtyWinResizeRequest> for ResizeTerminal {
    type Error = ConvertError;

    fn try_from(request: agent::TtyWinResizeRequest) -> Result<Self, ConvertError> {
        Ok(Self {
            size: window_size(request.row, request.column)?,
            name: name(&request.container_id, request.exec_id)?,
        })
    }
}

fn name(container: &str, exec: String) -> Result<ProcessName, ConvertError> {
    let container = container_id(container)?;
    Ok(ProcessName { container, exec })
}

fn window_size(rows: u32, columns: u32) -> Result<WindowSize, ConvertError> {
    Ok(WindowSize {
        rows: u16::try_from(rows).map_err(invalid("row", &rows.to_string()))?,
        columns: u16::try_from(columns).map_err(invalid("column", &columns.to_string()))?,
    })
}

pub(super) fn process_from_wire(process: agent::Process) -> Result<ProcessSpec, ConvertError> {
    if process.Args.is_empty() {
        return Err(ConvertError::Missing {
            field: "process.Args",
        });
    }
    let user = process.User.into_option().unwrap_or_default();
    let size = process.ConsoleSize.into_option();
    let console_size = size
        .filter(|size| size.Height != 0 || size.Width != 0)
        .map(|size| window_size(size.Height, size.Width))
        .transpose()?;
    let adjustment = process.OOMScoreAdj;
    Ok(ProcessSpec {
        terminal: process.Terminal,
        console_size,
        user: UserSpec {
            uid: user.UID,
            gid: user.GID,
            additional_gids: user.AdditionalGids,
        },
        args: process.Args,
        program: None,
        env: process.Env,
        cwd: if process.Cwd.is_empty() {
            "/".into()
        } else {
            process.Cwd.into()
        },
        capabilities: capabilities(process.Capabilities.into_option().unwrap_or_default())?,
        rlimits: rlimits(process.Rlimits)?,
        no_new_privileges: process.NoNewPrivileges,
        // To be held to nothing is no request.
        apparmor_profile: Some(process.ApparmorProfile)
            .filter(|name| !["", "unconfined"].contains(&name.as_str())),
        selinux_label: (!process.SelinuxLabel.is_empty()).then_some(process.SelinuxLabel),
        // Both are the container's.
        seccomp: None,
        vsock: false,
        oom_score_adj: (adjustment != 0)
            .then(|| i32::try_from(adjustment))
            .transpose()
            .map_err(invalid("OOMScoreAdj", &adjustment.to_string()))?,
        // The wire has no field for these.
        umask: None,
        scheduler: None,
        io_priority: None,
    })
}

fn capabilities(sets: agent::LinuxCapabilities) -> Result<CapabilitySets, ConvertError> {
    let parse = |names: Vec<String>| -> Result<Vec<Capability>, ConvertError> {
        names
            .iter()
            .map(|name| name.parse().map_err(invalid("capability", name)))
            .collect()
    };
    Ok(CapabilitySets {
        bounding: parse(sets.Bounding)?,
        effective: parse(sets.Effective)?,
        inheritable: parse(sets.Inheritable)?,
        permitted: parse(sets.Permitted)?,
        ambient: parse(sets.Ambient)?,
    })
}

/// With the usual limit of open files where none is named.
fn rlimits(wanted: Vec<agent::POSIXRlimit>) -> Result<Vec<RlimitSpec>, ConvertError> {
    let mut limits: Vec<RlimitSpec> = wanted.into_iter().map(rlimit).collect::<Result<_, _>>()?;
    let open_files = RlimitSpec::open_files();
    if limits.iter().all(|limit| limit.kind != open_files.kind) {
        limits.push(open_files);
    }
    Ok(limits)
}

fn rlimit(rlimit: agent::POSIXRlimit) -> Result<RlimitSpec, ConvertError> {
    Ok(RlimitSpec {
        kind: rlimit
            .Type
            .parse()
            .map_err(invalid("rlimit", &rlimit.Type))?,
        soft: rlimit.Soft,
        hard: rlimit.Hard,
    })
}
