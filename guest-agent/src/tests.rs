//! The gate stands before every handler: held against the descriptors, over a
//! real connection.

use crate::boot::serve::{ordinary_agent, start_server};
use crate::rpc::{AGENT_METHODS, LIFECYCLE_METHODS, services};
use authz::Gate;
use policy::{Policy, RegoPolicy};
use protocols::wire::{agent, lifecycle};
use std::sync::Arc;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::{Code, Request};

const DENY_ALL: &str = "package agent_policy\n\ndefault AllowRequestsFailingPolicy := false\n";

async fn client(policy: Policy) -> Client {
    let gate = Arc::new(Gate::new(policy));
    let agent = Arc::new(ordinary_agent().unwrap());
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (streams, accepted) = tokio::sync::mpsc::channel(1);
    let server = start_server(services(gate, agent), accepted).await.unwrap();
    streams.send(Ok(theirs)).await.unwrap();
    // Both live as long as the test's runtime.
    tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop((server, streams));
    });
    Client::new(Socket::new(ours))
}

/// The code of the reply to an empty request.
async fn code(client: &Client, service: &str, method: &str) -> Option<Code> {
    let mut request = Request::new();
    request.service = service.into();
    request.method = method.into();
    request.timeout_nano = 5_000_000_000;
    match client.request(request).await {
        Ok(_) => None,
        Err(ttrpc::Error::RpcStatus(status)) => Some(status.code()),
        Err(error) => panic!("{service}/{method}: {error}"),
    }
}

fn methods(service: &str) -> Vec<String> {
    [agent::file_descriptor(), lifecycle::file_descriptor()]
        .into_iter()
        .flat_map(|file| {
            let package = file.proto().package().to_owned();
            file.services()
                .filter(move |found| format!("{package}.{}", found.proto().name()) == service)
                .flat_map(|found| found.methods().collect::<Vec<_>>())
        })
        .map(|method| method.proto().name().to_owned())
        .collect()
}

#[tokio::test]
async fn no_handler_answers_what_the_policy_denies() {
    let policy = RegoPolicy::from_source("deny-all", DENY_ALL).unwrap();
    let client = client(Policy::Rego(policy)).await;
    for (service, served, count) in [
        ("grpc.AgentService", AGENT_METHODS.as_slice(), 42),
        ("tardigrade.v1.Lifecycle", LIFECYCLE_METHODS.as_slice(), 8),
    ] {
        let methods = methods(service);
        assert_eq!(methods.len(), count, "{service}");
        for method in methods {
            let expected = if served.contains(&method.as_str()) {
                Code::PERMISSION_DENIED
            } else {
                Code::UNIMPLEMENTED
            };
            let code = code(&client, service, &method).await;
            assert_eq!(code, Some(expected), "{service}/{method}");
        }
    }
}

#[tokio::test]
async fn only_health_is_answered_without_asking_the_policy() {
    let policy = RegoPolicy::from_source("deny-all", DENY_ALL).unwrap();
    let client = client(Policy::Rego(policy)).await;
    for method in methods("grpc.Health") {
        assert_eq!(
            code(&client, "grpc.Health", &method).await,
            None,
            "{method}"
        );
    }
}

#[tokio::test]
async fn an_empty_request_is_refused_by_name_and_panics_nowhere() {
    let client = client(Policy::AllowAll).await;
    for method in AGENT_METHODS {
        // It waits until there is an event.
        if method == "GetOOMEvent" {
            continue;
        }
        // Either a refusal with a code, or success for those that need
        // nothing; a panic would leave the call without any answer.
        let code = code(&client, "grpc.AgentService", method).await;
        assert_ne!(code, Some(Code::DEADLINE_EXCEEDED), "{method}");
    }
}
