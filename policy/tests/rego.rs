//! Rego policies: what they decide, what they remember, what is refused.

#![expect(clippy::unwrap_used, reason = "what tests share fails like they do")]

use policy::{Decision, Denial, MAX_SOURCE_BYTES, PolicyError, Question, RegoPolicy};
use serde_json::{Value, json};

fn load(rules: &str) -> Result<RegoPolicy, PolicyError> {
    RegoPolicy::from_source("test", &format!("package agent_policy\n{rules}"))
}

fn denial(decision: Decision) -> Option<Denial> {
    match decision {
        Decision::Allowed(_) => None,
        Decision::Denied(denial) => Some(denial),
    }
}

fn ask(policy: &RegoPolicy, rule: &str, input: &Value) -> Option<Denial> {
    denial(policy.decide(rule, input).unwrap())
}

/// Allows one container, remembering its id.
const ONE_ONLY: &str = r#"
default CreateContainerRequest := false
CreateContainerRequest := {"allowed": true, "ops": ops} if {
    not data.pstate.container
    ops := [{"op": "add", "path": "/pstate/container", "value": input.container_id}]
}
default RemoveContainerRequest := false
RemoveContainerRequest := {"allowed": true, "ops": [{"op": "remove", "path": "/pstate/container"}]} if {
    data.pstate.container == input.container_id
}
default StartContainerRequest := false
StartContainerRequest if data.pstate.container == input.container_id
"#;

#[test]
fn a_rule_sees_its_input() {
    let policy = load("default A := false\nA if input.n == 18446744073709551615").unwrap();
    assert_eq!(ask(&policy, "A", &json!({"n": u64::MAX})), None);
    let denied = ask(&policy, "A", &json!({"n": 1})).unwrap();
    assert_eq!(denied.to_string(), "rule A denies");
    // The input of one decision is gone in the next.
    assert!(ask(&policy, "A", &json!({})).is_some());
}

#[test]
fn an_undefined_rule_denies_and_is_named() {
    let policy = load("A if input.x").unwrap();
    for rule in ["A", "StartContainerRequest"] {
        let denied = ask(&policy, rule, &json!({})).unwrap();
        assert_eq!(denied.reason, format!("rule {rule} is not defined"));
        assert_eq!(denied.rule, rule);
    }
}

#[test]
fn what_a_rule_prints_is_the_reason_but_bounded() {
    let policy = load("default A := false\nA if { print(\"id\", input.id); false }").unwrap();
    let denied = ask(&policy, "A", &json!({"id": "web"})).unwrap();
    assert!(denied.reason.starts_with("rule A denies: "), "{denied}");
    assert!(denied.reason.contains("id web"), "{denied}");
    let denied = ask(&policy, "A", &json!({"id": "ü".repeat(9000)})).unwrap();
    assert!(denied.reason.len() < 4200, "{}", denied.reason.len());
    // Nothing of it is left for the next decision.
    assert!(
        !ask(&policy, "A", &json!({"id": "x"}))
            .unwrap()
            .reason
            .contains('ü')
    );
}

#[test]
fn state_operations_count_at_once() {
    let policy = load(ONE_ONLY).unwrap();
    let (first, second) = (json!({"container_id": "a"}), json!({"container_id": "b"}));
    assert!(ask(&policy, "StartContainerRequest", &first).is_some());
    assert_eq!(ask(&policy, "CreateContainerRequest", &first), None);
    assert!(ask(&policy, "CreateContainerRequest", &second).is_some());
    assert_eq!(ask(&policy, "StartContainerRequest", &first), None);
    assert!(ask(&policy, "RemoveContainerRequest", &second).is_some());
    assert_eq!(ask(&policy, "RemoveContainerRequest", &first), None);
    assert_eq!(ask(&policy, "CreateContainerRequest", &second), None);
}

