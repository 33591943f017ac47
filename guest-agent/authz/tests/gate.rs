//! The gate with a policy: what passes, what is asked, and which status a
//! client gets.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what tests share fails like they do"
)]

use authz::{Authorized, Denied, Gate, SetPolicyError};
use policy::{Policy, RegoPolicy, ready};
use protobuf::MessageField;
use protocols::wire::{agent, lifecycle, types};
use ttrpc::Code;

fn rego(rules: &str) -> Policy {
    let source = format!("package agent_policy\n{rules}");
    Policy::Rego(RegoPolicy::from_source("test", &source).unwrap())
}

/// Allows exactly these rules; a rule may carry a condition.
fn only(rules: &[&str]) -> Gate {
    let lines: Vec<String> = rules
        .iter()
        .map(|rule| match rule.split_once(' ') {
            Some((name, condition)) => format!("{name} if {{ {condition} }}"),
            None => format!("{rule} := true"),
        })
        .collect();
    Gate::new(rego(&lines.join("\n")))
}

/// The rule that denies, if a rule does.
fn denying_rule<T: authz::Request>(gate: &Gate, message: T) -> Option<String> {
    match gate.authorize(message) {
        Ok(_) => None,
        Err(Denied::Policy { denial, .. }) => Some(denial.rule),
        Err(other) => panic!("{other}"),
    }
}

fn start(id: &str) -> agent::StartContainerRequest {
    agent::StartContainerRequest {
        container_id: id.to_string(),
        ..Default::default()
    }
}

fn status(denied: impl Into<ttrpc::Error>) -> (Code, String) {
    match denied.into() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_string()),
        other => panic!("{other}"),
    }
}

#[test]
fn the_built_in_policy_lets_the_very_message_through() {
    let gate = Gate::new(Policy::AllowAll);
    let authorized = gate.authorize(start("web")).unwrap();
    assert_eq!(authorized.get().container_id, "web");
    assert!(authorized.overridden().is_none());
    assert_eq!(authorized.into_inner(), start("web"));
    assert_eq!(gate.policies()[0].0, "allow-all (built-in)");
    // It looks at no message, so even one too large to be judged passes.
    let large = agent::WriteStreamRequest {
        data: vec![0; 2 << 20],
        ..Default::default()
    };
    assert!(gate.authorize(large).is_ok());
}

#[test]
fn a_denial_is_permission_denied_and_names_message_rule_and_reason() {
    let gate = Gate::new(rego(
        "default StartContainerRequest := false\nStartContainerRequest if { print(\"not\", input.container_id); false }",
    ));
    let (code, text) = status(gate.authorize(start("web")).unwrap_err());
    assert_eq!(code, Code::PERMISSION_DENIED);
    assert!(
        text.starts_with("StartContainerRequest is blocked by policy: "),
        "{text}"
    );
    assert!(text.contains("not web"), "{text}");
    let undefined = gate.authorize(agent::ListRoutesRequest::new()).unwrap_err();
    let expected = "ListRoutesRequest is blocked by policy: rule ListRoutesRequest is not defined";
    assert_eq!(
        status(undefined),
        (Code::PERMISSION_DENIED, expected.to_string())
    );
}

#[test]
fn a_policy_that_cannot_decide_is_an_internal_error_on_one_line() {
    let gate = Gate::new(rego("StartContainerRequest := 7"));
    let (code, text) = status(gate.authorize(start("web")).unwrap_err());
    assert_eq!(code, Code::INTERNAL);
    assert!(
        text.starts_with(
            "StartContainerRequest: internal error: evaluate rule StartContainerRequest: "
        ),
        "{text}"
    );
    let symlink = agent::CopyFileRequest {
        file_mode: 0o120_777,
        data: vec![0xff],
        ..Default::default()
    };
    let (code, text) = status(gate.authorize(symlink).unwrap_err());
    assert_eq!(code, Code::INTERNAL);
    assert!(text.contains("not UTF-8"), "{text}");
    let large = agent::WriteStreamRequest {
        data: vec![0; 2 << 20],
        ..Default::default()
    };
    assert_eq!(status(gate.authorize(large).unwrap_err()).0, Code::INTERNAL);
}

