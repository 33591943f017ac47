//! What a supervisor is told at its start, and what it reports when its
//! sandbox is handed over. One line of JSON each: the order on its standard
//! input, the outcome on its standard output.

use crate::config::{SandboxId, TemplateDigest};
use crate::host::network::AddressPair;
use crate::sandbox::Moments;
use crate::sandbox::identity::Uuid;
use crate::sandbox::limits::Limited;
use crate::sandbox::spec::SandboxSpec;
use crate::store::Sha256;
use crate::timeline::Report;
use agent_client::{Generation, Identity};
use hypervisor::{Accelerator, Confined, MemoryMode};
use serde::{Deserialize, Serialize};

/// An order: which sandbox, and how to make it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The sandbox; nothing of it exists.
    pub sandbox: SandboxId,
    /// When it was given, in nanoseconds of CLOCK_MONOTONIC.
    pub given: u64,
    /// Whether its VMM may be less confined than it should.
    pub insecure: bool,
    /// How it comes to life.
    pub making: Making,
}

/// How a sandbox comes to life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "making", rename_all = "lowercase", deny_unknown_fields)]
pub enum Making {
    /// From nothing.
    Boot {
        /// What to boot.
        spec: SandboxSpec,
        /// The digest of its kernel.
        kernel: Sha256,
    },
    /// From a template; cold from the template's spec when that fails.
    Clone {
        /// The template.
        template: TemplateDigest,
        /// How its RAM gets there; none is the VMM's own way.
        memory: Option<MemoryMode>,
        /// Whether another owner's template is taken.
        share: bool,
    },
}

/// How a supervisor's first task ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// The sandbox runs, and this supervisor serves it.
    HandedOver {
        /// All that is to be known about it.
        handover: Box<Handover>,
    },
    /// A VM that runs already was taken over.
    Adopted,
    /// Another supervisor owns the sandbox.
    Owned,
    /// Nothing was handed over and nothing is left.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// A sandbox that was just handed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The UUID of its VM.
    pub uuid: Uuid,
    /// What the guest answers to, read back from it; none for a cold boot,
    /// which draws its own and does not tell.
    pub identity: Option<Identity>,
    /// The name of this life; none for a cold boot.
    pub generation: Option<Generation>,
    /// Whether a cold boot made it.
    pub booted: bool,
    /// Why a clone had to be booted cold.
    pub fallback: Option<String>,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// How far its VMM is confined.
    pub confined: Confined,
    /// What limits its VMM.
    pub limited: Limited,
    /// The owner of its template, if that is another user: see
    /// [`crate::store::LEAKS`].
    pub shared_with: Option<u32>,
    /// The addresses of its link, if it has a network.
    pub addresses: Option<AddressPair>,
    /// How far the guest's clock is from the host's, at most; none for a cold
    /// boot, whose clock is the VMM's.
    pub clock_error_nanos: Option<u64>,
    /// From the thaw's request, or the resume if that was later, to its receipt
    /// by the host's clock.
    pub round_trip_nanos: Option<u64>,
    /// What a thaw cannot make unique, as the agent names it.
    pub not_unique: Vec<String>,
    /// The moments of the way.
    pub moments: Moments,
    /// Every span of the way.
    pub timeline: Report,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_its_text() {
        let order = Order {
            sandbox: "0123456789ab".parse().unwrap(),
            given: 7,
            insecure: false,
            making: Making::Clone {
                template: "a".repeat(64).parse().unwrap(),
                memory: Some(MemoryMode::OnDemand),
                share: true,
            },
        };
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), order);
    }

    #[test]
    fn an_order_for_a_path_is_no_order() {
        let text = r#"{"sandbox":"../../etc/x","given":1,"insecure":false,"making":{"making":"clone","template":"x"}}"#;
        assert!(serde_json::from_str::<Order>(text).is_err());
    }
}
