//! The table of requests: one line a message of `grpc.AgentService` and
//! `tardigrade.v1.Lifecycle`. A message without a line cannot be authorised,
//! and so cannot be handled; a test holds the table against the descriptors.

use policy::Question;
use protobuf::Message;
use protocols::wire::{agent, lifecycle};
use serde_json::Value;

use crate::input::{self, InputError};
use crate::{copy_file, equivalents};

/// A message the gate can judge. Implemented by the table in this package
/// and nowhere else.
#[diagnostic::on_unimplemented(
    message = "the gate has no rule for `{Self}`",
    label = "not a request the gate can judge"
)]
pub trait Request: sealed::Judged {
    /// The rule asked about it, below `data.agent_policy`: its protobuf
    /// message name.
    const RULE: &'static str;
    /// Whether it is answered between Quiesce and the end of Thaw.
    const WHILE_QUIESCED: bool;
}

mod sealed {
    use super::{InputError, Message, Question, Value, input};

    /// How a message is shown to a policy. A line of the table may override
    /// each of the three.
    pub trait Judged: Message + input::Shown {
        /// See [`super::Request::WHILE_QUIESCED`].
        const ANSWERED_WHILE_QUIESCED: bool = false;

        /// The message as its own rule sees it.
        fn input(&self) -> Result<Value, InputError> {
            input::of(self)
        }

        /// What else is asked about it: the rules of the requests it amounts to.
        fn equivalents(&self) -> Result<Vec<Question>, InputError> {
            Ok(Vec::new())
        }
    }
}

/// What its own rule is asked about a message.
pub(crate) fn question<T: Request>(message: &T) -> Result<Question, InputError> {
    Ok(Question {
        rule: T::RULE,
        input: message.input()?,
    })
}

/// All that a policy is asked about a message, its own rule first.
///
/// # Errors
/// The message cannot be shown to a policy.
pub fn questions<T: Request>(message: &T) -> Result<Vec<Question>, InputError> {
    let mut questions = vec![question(message)?];
    questions.extend(message.equivalents()?);
    Ok(questions)
}

/// The rules of all requests, each once, in the order of the table.
#[must_use]
pub fn rules() -> &'static [&'static str] {
    RULES
}

macro_rules! requests {
    ($($message:ty $({ $($how:tt)* })?;)*) => {
        $(
            #[diagnostic::do_not_recommend]
            impl sealed::Judged for $message { $($($how)*)? }
            #[diagnostic::do_not_recommend]
            impl Request for $message {
                const RULE: &'static str = <$message as Message>::NAME;
                const WHILE_QUIESCED: bool =
                    <$message as sealed::Judged>::ANSWERED_WHILE_QUIESCED;
            }
        )*
        const RULES: &[&str] = &[$(<$message as Request>::RULE),*];
    };
}

/// The body of a line whose request amounts to others.
macro_rules! amounts_to {
    ($equivalents:path) => {
        fn equivalents(&self) -> Result<Vec<Question>, InputError> {
            $equivalents(self)
        }
    };
}

requests! {
    // grpc.AgentService
    agent::CreateContainerRequest;
    agent::StartContainerRequest;
    agent::RemoveContainerRequest;
    agent::ExecProcessRequest;
    agent::SignalProcessRequest;
    agent::WaitProcessRequest;
    agent::UpdateContainerRequest;
    agent::UpdateEphemeralMountsRequest;
    agent::StatsContainerRequest;
    agent::PauseContainerRequest;
    agent::ResumeContainerRequest;
    agent::RemoveStaleVirtiofsShareMountsRequest;
    agent::GetDiagnosticDataRequest;
    agent::WriteStreamRequest;
    agent::ReadStreamRequest;
    agent::CloseStdinRequest;
    agent::TtyWinResizeRequest;
    agent::UpdateInterfaceRequest;
    agent::UpdateRoutesRequest;
    agent::ListInterfacesRequest;
    agent::ListRoutesRequest;
    agent::AddARPNeighborsRequest;
    agent::GetIPTablesRequest;
    agent::SetIPTablesRequest;
    agent::GetMetricsRequest;
    agent::MemAgentMemcgConfig;
    agent::MemAgentCompactConfig;
    agent::CreateSandboxRequest;
    agent::DestroySandboxRequest;
    agent::OnlineCPUMemRequest;
    agent::ReseedRandomDevRequest;
    agent::GuestDetailsRequest {
        const ANSWERED_WHILE_QUIESCED: bool = true;
    };
    agent::MemHotplugByProbeRequest;
    agent::SetGuestDateTimeRequest;
    agent::CopyFileRequest {
        fn input(&self) -> Result<Value, InputError> { copy_file::input(self) }
    };
    agent::GetOOMEventRequest;
    agent::AddSwapRequest;
    agent::AddSwapPathRequest;
    agent::VolumeStatsRequest;
    agent::ResizeVolumeRequest;
    agent::SetPolicyRequest;

    // tardigrade.v1.Lifecycle
    lifecycle::QuiesceRequest;
    lifecycle::ThawRequest {
        const ANSWERED_WHILE_QUIESCED: bool = true;
        amounts_to!(equivalents::of_thaw);
    };
    lifecycle::ReleaseRequest { amounts_to!(equivalents::of_release); };
    lifecycle::ExecRequest { amounts_to!(equivalents::of_exec); };
    lifecycle::CopyRequest { amounts_to!(equivalents::of_copy); };
    lifecycle::ForwardRequest { amounts_to!(equivalents::of_forward); };
    lifecycle::LogsRequest { amounts_to!(equivalents::of_logs); };
    lifecycle::EventsRequest { amounts_to!(equivalents::of_events); };
}