#[test]
fn an_override_by_the_policy_is_told_to_the_caller() {
    let gate = Gate::new(rego("AllowRequestsFailingPolicy := true"));
    let authorized = gate.authorize(start("web")).unwrap();
    assert_eq!(
        authorized.overridden().unwrap().rule,
        "StartContainerRequest"
    );
    assert!(gate.authorize(lifecycle::LogsRequest::new()).is_err());
}

#[test]
fn only_a_pure_conversion_leads_onwards() {
    struct Start(String);
    impl TryFrom<agent::StartContainerRequest> for Start {
        type Error = &'static str;
        fn try_from(wire: agent::StartContainerRequest) -> Result<Self, Self::Error> {
            match wire.container_id.len() {
                0 => Err("no id"),
                _ => Ok(Self(wire.container_id)),
            }
        }
    }
    let gate = Gate::new(Policy::AllowAll);
    let domain: Authorized<Start> = gate.authorize(start("web")).unwrap().convert().unwrap();
    assert_eq!(domain.get().0, "web");
    let wrong = gate.authorize(start("")).unwrap().convert::<Start>();
    assert_eq!(wrong.unwrap_err(), "no id");
}

#[test]
fn a_request_is_never_shown_whole() {
    let gate = Gate::new(Policy::AllowAll);
    let shown = format!("{:?}", gate.authorize(start("secret")).unwrap());
    assert!(
        shown.contains("StartContainerRequest") && !shown.contains("secret"),
        "{shown}"
    );
}

#[test]
fn exec_needs_the_rules_of_exec_process_and_both_streams() {
    let all = [
        "ExecRequest",
        "ExecProcessRequest",
        "ReadStreamRequest",
        "WriteStreamRequest",
    ];
    let exec = lifecycle::ExecRequest {
        container_id: "web".into(),
        ..Default::default()
    };
    assert_eq!(denying_rule(&only(&all), exec.clone()), None);
    for missing in all {
        let others: Vec<&str> = all.into_iter().filter(|rule| *rule != missing).collect();
        assert_eq!(
            denying_rule(&only(&others), exec.clone()).as_deref(),
            Some(missing)
        );
    }
}

