//! What a process may do.

use crate::fixture::{CAPABILITIES, capabilities, process, run, shell};
use guest_runtime::container::{Capability, RlimitSpec};

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim()
}

fn mask(names: &[&str]) -> u64 {
    names
        .iter()
        .map(|name| 1 << name.parse::<Capability>().unwrap().number())
        .sum()
}

#[test]
fn root_has_the_capabilities_of_its_spec_and_no_other() {
    run(|fixture| async move {
        // No shell: that one has signals of its own.
        let spec = fixture.spec(process(&["cat", "/proc/self/status"]));
        let (_, status, _) = fixture.output(&spec).await;
        let set = format!("{:016x}", mask(&CAPABILITIES));
        for name in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(field(&status, name), set, "{name}");
        }
        for name in ["CapInh", "CapAmb"] {
            assert_eq!(field(&status, name), "0000000000000000", "{name}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        // Rust ignores SIGPIPE: the workload must not inherit that.
        assert_eq!(field(&status, "SigIgn"), "0000000000000000");
        assert_eq!(field(&status, "SigBlk"), "0000000000000000");
    });
}

#[test]
fn a_user_has_only_ambient_capabilities() {
    run(|fixture| async move {
        let mut process = shell("cat /proc/self/status");
        process.user.uid = 1000;
        process.user.gid = 1000;
        process.user.additional_gids = vec![20, 30];
        process.capabilities = capabilities(&["CAP_KILL", "CAP_CHOWN"]);
        process.capabilities.inheritable = vec!["CAP_KILL".parse().unwrap()];
        process.capabilities.ambient = vec!["CAP_KILL".parse().unwrap()];
        let (_, status, _) = fixture.output(&fixture.spec(process)).await;
        assert_eq!(field(&status, "Uid"), "1000\t1000\t1000\t1000");
        assert_eq!(field(&status, "Gid"), "1000\t1000\t1000\t1000");
        assert_eq!(field(&status, "Groups"), "20 30");
        let kill = format!("{:016x}", mask(&["CAP_KILL"]));
        for name in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(field(&status, name), kill, "{name}");
        }
        let bounding = format!("{:016x}", mask(&["CAP_KILL", "CAP_CHOWN"]));
        assert_eq!(field(&status, "CapBnd"), bounding);
    });
}

#[test]
fn limits_and_scores_are_those_of_the_spec() {
    run(|fixture| async move {
        let mut process = shell("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj");
        process.oom_score_adj = Some(123);
        process.rlimits = vec![RlimitSpec {
            kind: "RLIMIT_NOFILE".parse().unwrap(),
            soft: 100,
            hard: 200,
        }];
        let (_, said, _) = fixture.output(&fixture.spec(process)).await;
        assert_eq!(said, "100\n200\n123\n");
    });
}

#[test]
fn without_a_score_it_is_not_the_agents() {
    run(|fixture| async move {
        std::fs::write("/proc/self/oom_score_adj", "77").unwrap();
        let said = fixture.say("cat /proc/self/oom_score_adj").await;
        std::fs::write("/proc/self/oom_score_adj", "0").unwrap();
        assert_eq!(said, "0\n");
    });
}

#[test]
fn a_working_directory_is_made_and_its_own_session_is_entered() {
    run(|fixture| async move {
        let mut process = process(&["sh", "-c", "pwd; cat /proc/self/stat"]);
        process.cwd = "/data/deep/er".into();
        let (_, said, _) = fixture.output(&fixture.spec(process)).await;
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("/data/deep/er"));
        // Fields 5 and 6: process group and session, proc(5).
        let stat: Vec<&str> = lines.next().unwrap().split(' ').collect();
        assert_eq!(stat[4..6], ["1", "1"]);
    });
}