#[test]
fn operations_of_a_denying_answer_are_ignored() {
    let policy = load(
        r#"A := {"allowed": false, "ops": [{"op": "add", "path": "/pstate/x", "value": 1}]}
           default B := false
           B if data.pstate.x"#,
    )
    .unwrap();
    assert!(ask(&policy, "A", &json!({})).is_some());
    assert!(ask(&policy, "B", &json!({})).is_some());
}

#[test]
fn an_operation_that_cannot_be_done_is_an_error_and_changes_nothing() {
    let policy = load(
        r#"A := {"allowed": true, "ops": [
               {"op": "add", "path": "/pstate/x", "value": 1},
               {"op": "move", "path": "/pstate/y", "from": "/pstate/x"}]}
           B := {"allowed": true, "ops": null}
           default C := false
           C if data.pstate.x"#,
    )
    .unwrap();
    let error = policy.decide("A", &json!({})).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("\"move\" is not supported"), "{source}");
    assert_eq!(ask(&policy, "B", &json!({})), None);
    assert!(ask(&policy, "C", &json!({})).is_some());
}

#[test]
fn several_questions_are_decided_all_or_none() {
    let policy = load(ONE_ONLY).unwrap();
    let question = |rule, id| Question {
        rule,
        input: json!({"container_id": id}),
    };
    let create = question("CreateContainerRequest", "a");
    let start_a = question("StartContainerRequest", "a");
    let start_b = question("StartContainerRequest", "b");

    let denied = denial(policy.decide_all(&[create.clone(), start_b]).unwrap()).unwrap();
    assert_eq!(denied.rule, "StartContainerRequest");
    // Create left nothing behind, so it is still possible; a later question
    // sees what the ones before it did.
    assert_eq!(denial(policy.decide_all(&[create, start_a]).unwrap()), None);
    let broken = Question {
        rule: "not a rule",
        input: json!({}),
    };
    let remove = question("RemoveContainerRequest", "a");
    assert!(policy.decide_all(&[remove, broken]).is_err());
    assert_eq!(
        ask(
            &policy,
            "StartContainerRequest",
            &json!({"container_id": "a"})
        ),
        None
    );
}

#[test]
fn only_the_last_change_can_be_withdrawn() {
    let policy = load(ONE_ONLY).unwrap();
    let a = json!({"container_id": "a"});
    let reservation = |rule| match policy.decide(rule, &a).unwrap() {
        Decision::Allowed(allowed) => allowed.reservation,
        Decision::Denied(denial) => panic!("{denial}"),
    };
    assert!(policy.withdraw(reservation("CreateContainerRequest").unwrap()));
    let created = reservation("CreateContainerRequest").unwrap();
    assert!(reservation("StartContainerRequest").is_none());
    let removed = reservation("RemoveContainerRequest").unwrap();
    assert!(!policy.withdraw(created));
    assert!(policy.withdraw(removed));
    assert_eq!(ask(&policy, "StartContainerRequest", &a), None);
}

#[test]
fn requests_failing_the_policy_are_allowed_if_it_says_so_but_never_ours() {
    let policy =
        load("AllowRequestsFailingPolicy := true\nStartContainerRequest := false").unwrap();
    let input = json!({});
    for rule in ["StartContainerRequest", "CreateContainerRequest"] {
        match policy.decide(rule, &input).unwrap() {
            Decision::Allowed(allowed) => assert_eq!(allowed.overridden.unwrap().rule, rule),
            Decision::Denied(denial) => panic!("{denial}"),
        }
    }
    for rule in policy::LIFECYCLE_RULES {
        assert_eq!(ask(&policy, rule, &input).unwrap().rule, rule);
    }
    policy.seal();
    assert!(ask(&policy, "StartContainerRequest", &input).is_some());
    // What one policy says does not stick to the next.
    let next = load("StartContainerRequest := false").unwrap();
    assert!(ask(&next, "StartContainerRequest", &input).is_some());
}

