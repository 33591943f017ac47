//! Quiesce, Thaw and Release: what makes a copy of a VM unique.

use std::time::Duration;

use protobuf::MessageField;
use protocols::wire::lifecycle as wire;
use serde::{Deserialize, Serialize};

use crate::call::call;
use crate::client::AgentClient;
use crate::clock::{Exchange, Moment};
use crate::error::ClientError;
use crate::id::{Generation, QuiesceId, random};
use crate::network::Network;
use crate::reply::{self, MAX_NAME, MAX_PATH, MAX_SENTENCE};

/// Fresh bytes handed over with every attempt. The kernel's pool holds 32
/// (random(4)); twice that leaves room for doubt.
const ENTROPY: usize = 64;

/// What the frozen memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A template: the page cache stays warm for the clones.
    Template,
    /// A suspend: caches are dropped to make it smaller.
    Suspend,
}

/// One step of an operation in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name, escaped.
    pub name: String,
    /// What it took, microseconds.
    pub micros: u64,
}

/// A frozen workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiesced {
    /// What the thaw of every copy must name.
    pub quiesce_id: QuiesceId,
    /// What was done.
    pub steps: Vec<Step>,
}

/// Who a copy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// hostname(7).
    pub hostname: String,
    /// machine-id(5): 32 lower-case hexadecimal digits.
    pub machine_id: String,
    /// A UUID, as /proc/sys/kernel/random/boot_id has it.
    pub boot_id: String,
}

/// A file the host hands over; only paths on the agent's list are taken.
#[derive(Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Where to.
    pub path: String,
    /// All of it.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Shows no content.
impl std::fmt::Debug for GuestFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "GuestFile({:?}, {} bytes)",
            self.path,
            self.content.len()
        )
    }
}

/// What makes a copy itself. Entropy and time are not here: they are fresh
/// with every attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThawOrder {
    /// The freeze this is the end of.
    pub quiesce_id: QuiesceId,
    /// This copy's life.
    pub generation: Generation,
    /// Who it is.
    pub identity: Identity,
    /// Where it is.
    pub network: Network,
    /// Lines of resolv.conf(5); none leaves the file as it is.
    pub dns: Vec<String>,
    /// What else it is given.
    pub files: Vec<GuestFile>,
}

/// The agent's word that a copy is itself, with what the host knows about its
/// clock. The agent's word only: nothing that protects the host rests on it.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// As ordered; a receipt for another one is refused.
    pub generation: Generation,
    /// What was done.
    pub steps: Vec<Step>,
    /// How far CLOCK_REALTIME was moved, nanoseconds, forwards positive.
    pub clock_step_nanos: i64,
    /// When it was asked for and given, by both sides' clocks.
    pub exchange: Exchange,
    /// What the guest now answers to.
    pub identity: Identity,
    /// What a thaw cannot make unique, by name.
    pub not_unique: Vec<String>,
}

/// The result of one after-thaw hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HookResult {
    /// Of which container.
    pub container_id: String,
    /// What was run.
    pub path: String,
    /// As a shell counts it, 128 + signal for a death by signal.
    pub exit_status: i32,
    /// Whether its deadline passed.
    pub timed_out: bool,
}

/// A running workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Released {
    /// What was done.
    pub steps: Vec<Step>,
    /// What the containers' hooks said.
    pub hooks: Vec<HookResult>,
}

/// A request with secrets in it, wiped when it is dropped, answered or not.
/// The transport's own copies are not reached by that.
struct Secret(wire::ThawRequest);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.entropy.fill(0);
        // Keeps the compiler from taking a last write for a useless one.
        std::hint::black_box(&self.0.entropy);
    }
}

