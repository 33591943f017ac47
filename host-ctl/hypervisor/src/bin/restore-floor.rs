//! The least a restore can take: QEMU started with the driver's command line,
//! a state loaded, the VM resumed, and nothing else. No session, no checks, no
//! record, no runtime. What the driver takes is measured against it.
//!
//! `restore-floor INPUT`, INPUT being a [`RestoreInput`] as JSON with paths of
//! its own. Prints, in microseconds since before the fork: when QEMU greeted,
//! when the state was loaded, when the VM ran. The VM is killed then.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hypervisor::AgentDevice;
use hypervisor::qemu::{Descriptors, RestoreInput, STATE_FILE, Start, arguments};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// How long QEMU may be silent before the measurement is given up.
const DEADLINE: Duration = Duration::from_secs(30);

/// What QEMU is told; the state's descriptor goes with it.
const COMMANDS: &str = concat!(
    r#"{"execute":"qmp_capabilities"}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":["#,
    r#"{"capability":"x-ignore-shared","state":true},{"capability":"events","state":true}]}}"#,
    r#"{"execute":"getfd","arguments":{"fdname":"s"}}"#,
    r#"{"execute":"migrate-incoming","arguments":{"uri":"fd:s"}}"#,
    "\n"
);

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: restore-floor INPUT")?;
    let input: RestoreInput = serde_json::from_reader(File::open(path)?)?;
    let [greeted, loaded, ran] = measure(&input)?.map(|time| time.as_micros());
    println!("greeting_us={greeted} incoming_us={loaded} cont_us={ran}");
    Ok(())
}

/// Does the restore once.
fn measure(input: &RestoreInput) -> Result<[Duration; 3], Box<dyn Error>> {
    let spec = &input.spec;
    let mut inherited = Vec::new();
    let mut inherit = |descriptor: OwnedFd| {
        fcntl_setfd(&descriptor, FdFlags::empty())?;
        let number = descriptor.as_raw_fd();
        inherited.push(descriptor);
        Ok::<_, std::io::Error>(number)
    };
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
    };
    let arguments = arguments(spec, input.platform, Start::Restore, &descriptors)?;
    let monitor = UnixStream::connect(&spec.monitor)?;
    monitor.set_read_timeout(Some(DEADLINE))?;
    let state = File::open(input.state.join(STATE_FILE))?;
    send_with(&monitor, COMMANDS.as_bytes(), &state)?;

    let begun = Instant::now();
    let _vm = Running(start(&input.program, &arguments)?);
    let mut lines = BufReader::new(monitor.try_clone()?);
    wait_for(&mut lines, "\"QMP\"")?;
    let greeted = begun.elapsed();
    wait_for(&mut lines, "\"completed\"")?;
    let loaded = begun.elapsed();
    (&monitor).write_all(b"{\"execute\":\"cont\"}\n")?;
    wait_for(&mut lines, "\"return\"")?;
    Ok([greeted, loaded, begun.elapsed()])
}

fn start(program: &Path, arguments: &[String]) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/");
    command.stdin(Stdio::null()).spawn()
}

/// A VM, until this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing is left to be done about a VM that can't be killed.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn wait_for(lines: &mut impl BufRead, word: &str) -> Result<(), Box<dyn Error>> {
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

fn send_with(stream: &UnixStream, bytes: &[u8], file: &File) -> Result<(), Box<dyn Error>> {
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
