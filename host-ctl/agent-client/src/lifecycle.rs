//! Quiesce, Thaw and Release: what makes a copy of a VM unique.

use std::time::{Duration, Instant};

use protobuf::MessageField;
use protocols::wire::lifecycle as wire;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::call::call;
use crate::client::AgentClient;
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// As ordered; a receipt for another one is refused.
    pub generation: Generation,
    /// What was done.
    pub steps: Vec<Step>,
    /// How far CLOCK_REALTIME was moved, nanoseconds, forwards positive.
    pub clock_step_nanos: i64,
    /// Guest clock minus host clock, nanoseconds, as NTP estimates it
    /// (RFC 5905, section 8).
    pub clock_offset_nanos: i64,
    /// The guest's clock is off by no more than this, nanoseconds: the offset
    /// and half the time the bytes were under way.
    pub clock_bound_nanos: u64,
    /// From the request to the receipt by the host's clock, nanoseconds.
    pub round_trip_nanos: u64,
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

        let sent_at = realtime_nanos();
        request.0.host_realtime_nanos = sent_at;
        let begun = Instant::now();
        let answer = call(CALL, deadline, |context| {
            self.lifecycle.thaw(context, &request.0)
        })
        .await?;
        let round_trip = begun.elapsed();
        drop(request);
        receipt(order, sent_at, round_trip, answer)
    }

    /// Lets the workload run.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn release(
        &self,
        generation: Generation,
        deadline: Duration,
    ) -> Result<Released, ClientError> {
        const CALL: &str = "Release";
        let request = wire::ReleaseRequest {
            generation: generation.as_bytes().to_vec(),
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

/// CLOCK_REALTIME, nanoseconds since 1970.
fn realtime_nanos() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec)
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
    sent_at: i64,
    round_trip: Duration,
    answer: wire::ThawResponse,
) -> Result<Receipt, ClientError> {
    const CALL: &str = "Thaw";
    if answer.generation != order.generation.as_bytes() {
        return Err(reply::malformed(
            CALL,
            "the receipt is of another generation",
        ));
    }
    let round_trip_nanos = u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX);
    let clock = clock_error(
        sent_at,
        round_trip_nanos,
        answer.guest_realtime_nanos,
        answer.elapsed_nanos,
    )
    .ok_or_else(|| reply::malformed(CALL, "the receipt's times cannot be"))?;
    let identity = answer.identity.unwrap_or_default();
    Ok(Receipt {
        generation: order.generation,
        steps: steps(CALL, answer.steps)?,
        clock_step_nanos: answer.clock_step_nanos,
        clock_offset_nanos: clock.offset,
        clock_bound_nanos: clock.bound,
        round_trip_nanos,
        identity: Identity {
            hostname: reply::text(CALL, &identity.hostname, MAX_NAME)?,
            machine_id: reply::text(CALL, &identity.machine_id, MAX_NAME)?,
            boot_id: reply::text(CALL, &identity.boot_id, MAX_NAME)?,
        },
        not_unique: reply::texts(CALL, answer.not_unique, MAX_SENTENCE)?,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClockError {
    offset: i64,
    bound: u64,
}

/// NTP's estimate from one exchange (RFC 5905, section 8). The guest gives
/// only when it answered and how long it had the request; all nanoseconds.
/// None when the guest claims more time than the exchange took.
fn clock_error(
    sent_at: i64,
    round_trip: u64,
    guest_answered_at: i64,
    guest_elapsed: u64,
) -> Option<ClockError> {
    let delay = round_trip.checked_sub(guest_elapsed)?;
    // At equal delays both ways the answer was written half a delay before it
    // came, by the host's clock.
    let host_then = i128::from(sent_at) + i128::from(round_trip) - i128::from(delay / 2);
    let offset = i64::try_from(i128::from(guest_answered_at) - host_then).ok()?;
    Some(ClockError {
        offset,
        bound: offset.unsigned_abs().checked_add(delay.div_ceil(2))?,
    })
}

#[cfg(test)]
mod tests {
    use super::clock_error;
    use proptest::prelude::*;

    #[test]
    fn an_equal_clock_and_equal_ways_give_no_offset() {
        let found = clock_error(1_000, 300, 1_200, 100).unwrap();
        assert_eq!((found.offset, found.bound), (0, 100));
    }

    #[test]
    fn a_guest_that_claims_more_time_than_passed_is_refused() {
        assert_eq!(clock_error(0, 10, 0, 11), None);
    }

    proptest! {
        #[test]
        fn the_true_offset_lies_within_the_bound(
            sent_at in 0_i64..1 << 60, there in 0_u64..1 << 40, back in 0_u64..1 << 40,
            elapsed in 0_u64..1 << 40, offset in -(1_i64 << 50)..1 << 50,
        ) {
            let answered = sent_at + i64::try_from(there + elapsed).unwrap() + offset;
            let found = clock_error(sent_at, there + elapsed + back, answered, elapsed).unwrap();
            prop_assert!(offset.unsigned_abs() <= found.bound);
            prop_assert!(found.offset.abs_diff(offset) <= (there + back).div_ceil(2));
        }

        #[test]
        fn any_times_of_a_guest_are_taken_or_refused_without_panic(
            sent_at: i64, round_trip: u64, answered: i64, elapsed: u64,
        ) {
            let _ = clock_error(sent_at, round_trip, answered, elapsed);
        }
    }
}