impl AgentClient {
    /// Freezes the workload. From here to the end of a thaw the agent answers
    /// health, details and thaw only.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn quiesce(
        &self,
        purpose: Purpose,
        deadline: Duration,
    ) -> Result<Quiesced, ClientError> {
        const CALL: &str = "Quiesce";
        let purpose = match purpose {
            Purpose::Template => wire::QuiescePurpose::QUIESCE_PURPOSE_TEMPLATE,
            Purpose::Suspend => wire::QuiescePurpose::QUIESCE_PURPOSE_SUSPEND,
        };
        let request = wire::QuiesceRequest {
            purpose: purpose.into(),
            ..Default::default()
        };
        let answer = call(CALL, deadline, |context| {
            self.lifecycle.quiesce(context, &request)
        })
        .await?;
        Ok(Quiesced {
            quiesce_id: reply::sixteen(CALL, &answer.quiesce_id)?.into(),
            steps: steps(CALL, answer.steps)?,
        })
    }

    /// Makes this copy itself; the workload stays frozen. Entropy is drawn and
    /// the host's clock read at the last moment. Each call is an attempt of
    /// its own: the agent takes one, so a copy whose attempt got no receipt is
    /// to be thrown away.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn thaw(
        &self,
        order: &ThawOrder,
        deadline: Duration,
    ) -> Result<Receipt, ClientError> {
        const CALL: &str = "Thaw";
        let mut request = Secret(thaw_request(order));
        // Reserved before it is filled: no copy is left where it moved from.
        request.0.entropy = Vec::with_capacity(ENTROPY);
        let mut fresh = random::<ENTROPY>()?;
        request.0.entropy.extend_from_slice(&fresh);
        fresh.fill(0);
        std::hint::black_box(&fresh);

        let begun = Moment::now();
        request.0.host_realtime_nanos = begun.realtime_nanos();
        let answer = call(CALL, deadline, |context| {
            self.lifecycle.thaw(context, &request.0)
        })
        .await?;
        let answered = Moment::now();
        drop(request);
        receipt(order, begun, answered, answer)
    }

    /// Lets the workload run, its clock moved first: to where it would be if
    /// it had shown `corrected_realtime_nanos` at the writing of the receipt.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn release(
        &self,
        generation: Generation,
        corrected_realtime_nanos: Option<i64>,
        deadline: Duration,
    ) -> Result<Released, ClientError> {
        const CALL: &str = "Release";
        let request = wire::ReleaseRequest {
            generation: generation.as_bytes().to_vec(),
            corrected_realtime_nanos: corrected_realtime_nanos.unwrap_or_default(),
            ..Default::default()
        };
        let answer = call(CALL, deadline, |context| {
            self.lifecycle.release(context, &request)
        })
        .await?;
        let hooks = reply::list(CALL, answer.hooks)?
            .into_iter()
            .map(|hook| {
                Ok(HookResult {
                    // Container ids have up to 128 bytes.
                    container_id: reply::text(CALL, &hook.container_id, 2 * MAX_NAME)?,
                    path: reply::text(CALL, &hook.path, MAX_PATH)?,
                    exit_status: hook.exit_status,
                    timed_out: hook.timed_out,
                })
            })
            .collect::<Result<_, ClientError>>()?;
        Ok(Released {
            steps: steps(CALL, answer.steps)?,
            hooks,
        })
    }
}

fn thaw_request(order: &ThawOrder) -> wire::ThawRequest {
    wire::ThawRequest {
        quiesce_id: order.quiesce_id.as_bytes().to_vec(),
        generation: order.generation.as_bytes().to_vec(),
        identity: MessageField::some(wire::Identity {
            hostname: order.identity.hostname.clone(),
            machine_id: order.identity.machine_id.clone(),
            boot_id: order.identity.boot_id.clone(),
            ..Default::default()
        }),
        network: MessageField::some(order.network.to_wire()),
        dns: order.dns.clone(),
        files: order
            .files
            .iter()
            .map(|file| wire::GuestFile {
                path: file.path.clone(),
                content: file.content.clone(),
                mode: file.mode,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn steps(call: &'static str, steps: Vec<wire::Step>) -> Result<Vec<Step>, ClientError> {
    reply::list(call, steps)?
        .into_iter()
        .map(|step| {
            Ok(Step {
                name: reply::text(call, &step.name, MAX_NAME)?,
                micros: step.micros,
            })
        })
        .collect()
}

fn receipt(
    order: &ThawOrder,
    begun: Moment,
    answered: Moment,
    answer: wire::ThawResponse,
) -> Result<Receipt, ClientError> {
    const CALL: &str = "Thaw";
    if answer.generation != order.generation.as_bytes() {
        return Err(reply::malformed(
            CALL,
            "the receipt is of another generation",
        ));
    }
    let exchange = Exchange {
        begun,
        answered,
        guest_received: answer.guest_received_nanos,
        guest_answered: answer.guest_realtime_nanos,
    };
    exchange.offset()?;
    let identity = answer.identity.unwrap_or_default();
    Ok(Receipt {
        generation: order.generation,
        steps: steps(CALL, answer.steps)?,
        clock_step_nanos: answer.clock_step_nanos,
        exchange,
        identity: Identity {
            hostname: reply::text(CALL, &identity.hostname, MAX_NAME)?,
            machine_id: reply::text(CALL, &identity.machine_id, MAX_NAME)?,
            boot_id: reply::text(CALL, &identity.boot_id, MAX_NAME)?,
        },
        not_unique: reply::texts(CALL, answer.not_unique, MAX_SENTENCE)?,
    })
}
