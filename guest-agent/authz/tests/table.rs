//! The table of requests, held against the descriptors of the services.

use std::collections::BTreeSet;

use authz::{EXEMPT_METHODS, Request, rules};
use protobuf::Message;
use protobuf::reflect::FileDescriptor;
use protocols::wire::{agent, lifecycle};

/// Every method as (service, method, request).
fn methods() -> Vec<(String, String, String)> {
    let files: [&FileDescriptor; 2] = [agent::file_descriptor(), lifecycle::file_descriptor()];
    let mut methods = Vec::new();
    for file in files {
        for service in file.services() {
            let full_name = format!("{}.{}", file.proto().package(), service.proto().name());
            methods.extend(service.methods().map(|method| {
                let request = method.input_type().name().to_string();
                (
                    full_name.clone(),
                    method.proto().name().to_string(),
                    request,
                )
            }));
        }
    }
    methods
}

fn is_exempt(service: &str, method: &str) -> bool {
    EXEMPT_METHODS.contains(&(service, method))
}

#[test]
fn every_method_but_the_exempt_ones_has_a_rule_named_after_its_request() {
    let requests: BTreeSet<String> = methods()
        .into_iter()
        .filter(|(service, method, _)| !is_exempt(service, method))
        .map(|(_, _, request)| request)
        .collect();
    let listed: BTreeSet<String> = rules().iter().map(ToString::to_string).collect();
    assert_eq!(listed, requests);
    assert_eq!(listed.len(), rules().len(), "a rule is listed twice");
}

#[test]
fn exactly_health_is_exempt_by_name() {
    let exempt: Vec<(String, String)> = methods()
        .into_iter()
        .filter(|(service, method, _)| is_exempt(service, method))
        .map(|(service, method, _)| (service, method))
        .collect();
    let health = |method: &str| ("grpc.Health".to_string(), method.to_string());
    assert_eq!(exempt, [health("Check"), health("Version")]);
    let others = methods()
        .into_iter()
        .filter(|(service, method, _)| !is_exempt(service, method));
    assert_eq!(others.count(), 42 + 8);
}

/// A rule is its message's own name, whatever the message.
fn rule_and_phase<T: Request>() -> (&'static str, bool) {
    assert_eq!(T::RULE, <T as Message>::NAME);
    (T::RULE, T::WHILE_QUIESCED)
}

#[test]
fn rules_are_message_names_also_where_the_method_is_called_otherwise() {
    // Messages not called after their method.
    assert_eq!(
        rule_and_phase::<agent::WriteStreamRequest>(),
        ("WriteStreamRequest", false)
    );
    assert_eq!(
        rule_and_phase::<agent::ReadStreamRequest>(),
        ("ReadStreamRequest", false)
    );
    assert_eq!(
        rule_and_phase::<agent::VolumeStatsRequest>(),
        ("VolumeStatsRequest", false)
    );
    assert_eq!(
        rule_and_phase::<agent::MemAgentMemcgConfig>(),
        ("MemAgentMemcgConfig", false)
    );
    assert_eq!(
        rule_and_phase::<agent::MemAgentCompactConfig>(),
        ("MemAgentCompactConfig", false)
    );
    // What is answered while quiesced.
    assert_eq!(
        rule_and_phase::<agent::GuestDetailsRequest>(),
        ("GuestDetailsRequest", true)
    );
    assert_eq!(
        rule_and_phase::<lifecycle::ThawRequest>(),
        ("ThawRequest", true)
    );
    assert_eq!(
        rule_and_phase::<lifecycle::QuiesceRequest>(),
        ("QuiesceRequest", false)
    );
    assert_eq!(
        rule_and_phase::<lifecycle::ReleaseRequest>(),
        ("ReleaseRequest", false)
    );
}