#[test]
fn exec_is_judged_as_the_exec_process_it_amounts_to() {
    let gate = only(&[
        "ExecRequest",
        r#"ExecProcessRequest input == {
            "container_id": "web", "exec_id": "e1", "string_user": null,
            "process": {
                "Terminal": true, "ConsoleSize": {"Height": 24, "Width": 80},
                "User": {"UID": 7, "GID": 8, "AdditionalGids": [], "Username": ""},
                "Args": ["ls", "-l"], "Env": ["A=b"], "Cwd": "/tmp", "Capabilities": null,
                "Rlimits": [], "NoNewPrivileges": false, "ApparmorProfile": "",
                "OOMScoreAdj": 0, "SelinuxLabel": ""},
            "stdin_port": 0, "stdout_port": 0, "stderr_port": 0}"#,
        r#"ReadStreamRequest input == {"container_id": "web", "exec_id": "e1", "len": 0}"#,
        r#"WriteStreamRequest input == {"container_id": "web", "exec_id": "e1", "data": []}"#,
    ]);
    let exec = lifecycle::ExecRequest {
        container_id: "web".into(),
        exec_id: "e1".into(),
        args: vec!["ls".into(), "-l".into()],
        env: vec!["A=b".into()],
        cwd: "/tmp".into(),
        terminal: true,
        rows: 24,
        columns: 80,
        user: MessageField::some(lifecycle::ExecUser {
            uid: 7,
            gid: 8,
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(denying_rule(&gate, exec.clone()), None);
    let other = lifecycle::ExecRequest {
        args: vec!["sh".into()],
        ..exec
    };
    assert_eq!(
        denying_rule(&gate, other).as_deref(),
        Some("ExecProcessRequest")
    );
}

#[test]
fn an_exec_without_an_id_is_not_taken_for_the_init_process() {
    let gate = only(&[
        "ExecRequest",
        "ExecProcessRequest",
        r#"ReadStreamRequest input.exec_id == """#,
        "WriteStreamRequest",
    ]);
    let exec = lifecycle::ExecRequest {
        container_id: "web".into(),
        ..Default::default()
    };
    assert_eq!(
        denying_rule(&gate, exec).as_deref(),
        Some("ReadStreamRequest")
    );
    let logs = lifecycle::LogsRequest::new();
    assert_eq!(denying_rule(&gate, logs).as_deref(), Some("LogsRequest"));
}

#[test]
fn no_way_to_run_a_command_is_left_open_by_an_allow_all_except_exec() {
    let source = ready::DENY_EXEC
        .source
        .replace("default ExecRequest := false", "");
    let source = format!("{source}\ndefault ExecRequest := true");
    let gate = Gate::new(Policy::Rego(
        RegoPolicy::from_source("old", &source).unwrap(),
    ));
    let exec = denying_rule(&gate, lifecycle::ExecRequest::new());
    assert_eq!(exec.as_deref(), Some("ExecProcessRequest"));
    let old = denying_rule(&gate, agent::ExecProcessRequest::new());
    assert_eq!(old.as_deref(), Some("ExecProcessRequest"));
    assert_eq!(denying_rule(&gate, start("web")), None);
}

#[test]
fn output_and_files_have_no_side_door() {
    let ours = [
        "LogsRequest",
        "CopyRequest",
        "ForwardRequest",
        "EventsRequest",
    ];
    let gate = only(&ours);
    let read = Some("ReadStreamRequest".to_string());
    assert_eq!(denying_rule(&gate, lifecycle::LogsRequest::new()), read);
    assert_eq!(denying_rule(&gate, lifecycle::CopyRequest::new()), read);
    assert_eq!(denying_rule(&gate, lifecycle::ForwardRequest::new()), read);
    let events = denying_rule(&gate, lifecycle::EventsRequest::new());
    assert_eq!(events.as_deref(), Some("GetOOMEventRequest"));

    let gate = only(&[
        "CopyRequest",
        r#"CopyFileRequest input.path == "/run/kata-containers/web/rootfs/etc/hosts"; input.file_type == "Regular""#,
    ]);
    let copy = |container: &str| lifecycle::CopyRequest {
        container_id: container.into(),
        path: "/etc/hosts".into(),
        into_guest: true,
        ..Default::default()
    };
    assert_eq!(denying_rule(&gate, copy("web")), None);
    assert_eq!(
        denying_rule(&gate, copy("")).as_deref(),
        Some("CopyFileRequest")
    );
}

fn thaw() -> lifecycle::ThawRequest {
    lifecycle::ThawRequest {
        entropy: vec![1, 2],
        host_realtime_nanos: 1_500_000_001_234_567_890,
        network: MessageField::some(lifecycle::Network {
            interfaces: ["eth0", "eth1"]
                .map(|name| types::Interface {
                    name: name.into(),
                    ..Default::default()
                })
                .into(),
            routes: vec![types::Route::new()],
            neighbors: vec![types::ARPNeighbor::new()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn thaw_needs_the_rules_of_its_parts_each_with_its_own_input() {
    let all = [
        "ThawRequest",
        "ReseedRandomDevRequest input.data == [1, 2]",
        "SetGuestDateTimeRequest input == {\"Sec\": 1500000001, \"Usec\": 234567}",
        "UpdateInterfaceRequest input.interface.name in {\"eth0\", \"eth1\"}",
        "UpdateRoutesRequest count(input.routes.Routes) == 1",
        "AddARPNeighborsRequest count(input.neighbors.ARPNeighbors) == 1",
    ];
    assert_eq!(denying_rule(&only(&all), thaw()), None);
    for missing in all {
        let others: Vec<&str> = all.into_iter().filter(|rule| *rule != missing).collect();
        let name = missing.split(' ').next();
        assert_eq!(denying_rule(&only(&others), thaw()).as_deref(), name);
    }
    let one_interface = only(&[
        all[0],
        all[1],
        all[2],
        "UpdateInterfaceRequest input.interface.name == \"eth0\"",
        all[4],
        all[5],
    ]);
    assert!(denying_rule(&one_interface, thaw()).is_some());
    // Without a network all there was of one is removed.
    let bare = lifecycle::ThawRequest {
        network: MessageField::none(),
        ..thaw()
    };
    let mut removal = all[..3].to_vec();
    for rule in [
        "UpdateInterfaceRequest input.interface.name == \"\"",
        "UpdateRoutesRequest count(input.routes.Routes) == 0",
    ] {
        let name = rule.split(' ').next();
        let denied = denying_rule(&only(&removal), bare.clone());
        assert_eq!(denied.as_deref(), name);
        removal.push(rule);
    }
    assert_eq!(denying_rule(&only(&removal), bare), None);
}

#[test]
fn a_release_that_corrects_the_clock_needs_the_rule_that_sets_it() {
    let release = |corrected_realtime_nanos| lifecycle::ReleaseRequest {
        corrected_realtime_nanos,
        ..Default::default()
    };
    let time = "SetGuestDateTimeRequest input == {\"Sec\": 1500000001, \"Usec\": 234567}";
    let corrected = release(1_500_000_001_234_567_890);
    let both = only(&["ReleaseRequest", time]);
    assert_eq!(denying_rule(&both, corrected.clone()), None);
    assert!(denying_rule(&both, release(1_400_000_000_000_000_000)).is_some());
    let bare = only(&["ReleaseRequest"]);
    let rule = denying_rule(&bare, corrected);
    assert_eq!(rule.as_deref(), Some("SetGuestDateTimeRequest"));
    // Without a correction the clock is not asked about.
    assert_eq!(denying_rule(&bare, release(0)), None);
}

const REMEMBER: &str = r#"
StartContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/started", "value": 1}]} if {
    not data.pstate.started
}
ReadStreamRequest := false
LogsRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/started", "value": 1}]}
SetPolicyRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/started", "value": 1}]}
"#;

#[test]
fn a_denied_request_leaves_nothing_in_the_policys_state() {
    let gate = Gate::new(rego(REMEMBER));
    let logs = denying_rule(&gate, lifecycle::LogsRequest::new());
    assert_eq!(logs.as_deref(), Some("ReadStreamRequest"));
    assert_eq!(denying_rule(&gate, start("a")), None);
    assert!(denying_rule(&gate, start("a")).is_some());
}

fn set_policy(rules: &str) -> agent::SetPolicyRequest {
    agent::SetPolicyRequest {
        policy: format!("package agent_policy\n{rules}"),
        ..Default::default()
    }
}

#[test]
fn a_new_policy_replaces_the_one_in_force_if_that_allows_it() {
    let gate = Gate::new(Policy::AllowAll);
    let message = set_policy("StartContainerRequest := true");
    let digest = gate.set_policy(&message).unwrap();
    assert_eq!(digest, policy::PolicyDigest::of(message.policy.as_bytes()));
    assert_eq!(gate.policies(), [("SetPolicy".to_string(), digest)]);
    assert_eq!(denying_rule(&gate, start("a")), None);
    let error = gate.set_policy(&set_policy("")).unwrap_err();
    assert_eq!(status(error).0, Code::PERMISSION_DENIED);
    assert_eq!(gate.policies(), [("SetPolicy".to_string(), digest)]);
}

#[test]
fn a_policy_that_does_not_parse_changes_nothing() {
    let gate = Gate::new(rego(REMEMBER));
    let error = gate
        .set_policy(&set_policy("default A = := 1"))
        .unwrap_err();
    assert!(matches!(error, SetPolicyError::Unusable(_)));
    let (code, text) = status(error);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(
        text.starts_with("SetPolicyRequest: unusable policy: parse policy SetPolicy: "),
        "{text}"
    );
    // Not even what the rule of SetPolicy itself remembered.
    assert_eq!(denying_rule(&gate, start("a")), None);
}

#[test]
fn decisions_of_concurrent_requests_are_serial() {
    let gate = Gate::new(rego(REMEMBER));
    let allowed: usize = std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| usize::from(gate.authorize(start("a")).is_ok())))
            .collect();
        attempts
            .into_iter()
            .map(|attempt| attempt.join().unwrap())
            .sum()
    });
    assert_eq!(allowed, 1);
}
