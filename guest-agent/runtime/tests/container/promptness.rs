//! Whatever a container takes, the agent's one thread stays free for others:
//! held by a task that wants to run again and again.

use crate::fixture::{Fixture, run, shell};
use guest_runtime::container::{
    ArgumentOperator, ArgumentTest, ContainerSpec, HookSpec, SeccompAction, SeccompProfile,
    SeccompRule,
};
use std::time::{Duration, Instant};

/// What a thread that is held up has taken at least, of all the time.
const SLOW: Duration = Duration::from_millis(400);

/// How long `work` took, and how long it kept all others from running at most.
async fn held_up(work: impl Future<Output = ()>) -> (Duration, Duration) {
    let others = async {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            LONGEST.with(|all| all.set(longest));
        }
    };
    std::thread_local! {
        static LONGEST: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
    }
    let begun = Instant::now();
    tokio::select! {
        biased;
        () = others => {}
        () = work => {}
    }
    (begun.elapsed(), LONGEST.with(std::cell::Cell::get))
}

async fn assert_prompt(fixture: &Fixture, spec: &ContainerSpec) {
    let work = async {
        if let Ok(created) = fixture.launcher.create(spec, false).await {
            drop(created.start);
            fixture.remove(&created.cgroup).await;
        }
    };
    let (took, held_up) = held_up(work).await;
    assert!(took > SLOW, "it takes no time at all: {took:?}");
    assert!(held_up < took / 2, "{held_up:?} of {took:?}");
}

#[test]
fn hooks_that_take_long_hold_nobody_up() {
    run(|fixture| async move {
        let slow = || {
            vec![HookSpec {
                path: "/bin/busybox".into(),
                args: ["sleep", "1"].map(Into::into).into(),
                env: Vec::new(),
                timeout: Duration::from_secs(20),
            }]
        };
        let mut spec = fixture.spec(shell("true"));
        spec.hooks.prestart = slow();
        spec.hooks.create_container = slow();
        assert_prompt(&fixture, &spec).await;
    });
}

#[test]
fn a_filter_that_takes_long_to_make_holds_nobody_up() {
    run(|fixture| async move {
        let test = |value| ArgumentTest::new(0, ArgumentOperator::Equal, value, 0).unwrap();
        let mut spec = fixture.spec(shell("true"));
        // Refused in the end: the kernel takes no program as long.
        spec.process.seccomp = Some(SeccompProfile {
            default_action: SeccompAction::Allow,
            architectures: vec!["SCMP_ARCH_X86".parse().unwrap()],
            flags: Vec::new(),
            rules: (0..100_000)
                .map(|value| SeccompRule {
                    names: vec!["openat".into()],
                    action: SeccompAction::Errno(1),
                    tests: (0..6).map(|more| test(value + more)).collect(),
                })
                .collect(),
        });
        assert_prompt(&fixture, &spec).await;
    });
}
