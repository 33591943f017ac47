//! Pause, resume, update and stats of a running container.

use crate::harness::{Calls, Guest, assert_refused, context};
use protocols::wire::agent;
use std::fs;
use ttrpc::Code;

impl Calls {
    async fn pause(&self, id: &str) -> ttrpc::Result<()> {
        let mut request = agent::PauseContainerRequest::new();
        request.container_id = id.into();
        self.0.pause_container(context(), &request).await.map(drop)
    }

    async fn resume(&self, id: &str) -> ttrpc::Result<()> {
        let mut request = agent::ResumeContainerRequest::new();
        request.container_id = id.into();
        self.0.resume_container(context(), &request).await.map(drop)
    }

    async fn stats(&self, id: &str) -> ttrpc::Result<agent::StatsContainerResponse> {
        let mut request = agent::StatsContainerRequest::new();
        request.container_id = id.into();
        self.0.stats_container(context(), &request).await
    }

    async fn update(
        &self,
        id: &str,
        resources: Option<agent::LinuxResources>,
    ) -> ttrpc::Result<()> {
        let mut request = agent::UpdateContainerRequest::new();
        request.container_id = id.into();
        request.resources = resources.into();
        self.0.update_container(context(), &request).await.map(drop)
    }
}

#[tokio::test]
async fn a_paused_container_stands_still_until_it_is_resumed() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    calls
        .run(
            &guest,
            "web",
            &["sh", "-c", "while read line; do echo $line; done"],
        )
        .await;
    calls.run(&guest, "other", &["sleep", "1000"]).await;
    let file = guest.cgroup.join("c-web/cgroup.events");
    let is_frozen = || fs::read_to_string(&file).unwrap().contains("frozen 1");
    for _ in 0..3 {
        calls.pause("web").await.unwrap();
        assert!(is_frozen());
        assert_refused(
            calls.pause("web").await,
            Code::FAILED_PRECONDITION,
            "is paused",
        );
        let exec = calls.exec("web", "one", &["true"]).await;
        assert_refused(exec, Code::FAILED_PRECONDITION, "is paused");
        calls.write("web", "", b"hello\n").await.unwrap();
        // Others go on.
        assert_eq!(calls.say("other", "one", "echo hi").await, "hi\n");
        calls.resume("web").await.unwrap();
        assert!(!is_frozen());
        assert_eq!(calls.read("web", "", 100).await.unwrap(), b"hello\n");
        assert_refused(
            calls.resume("web").await,
            Code::FAILED_PRECONDITION,
            "is not paused",
        );
        let mut release = agent::RemoveContainerRequest::new();
        release.container_id = "other".into();
        calls.0.remove_container(context(), &release).await.unwrap();
        calls.run(&guest, "other", &["sleep", "1000"]).await;
    }
    // One that is paused can be killed, and removed.
    calls.pause("web").await.unwrap();
    calls.signal("web", "", 9).await.unwrap();
    assert_eq!(calls.wait("web", "").await.unwrap(), 137);
    assert_refused(
        calls.resume("web").await,
        Code::FAILED_PRECONDITION,
        "is stopped",
    );
    calls.pause("other").await.unwrap();
    calls.remove("other").await.unwrap();
    for answer in [calls.pause("gone").await, calls.resume("gone").await] {
        assert_refused(answer, Code::INVALID_ARGUMENT, "Invalid container id");
    }
}

#[tokio::test]
async fn a_container_that_was_not_started_can_be_paused_and_is_then_not_started() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    calls.create(&guest, "web", &["echo", "hi"]).await;
    calls.pause("web").await.unwrap();
    assert_refused(
        calls.start("web").await,
        Code::FAILED_PRECONDITION,
        "is paused",
    );
    calls.resume("web").await.unwrap();
    calls.start("web").await.unwrap();
    assert_eq!(calls.output("web", "").await, ("hi\n".into(), 0));
}

#[tokio::test]
async fn what_a_container_uses_is_counted() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; cat";
    calls.run(&guest, "web", &["sh", "-c", script]).await;
    assert_eq!(calls.read("web", "", 100).await.unwrap(), b"done\n");
    let stats = calls.stats("web").await.unwrap();
    let cpu = &stats.cgroup_stats.cpu_stats.cpu_usage;
    assert!(cpu.total_usage > 100_000, "{cpu:?}");
    assert!(cpu.usage_in_usermode + cpu.usage_in_kernelmode <= cpu.total_usage + 2000);
    assert!(stats.cgroup_stats.memory_stats.use_hierarchy);
    // Its own network namespace has a loopback link alone.
    assert!(stats.network_stats.is_empty());
    let unknown = calls.stats("gone").await;
    assert_refused(unknown, Code::INVALID_ARGUMENT, "Invalid container id");
    calls.write("web", "", b"").await.unwrap();
    assert_eq!(calls.wait("web", "").await.unwrap(), 0);
    // What it used can still be asked for.
    let after = calls.stats("web").await.unwrap();
    let after = after.cgroup_stats.cpu_stats.cpu_usage.total_usage;
    assert!(after >= cpu.total_usage);
}

#[tokio::test]
async fn limits_are_changed_together_or_not_at_all() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    calls.run(&guest, "web", &["sleep", "1000"]).await;
    calls.update("web", None).await.unwrap();
    calls
        .update("web", Some(agent::LinuxResources::new()))
        .await
        .unwrap();
    let controllers = guest.cgroup.join("c-web/own/cgroup.controllers");
    let mut pids = agent::LinuxPids::new();
    pids.Limit = 20;
    let mut resources = agent::LinuxResources::new();
    resources.Pids = Some(pids).into();
    if fs::read_to_string(controllers).unwrap().contains("pids") {
        calls.update("web", Some(resources)).await.unwrap();
        for limit in ["c-web/pids.max", "c-web/own/pids.max"] {
            let limit = guest.cgroup.join(limit);
            assert_eq!(fs::read_to_string(limit).unwrap(), "20\n");
        }
        assert_eq!(
            calls
                .stats("web")
                .await
                .unwrap()
                .cgroup_stats
                .pids_stats
                .limit,
            20
        );
    } else {
        let refused = calls.update("web", Some(resources)).await;
        assert_refused(refused, Code::INTERNAL, "no cgroup controller pids");
    }
    let mut cpu = agent::LinuxCPU::new();
    cpu.Quota = -2;
    let mut resources = agent::LinuxResources::new();
    resources.CPU = Some(cpu).into();
    let refused = calls.update("web", Some(resources.clone())).await;
    assert_refused(refused, Code::INTERNAL, "-2");
    let unknown = calls.update("gone", Some(resources)).await;
    assert_refused(unknown, Code::INVALID_ARGUMENT, "Invalid container id");
    assert_eq!(calls.say("web", "one", "echo alive").await, "alive\n");
}
