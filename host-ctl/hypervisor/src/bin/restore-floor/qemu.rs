//! QEMU: all that it is told before the VM is to run waits in its socket when
//! it starts.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use hypervisor::AgentDevice;
use hypervisor::qemu::{Descriptors, HandedFiles, RestoreInput, STATE_FILE, Start, arguments};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{DEADLINE, Failure, Inheritance, Running, Times};

/// What QEMU is told; the state's descriptor goes with it.
const COMMANDS: &str = concat!(
    r#"{"execute":"qmp_capabilities"}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":["#,
    r#"{"capability":"x-ignore-shared","state":true},{"capability":"events","state":true}]}}"#,
    r#"{"execute":"getfd","arguments":{"fdname":"s"}}"#,
    r#"{"execute":"migrate-incoming","arguments":{"uri":"fd:s"}}"#,
    "\n"
);

/// Does the restore once.
pub(super) fn measure(input: &RestoreInput) -> Result<(Running, Times), Failure> {
    let spec = &input.spec;
    let mut inheritance = Inheritance::default();
    let mut inherit = |descriptor: OwnedFd| inheritance.add(descriptor);
    let descriptors = Descriptors {
        monitor: inherit(UnixListener::bind(&spec.monitor)?.into())?,
        console: inherit(UnixListener::bind(&spec.console)?.into())?,
        agent: match &spec.agent {
            AgentDevice::Serial { socket, .. } => {
                Some(inherit(UnixListener::bind(socket)?.into())?)
            }
            AgentDevice::Vsock { .. } | AgentDevice::HybridVsock { .. } => None,
        },
        disks: {
            let disks = spec
                .disks
                .iter()
                .map(|disk| inherit(File::open(&disk.path)?.into()));
            disks.collect::<Result<_, _>>()?
        },
        // A spec with tap devices is refused.
        taps: Vec::new(),
        directories: Vec::new(),
        handed: HandedFiles::default(),
    };
    let arguments = arguments(spec, input.platform, Start::Restore, &descriptors)?;
    let monitor = UnixStream::connect(&spec.monitor)?;
    monitor.set_read_timeout(Some(DEADLINE))?;
    let state = File::open(input.state.join(STATE_FILE))?;
    send_with(&monitor, COMMANDS.as_bytes(), &state)?;

    let begun = Instant::now();
    let vm = Running(start(&input.program, &arguments)?);
    let mut lines = BufReader::new(monitor.try_clone()?);
    wait_for(&mut lines, "\"QMP\"")?;
    let greeted = begun.elapsed();
    wait_for(&mut lines, "\"completed\"")?;
    let loaded = begun.elapsed();
    (&monitor).write_all(b"{\"execute\":\"cont\"}\n")?;
    wait_for(&mut lines, "\"return\"")?;
    Ok((vm, [greeted, loaded, begun.elapsed()]))
}

fn start(program: &Path, arguments: &[String]) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/");
    command.stdin(Stdio::null()).spawn()
}

fn wait_for(lines: &mut impl BufRead, word: &str) -> Result<(), Failure> {
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        let ended = lines.read_line(&mut line)? == 0;
        if ended || line.contains("\"error\"") {
            return Err(format!("no {word} from qemu: {line}").into());
        }
    }
    Ok(())
}

fn send_with(stream: &UnixStream, bytes: &[u8], file: &File) -> Result<(), Failure> {
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::empty(),
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err("the commands do not fit the socket".into())
    }
}
