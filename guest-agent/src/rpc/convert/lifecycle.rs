//! Quiesce, Thaw, Release and the streams of Exec.

use super::{ConvertError, invalid, network, refuse};
use crate::service::identity::{Generation, Identity};
use crate::service::lifecycle::{
    ENTROPY_MINIMUM, Purpose, Quiesce, QuiesceId, Quiesced, Receipt, Release, Released, Step, Thaw,
    ThawFile, ThawOrder, is_thaw_file,
};
use crate::service::secret::Secret;
use crate::service::streams::ExecStream;
use guest_runtime::process::WindowSize;
use protobuf::MessageField;
use protocols::wire::lifecycle as wire;
use std::time::{Duration, Instant};

/// The longest freeze or hook deadline that can be asked for.
const DEADLINE_LIMIT: Duration = Duration::from_secs(600);
/// More entropy than this adds nothing: the kernel's pool holds 256 bits.
const ENTROPY_LIMIT: usize = 4096;
/// HOST_NAME_MAX, gethostname(2).
const HOSTNAME_LIMIT: usize = 64;
const FILE_LIMIT: usize = 64 * 1024;

impl TryFrom<wire::QuiesceRequest> for Quiesce {
    type Error = ConvertError;

    fn try_from(request: wire::QuiesceRequest) -> Result<Self, ConvertError> {
        let purpose = match request.purpose.enum_value() {
            Ok(wire::QuiescePurpose::QUIESCE_PURPOSE_TEMPLATE) => Purpose::Template,
            Ok(wire::QuiescePurpose::QUIESCE_PURPOSE_SUSPEND) => Purpose::Suspend,
            _ => return Err(ConvertError::Missing { field: "purpose" }),
        };
        Ok(Self {
            purpose,
            freeze_timeout: deadline("freeze_timeout_millis", request.freeze_timeout_millis)?,
        })
    }
}

impl TryFrom<wire::ThawRequest> for Thaw {
    type Error = ConvertError;

    fn try_from(mut request: wire::ThawRequest) -> Result<Self, ConvertError> {
        let received = Instant::now();
        let length = request.entropy.len();
        if !(ENTROPY_MINIMUM..=ENTROPY_LIMIT).contains(&length)
            || request.entropy.iter().all(|byte| *byte == 0)
        {
            // The bytes themselves are never shown.
            return Err(ConvertError::Value {
                field: "entropy",
                value: format!("{length} bytes"),
                reason: format!("not {ENTROPY_MINIMUM} to {ENTROPY_LIMIT} fresh bytes"),
            });
        }
        let entropy = Secret::new(std::mem::take(&mut request.entropy));
        Ok(Self {
            order: ThawOrder {
                quiesce_id: QuiesceId(sixteen("quiesce_id", &request.quiesce_id)?),
                generation: Generation(sixteen("generation", &request.generation)?),
                host_realtime_nanos: request.host_realtime_nanos,
                identity: identity(request.identity)?,
                network: network::plan(request.network.unwrap_or_default())?,
                files: files(request.files, &request.dns)?,
            },
            entropy,
            received,
        })
    }
}

impl TryFrom<wire::ReleaseRequest> for Release {
    type Error = ConvertError;

    fn try_from(request: wire::ReleaseRequest) -> Result<Self, ConvertError> {
        Ok(Self {
            generation: Generation(sixteen("generation", &request.generation)?),
            hook_timeout: deadline("hook_timeout_millis", request.hook_timeout_millis)?,
            corrected_realtime_nanos: match request.corrected_realtime_nanos {
                0 => None,
                nanos if nanos > 0 => Some(nanos),
                nanos => {
                    return Err(invalid("corrected_realtime_nanos", &nanos.to_string())(
                        "before the epoch",
                    ));
                }
            },
        })
    }
}

impl TryFrom<wire::ExecRequest> for ExecStream {
    type Error = ConvertError;

    fn try_from(request: wire::ExecRequest) -> Result<Self, ConvertError> {
        if request.args.is_empty() {
            return Err(ConvertError::Missing { field: "args" });
        }
        let parse = |field: &'static str, value: &str| {
            (!value.is_empty())
                .then(|| value.parse().map_err(invalid(field, value)))
                .transpose()
        };
        let exec = (!request.exec_id.is_empty())
            .then(|| {
                let exec = request.exec_id.as_str();
                exec.parse().map_err(invalid("exec_id", exec))
            })
            .transpose()?;
        Ok(Self {
            container: parse("container_id", &request.container_id)?,
            exec,
            args: request.args,
            env: request.env,
            cwd: (!request.cwd.is_empty()).then(|| request.cwd.into()),
            terminal: request.terminal,
            size: size(request.rows, request.columns)?,
            user: request.user.as_ref().map(|user| (user.uid, user.gid)),
            stdin: request.stdin,
        })
    }
}

fn size(rows: u32, columns: u32) -> Result<Option<WindowSize>, ConvertError> {
    if rows == 0 && columns == 0 {
        return Ok(None);
    }
    Ok(Some(WindowSize {
        rows: u16::try_from(rows).map_err(invalid("rows", &rows.to_string()))?,
        columns: u16::try_from(columns).map_err(invalid("columns", &columns.to_string()))?,
    }))
}

