//! The ready policies and the rule lists, held against the API's descriptors.

#![expect(clippy::unwrap_used, reason = "what tests share fails like they do")]

use std::collections::BTreeSet;

use policy::ready::{self, ReadyPolicy};
use policy::{Decision, LIFECYCLE_RULES, Policy, PolicyDigest, RegoPolicy};
use protobuf::reflect::FileDescriptor;
use serde_json::{Value, json};

fn requests_of(file: &FileDescriptor, service: &str) -> BTreeSet<String> {
    let service = file
        .services()
        .find(|candidate| candidate.proto().name() == service)
        .unwrap();
    let methods = service.methods();
    methods
        .map(|method| method.input_type().name().to_string())
        .collect()
}

fn kata_rules() -> BTreeSet<String> {
    requests_of(protocols::wire::agent::file_descriptor(), "AgentService")
}

fn lifecycle_rules() -> BTreeSet<String> {
    requests_of(protocols::wire::lifecycle::file_descriptor(), "Lifecycle")
}

fn denied_rules(policy: ReadyPolicy, input: &Value) -> Vec<String> {
    let policy = Policy::Rego(RegoPolicy::from_source(policy.name, policy.source).unwrap());
    let rules = kata_rules().into_iter().chain(lifecycle_rules());
    rules
        .filter(|rule| match policy.decide(rule, input).unwrap() {
            Decision::Allowed(allowed) => {
                assert!(allowed.overridden.is_none());
                false
            }
            // Each policy says something to every rule.
            Decision::Denied(denial) => {
                assert!(!denial.reason.contains("not defined"), "{denial}");
                true
            }
        })
        .collect()
}

#[test]
fn the_lifecycle_rules_are_those_of_the_service() {
    let listed: BTreeSet<String> = LIFECYCLE_RULES.map(String::from).into();
    assert_eq!(listed, lifecycle_rules());
    assert!(kata_rules().len() == 41 && kata_rules().is_disjoint(&listed));
}

#[test]
fn allow_all_allows_every_request() {
    assert!(denied_rules(ready::ALLOW_ALL, &json!({})).is_empty());
}

#[test]
fn deny_all_but_health_denies_every_request() {
    let denied = denied_rules(ready::DENY_ALL_BUT_HEALTH, &json!({}));
    assert_eq!(denied.len(), kata_rules().len() + lifecycle_rules().len());
}

#[test]
fn deny_exec_denies_both_ways_to_run_a_command() {
    for container in ["", "web"] {
        let denied = denied_rules(ready::DENY_EXEC, &json!({"container_id": container}));
        assert_eq!(denied, ["ExecProcessRequest", "ExecRequest"]);
    }
}

#[test]
fn deny_guest_exec_denies_a_command_outside_every_container() {
    let inside = json!({"container_id": "web"});
    assert!(denied_rules(ready::DENY_GUEST_EXEC, &inside).is_empty());
    for outside in [
        json!({"container_id": ""}),
        json!({"container_id": null}),
        json!({}),
    ] {
        let denied = denied_rules(ready::DENY_GUEST_EXEC, &outside);
        assert_eq!(denied, ["ExecProcessRequest", "ExecRequest"]);
    }
}

#[test]
fn ready_policies_are_found_by_name() {
    for policy in ready::ALL {
        assert_eq!(ready::by_name(policy.name), Some(*policy));
    }
    assert_eq!(ready::by_name("allow-all.rego"), None);
}

#[test]
fn the_built_in_policy_allows_all_and_has_a_name() {
    let policy = Policy::AllowAll;
    assert_eq!(policy.name(), "allow-all (built-in)");
    assert_eq!(policy.digest(), PolicyDigest::of(b"allow-all (built-in)"));
    assert!(!policy.looks_at_requests());
    let decision = policy.decide("AnythingAtAll", &json!(null)).unwrap();
    assert!(matches!(decision, Decision::Allowed(_)));
}
