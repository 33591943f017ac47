//! The gate stands before every handler: held against the descriptors, over a
//! real connection. And what is nobody's failure is logged.

use crate::boot::serve::{ordinary_agent, start_server};
use crate::rpc::{AGENT_METHODS, LIFECYCLE_METHODS, services};
use crate::service::Agent;
use crate::service::container::CreateContainer;
use authz::Gate;
use guest_runtime::cgroup::WorkloadCgroup;
use guest_runtime::container::Launcher;
use policy::{Policy, RegoPolicy};
use protocols::wire::{agent, lifecycle};
use std::sync::{Arc, Mutex};
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

/// Keeps what is logged.
#[derive(Default, Clone)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl slog::Drain for Lines {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        self.0.lock().unwrap().push(record.msg().to_string());
        Ok(())
    }
}

/// The removal has come to its end before: what tells of it has no failure to
/// give.
#[tokio::test]
async fn a_hook_that_fails_after_a_removal_is_a_line_of_the_log() {
    // Directories that play cgroups, and a program that is no stage.
    let directory = tempfile::tempdir().unwrap();
    let cgroup = directory.path().join("workload");
    std::fs::create_dir(&cgroup).unwrap();
    for path in [directory.path(), cgroup.as_path()] {
        std::fs::write(path.join("cgroup.controllers"), "").unwrap();
    }
    let workload = WorkloadCgroup::create(&cgroup).unwrap();
    let program = std::fs::File::open("/etc/passwd").unwrap();
    let lines = Lines::default();
    let agent = Agent {
        launcher: Some(Arc::new(Launcher::with_program(workload, program))),
        log: slog::Logger::root(lines.clone(), slog::o!()),
        ..ordinary_agent().unwrap()
    };
    let mut request = agent::CreateContainerRequest::new();
    request.container_id = "web".into();
    let spec = request.OCI.mut_or_insert_default();
    spec.Process.mut_or_insert_default().Args = vec!["true".into()];
    spec.Root.mut_or_insert_default().Path = "/root".into();
    let mut create = CreateContainer::try_from(request.clone()).unwrap();
    agent.tell_of_end(&create.spec).await;
    assert!(lines.0.lock().unwrap().is_empty());
    let mut hook = agent::Hook::new();
    hook.Path = "/bin/true".into();
    let spec = request.OCI.mut_or_insert_default();
    spec.Hooks.mut_or_insert_default().Poststop.push(hook);
    create = CreateContainer::try_from(request).unwrap();
    agent.tell_of_end(&create.spec).await;
    let expected = ["after the removal of a container"];
    assert_eq!(*lines.0.lock().unwrap(), expected);
}