fn sixteen(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], ConvertError> {
    let length = format!("{} bytes", bytes.len());
    <[u8; 16]>::try_from(bytes).map_err(|_| ConvertError::Value {
        field,
        value: length,
        reason: "not 16 bytes".into(),
    })
}

fn deadline(field: &'static str, millis: u64) -> Result<Option<Duration>, ConvertError> {
    let deadline = Duration::from_millis(millis);
    if deadline > DEADLINE_LIMIT {
        return Err(ConvertError::Value {
            field,
            value: millis.to_string(),
            reason: format!("more than {} s", DEADLINE_LIMIT.as_secs()),
        });
    }
    Ok((millis > 0).then_some(deadline))
}

/// Every part is needed: a thaw that leaves a name as it was would hand over
/// a twin.
fn identity(identity: MessageField<wire::Identity>) -> Result<Identity, ConvertError> {
    let identity = identity
        .into_option()
        .ok_or(ConvertError::Missing { field: "identity" })?;
    let name = &identity.hostname;
    let is_name = !name.is_empty()
        && name.len() <= HOSTNAME_LIMIT
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_machine_id =
        identity.machine_id.len() == 32 && identity.machine_id.bytes().all(is_digit);
    let is_uuid = identity.boot_id.len() == 36
        && identity
            .boot_id
            .bytes()
            .enumerate()
            .all(|(place, byte)| match place {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => is_digit(byte),
            });
    for (field, value, valid) in [
        ("hostname", name, is_name),
        ("machine_id", &identity.machine_id, is_machine_id),
        ("boot_id", &identity.boot_id, is_uuid),
    ] {
        if !valid {
            return Err(invalid(field, value)("not well formed"));
        }
    }
    Ok(Identity {
        hostname: identity.hostname,
        machine_id: identity.machine_id,
        boot_id: identity.boot_id,
    })
}

/// Only listed paths; name servers become the file they are read from.
fn files(files: Vec<wire::GuestFile>, dns: &[String]) -> Result<Vec<ThawFile>, ConvertError> {
    let mut out = Vec::with_capacity(files.len() + 1);
    for file in files {
        if !is_thaw_file(&file.path) {
            return Err(invalid("files", &file.path)("not a path a thaw may write"));
        }
        refuse(!matches!(file.mode, 0 | 0o644), "the mode of a thaw's file")?;
        if file.content.len() > FILE_LIMIT {
            return Err(invalid("files", &file.path)("too large"));
        }
        out.push(ThawFile {
            path: file.path,
            content: file.content,
        });
    }
    if !dns.is_empty() {
        let text: String = dns
            .iter()
            .map(|line| format!("{}\n", line.trim()))
            .collect();
        out.push(ThawFile {
            path: "/etc/resolv.conf".into(),
            content: text.into_bytes(),
        });
    }
    Ok(out)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn steps_to_wire(steps: &[Step]) -> Vec<wire::Step> {
    steps
        .iter()
        .map(|step| {
            let mut out = wire::Step::new();
            out.name = step.name.into();
            out.micros = micros(step.took);
            out
        })
        .collect()
}

pub(in crate::rpc) fn quiesced_to_wire(quiesced: &Quiesced) -> wire::QuiesceResponse {
    let mut reply = wire::QuiesceResponse::new();
    reply.quiesce_id = quiesced.id.0.to_vec();
    reply.steps = steps_to_wire(&quiesced.steps);
    reply
}

pub(in crate::rpc) fn receipt_to_wire(receipt: &Receipt) -> wire::ThawResponse {
    let mut identity = wire::Identity::new();
    identity.hostname.clone_from(&receipt.identity.hostname);
    identity.machine_id.clone_from(&receipt.identity.machine_id);
    identity.boot_id.clone_from(&receipt.identity.boot_id);
    let mut reply = wire::ThawResponse::new();
    reply.generation = receipt.generation.0.to_vec();
    reply.steps = steps_to_wire(&receipt.steps);
    reply.clock_step_nanos = receipt.clock_step_nanos;
    reply.guest_realtime_nanos = receipt.guest_realtime_nanos;
    reply.guest_received_nanos = receipt.guest_received_nanos;
    reply.identity = MessageField::some(identity);
    reply.not_unique = receipt.not_unique.iter().map(ToString::to_string).collect();
    reply
}

pub(in crate::rpc) fn released_to_wire(released: &Released) -> wire::ReleaseResponse {
    let mut reply = wire::ReleaseResponse::new();
    reply.steps = steps_to_wire(&released.steps);
    reply.hooks = released
        .hooks
        .iter()
        .map(|hook| {
            let mut out = wire::HookResult::new();
            out.container_id.clone_from(&hook.container);
            out.path.clone_from(&hook.path);
            out.exit_status = hook.exit_status;
            out.timed_out = hook.timed_out;
            out
        })
        .collect();
    reply
}