#[test]
fn an_answer_of_another_shape_is_an_error() {
    let policy =
        load("A := 1\nB := \"true\"\nC := {\"ops\": []}\nD := {\"allowed\": 1}\nE contains 1")
            .unwrap();
    for rule in ["A", "B", "C", "D", "E"] {
        let error = policy.decide(rule, &json!({})).unwrap_err();
        assert!(
            matches!(error, PolicyError::Value { .. }),
            "{rule}: {error}"
        );
    }
    // Two values of one rule contradict each other.
    let policy = load("A := true if input.x\nA := false if input.y").unwrap();
    let both = json!({"x": true, "y": true});
    assert!(matches!(
        policy.decide("A", &both),
        Err(PolicyError::Evaluate { .. })
    ));
    assert_eq!(ask(&policy, "A", &json!({"x": true})), None);
}

#[test]
fn a_rule_name_is_a_name_and_nothing_more() {
    let policy = load("default A := true").unwrap();
    for rule in ["", "A == true; true", "A.b", "A\n", "A[_]", "1A", "Ä"] {
        let error = policy.decide(rule, &json!({})).unwrap_err();
        assert!(
            matches!(error, PolicyError::RuleName { .. }),
            "{rule}: {error}"
        );
    }
}

#[test]
fn a_parse_error_says_where() {
    let error = load("default A = := 1").unwrap_err();
    assert!(matches!(error, PolicyError::Parse { .. }));
    let text = error.to_string();
    assert!(
        text.starts_with("parse policy test: ") && text.contains("test:2:"),
        "{text}"
    );
    // What only compiling finds is found at once, too.
    assert!(load("A if { x > 1 }").is_err());
    assert!(RegoPolicy::from_source("test", "").is_err());
}

#[test]
fn an_unknown_function_is_an_error_when_it_is_called() {
    let policy = load("default A := true\nA := false if nosuchfunction(1)").unwrap();
    let error = policy.decide("A", &json!({})).unwrap_err();
    assert!(matches!(error, PolicyError::Evaluate { .. }), "{error}");
}

#[test]
fn another_package_is_refused_by_name() {
    for package in ["coco_policy", "agent_policy.sub", "agent_policy_2"] {
        let error = RegoPolicy::from_source("test", &format!("package {package}\nA := true"));
        let text = error.unwrap_err().to_string();
        assert_eq!(
            text,
            format!("load policy test: its package is {package}, not agent_policy")
        );
    }
}

#[test]
fn leniency_must_be_a_boolean() {
    for value in ["1", "\"true\"", "{}"] {
        let error = load(&format!("AllowRequestsFailingPolicy := {value}")).unwrap_err();
        assert!(matches!(error, PolicyError::Leniency { .. }), "{error}");
    }
}

#[test]
fn long_lines_and_large_files_have_limits() {
    assert!(load(&format!("# {}", "x".repeat(60 << 10))).is_ok());
    assert!(load(&format!("A := \"{}\"", "x".repeat(70 << 10))).is_err());
    assert!(load(&"\n".repeat(200_001)).is_err());
    let error = load(&"#\n".repeat(MAX_SOURCE_BYTES / 2)).unwrap_err();
    assert!(matches!(error, PolicyError::TooLarge { .. }), "{error}");
}

#[test]
fn builtins_that_generated_policies_use_are_there() {
    let policy = load(
        r#"A if {
               regex.match("^[a-z0-9.-]+/(pause|web)$", input.image)
               base64.decode("YQ==") == "a"
               sprintf("%s-%d", ["a", 1]) == "a-1"
               every mount in input.mounts { startswith(mount, "/run/") }
               some name in ["x", "web"]; endswith(input.image, concat("", ["/", name]))
               is_null(input.user)
               count(input.mounts) == 1
           }"#,
    )
    .unwrap();
    let input = json!({"image": "host.io/web", "mounts": ["/run/a"], "user": null});
    assert_eq!(ask(&policy, "A", &input), None);
}
