//! From Quiesce to the end of Thaw: what is answered, who may enter, and
//! what a policy can no longer do.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what tests share fails like they do"
)]

use std::sync::atomic::{AtomicBool, Ordering};

use authz::{Authorized, Denied, Gate, Phase, Request, SetPolicyError};
use policy::{Policy, RegoPolicy};
use protocols::wire::{agent, lifecycle};
use ttrpc::Code;

fn quiesce(gate: &Gate) -> Authorized<lifecycle::QuiesceRequest> {
    gate.authorize(lifecycle::QuiesceRequest::new()).unwrap()
}

fn is_refused<T: Request>(gate: &Gate, message: T) -> bool {
    match gate.authorize(message) {
        Ok(_) => false,
        Err(Denied::Quiesced { message }) => {
            assert_eq!(message, T::RULE);
            true
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn while_quiesced_only_guest_details_and_thaw_are_answered() {
    let gate = Gate::new(Policy::AllowAll);
    let guard = gate.quiesce(&quiesce(&gate)).unwrap();
    assert_eq!(gate.phase(), Phase::Quiesced);
    assert!(!is_refused(&gate, agent::GuestDetailsRequest::new()));
    assert!(!is_refused(&gate, lifecycle::ThawRequest::new()));
    assert!(is_refused(&gate, lifecycle::QuiesceRequest::new()));
    assert!(is_refused(&gate, lifecycle::ReleaseRequest::new()));
    assert!(is_refused(&gate, lifecycle::ExecRequest::new()));
    assert!(is_refused(&gate, agent::CreateContainerRequest::new()));
    assert!(is_refused(&gate, agent::ReseedRandomDevRequest::new()));
    assert!(is_refused(&gate, agent::SetPolicyRequest::new()));
    let error = gate
        .set_policy(&agent::SetPolicyRequest::new())
        .unwrap_err();
    assert_eq!(error.code(), Code::FAILED_PRECONDITION);
    let refused = gate.authorize(lifecycle::ExecRequest::new()).unwrap_err();
    assert_eq!(refused.code(), Code::FAILED_PRECONDITION);
    guard.end();
    assert_eq!(gate.phase(), Phase::Serving);
    assert!(!is_refused(&gate, lifecycle::ReleaseRequest::new()));
}

#[test]
fn a_quiesce_that_fails_serves_again() {
    let gate = Gate::new(Policy::AllowAll);
    drop(gate.quiesce(&quiesce(&gate)).unwrap());
    assert!(!is_refused(&gate, lifecycle::ExecRequest::new()));
    assert!(gate.quiesce(&quiesce(&gate)).is_ok());
}

#[test]
fn of_two_racing_quiesces_one_gets_the_guard() {
    let gate = Gate::new(Policy::AllowAll);
    let (first, second) = (quiesce(&gate), quiesce(&gate));
    let guards: Vec<_> = std::thread::scope(|scope| {
        let attempts: Vec<_> = [&first, &second]
            .map(|request| scope.spawn(|| gate.quiesce(request)))
            .into();
        attempts
            .into_iter()
            .map(|attempt| attempt.join().unwrap())
            .collect()
    });
    assert_eq!(guards.iter().filter(|guard| guard.is_ok()).count(), 1);
    // The loser's failure does not end the winner's phase.
    let guards: Vec<_> = guards.into_iter().filter_map(Result::ok).collect();
    assert_eq!(gate.phase(), Phase::Quiesced);
    drop(guards);
    assert_eq!(gate.phase(), Phase::Serving);
}

#[test]
fn nothing_is_authorised_once_quiesce_has_returned() {
    for _ in 0..200 {
        let gate = Gate::new(Policy::AllowAll);
        let quiesced = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                loop {
                    let quiesced_before = quiesced.load(Ordering::SeqCst);
                    let answer = gate.authorize(agent::ListRoutesRequest::new());
                    if quiesced_before {
                        return answer.is_err();
                    }
                }
            });
            let guard = gate.quiesce(&quiesce(&gate)).unwrap();
            quiesced.store(true, Ordering::SeqCst);
            assert!(client.join().unwrap());
            guard.end();
        });
    }
}

fn set_policy(rules: &str) -> agent::SetPolicyRequest {
    agent::SetPolicyRequest {
        policy: format!("package agent_policy\nSetPolicyRequest := true\n{rules}"),
        ..Default::default()
    }
}

fn allows_start(gate: &Gate) -> bool {
    gate.authorize(agent::StartContainerRequest::new()).is_ok()
}

#[test]
fn after_a_quiesce_a_later_policy_can_only_forbid_more() {
    let gate = Gate::new(Policy::AllowAll);
    gate.set_policy(&set_policy(
        "QuiesceRequest := true\nListRoutesRequest := true",
    ))
    .unwrap();
    gate.quiesce(&quiesce(&gate)).unwrap().end();
    gate.set_policy(&set_policy(
        "ListRoutesRequest := false\nStartContainerRequest := true",
    ))
    .unwrap();
    assert_eq!(gate.policies().len(), 2);
    assert!(!allows_start(&gate), "the sealed policy does not allow it");
    assert!(gate.authorize(agent::ListRoutesRequest::new()).is_err());
    for _ in 0..2 {
        gate.set_policy(&set_policy("")).unwrap();
    }
    let full = gate.set_policy(&set_policy("")).unwrap_err();
    assert!(matches!(full, SetPolicyError::TooManyLayers { limit: 4 }));
}

#[test]
fn a_quiesce_seals_leniency_of_policies_old_and_new() {
    let lenient =
        "package agent_policy\nAllowRequestsFailingPolicy := true\nQuiesceRequest := true";
    let gate = Gate::new(Policy::Rego(
        RegoPolicy::from_source("lenient", lenient).unwrap(),
    ));
    assert!(allows_start(&gate));
    gate.quiesce(&quiesce(&gate)).unwrap().end();
    assert!(!allows_start(&gate));

    let gate = Gate::new(Policy::AllowAll);
    gate.quiesce(&quiesce(&gate)).unwrap().end();
    gate.set_policy(&set_policy("AllowRequestsFailingPolicy := true"))
        .unwrap();
    assert!(!allows_start(&gate));
}

#[test]
fn a_layer_that_denies_leaves_the_others_states_as_they_were() {
    let once = r#"QuiesceRequest := true
        StartContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/started", "value": 1}]} if {
            not data.pstate.started
        }"#;
    let gate = Gate::new(Policy::AllowAll);
    gate.set_policy(&set_policy(once)).unwrap();
    gate.quiesce(&quiesce(&gate)).unwrap().end();
    gate.set_policy(&set_policy(
        "StartContainerRequest if input.container_id == \"web\"",
    ))
    .unwrap();
    let web = agent::StartContainerRequest {
        container_id: "web".into(),
        ..Default::default()
    };
    assert!(!allows_start(&gate));
    assert!(gate.authorize(web.clone()).is_ok());
    assert!(gate.authorize(web).is_err());
}
