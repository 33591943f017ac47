//! What the guest is asked for: OOM events, figures, last words, volumes; and
//! the mounts that containers share.

use crate::harness::{Calls, DEADLINE, Guest, assert_refused, container, context, skip};
use protocols::wire::agent;
use protocols::wire::agent::volume_usage::Unit;
use std::fs;
use std::time::Duration;
use ttrpc::Code;

const ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";

impl Calls {
    async fn last_words(&self, id: &str, log_type: &str) -> ttrpc::Result<String> {
        let mut request = agent::GetDiagnosticDataRequest::new();
        (request.container_id, request.log_type) = (id.into(), log_type.into());
        let reply = self.0.get_diagnostic_data(context(), &request).await?;
        Ok(reply.data)
    }

    async fn volume(&self, path: &str) -> ttrpc::Result<agent::VolumeStatsResponse> {
        let mut request = agent::VolumeStatsRequest::new();
        request.volume_guest_path = path.into();
        self.0.get_volume_stats(context(), &request).await
    }

    async fn update_mount(&self, storage: &agent::Storage) -> ttrpc::Result<()> {
        let mut request = agent::UpdateEphemeralMountsRequest::new();
        request.storages = vec![storage.clone()];
        let updated = self.0.update_ephemeral_mounts(context(), &request).await;
        updated.map(drop)
    }
}

#[tokio::test]
async fn the_last_words_of_a_container_are_told_and_no_more() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let log = guest.directory.path().join("termination-log");
    fs::write(&log, "bye").unwrap();
    let mut request = container(&guest, "web", &["sleep", "1000"]);
    let spec = request.OCI.as_mut().unwrap();
    spec.Annotations
        .insert(ANNOTATION.into(), "/dev/termination-log".into());
    let mut mount = crate::harness::mount("/dev/termination-log", "bind");
    mount.source = log.to_str().unwrap().into();
    mount.options = vec!["bind".into()];
    spec.Mounts.push(mount);
    calls.0.create_container(context(), &request).await.unwrap();
    let words = || calls.last_words("web", "termination_log");
    assert_eq!(words().await.unwrap(), "bye");
    // 8 GiB, and bytes that are no text.
    let file = fs::File::create(&log).unwrap();
    file.set_len(8 << 30).unwrap();
    assert_eq!(words().await.unwrap().len(), 4096);
    fs::write(&log, b"a\xffb").unwrap();
    assert_eq!(words().await.unwrap(), "a\u{fffd}b");
    fs::remove_file(&log).unwrap();
    assert_eq!(words().await.unwrap(), "");
    std::os::unix::fs::symlink("/etc/passwd", &log).unwrap();
    assert_refused(words().await, Code::INTERNAL, "termination log");
    let fifo = guest.directory.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    fs::rename(&fifo, &log).unwrap();
    assert_refused(words().await, Code::INTERNAL, "termination log");

    let other = calls.last_words("web", "dmesg").await;
    let words = "unsupported diagnostic log_type: dmesg";
    assert_refused(other, Code::INVALID_ARGUMENT, words);
    let unknown = calls.last_words("gone", "termination_log").await;
    assert_refused(unknown, Code::INVALID_ARGUMENT, "Invalid container id");
    calls.create(&guest, "plain", &["true"]).await;
    let none = calls.last_words("plain", "termination_log").await;
    assert_refused(none, Code::FAILED_PRECONDITION, ANNOTATION);
}

#[tokio::test]
async fn figures_are_told_by_their_known_names() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    for scrape in 1..3 {
        let request = agent::GetMetricsRequest::new();
        let text = calls
            .0
            .get_metrics(context(), &request)
            .await
            .unwrap()
            .metrics;
        assert!(text.contains(&format!("\nkata_agent_scrape_count {scrape}\n")));
        for family in [
            "agent_threads",
            "agent_total_time",
            "agent_total_vm",
            "agent_total_rss",
            "agent_proc_status",
            "agent_io_stat",
            "agent_proc_stat",
            "guest_load",
            "guest_tasks",
            "guest_cpu_time",
            "guest_vm_stat",
            "guest_netdev_stat",
            "guest_diskstat",
            "guest_meminfo",
            "guest_filesystem_bytes",
            "guest_filesystem_inodes",
        ] {
            assert!(text.contains(&format!("# TYPE kata_{family} ")), "{family}");
        }
    }
}

#[tokio::test]
async fn the_room_on_a_volume_is_told_in_bytes_and_inodes() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let reply = calls.volume("/run").await.unwrap();
    let [bytes, inodes] = &reply.usage[..] else {
        panic!("{reply:?}");
    };
    assert_eq!(bytes.unit.enum_value(), Ok(Unit::BYTES));
    assert_eq!(inodes.unit.enum_value(), Ok(Unit::INODES));
    for usage in [bytes, inodes] {
        assert!(usage.total > 0 && usage.used + usage.available <= usage.total);
    }
    assert!(!reply.volume_condition.abnormal);
    assert_eq!(reply.volume_condition.message, "OK");
    let missing = calls.volume("/no/such/volume").await;
    assert_refused(missing, Code::INTERNAL, "statvfs");
    for path in ["", "run", "/run/../etc", "/./run"] {
        let refused = calls.volume(path).await;
        assert_refused(refused, Code::INVALID_ARGUMENT, "volume_guest_path");
    }
    let mut resize = agent::ResizeVolumeRequest::new();
    resize.volume_guest_path = "/run".into();
    let refused = calls.0.resize_volume(context(), &resize).await;
    assert_refused(refused, Code::UNIMPLEMENTED, "ResizeVolume");
}

#[tokio::test]
async fn shared_memory_is_mounted_and_then_resized_where_it_is() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let point = "/run/kata-containers/sandbox/shm";
    let total = async || calls.volume(point).await.unwrap().usage[0].total;
    let mut storage = agent::Storage::new();
    storage.driver = "ephemeral".into();
    storage.fstype = "tmpfs".into();
    storage.source = "shm".into();
    storage.mount_point = point.into();
    storage.options = vec!["noexec".into(), "size=1048576".into()];
    calls.update_mount(&storage).await.unwrap();
    assert_eq!(total().await, 1 << 20);
    let file = guest.inside(&format!("{point}/file"));
    fs::write(&file, "kept").unwrap();
    storage.options = vec!["remount".into(), "size=4194304".into()];
    calls.update_mount(&storage).await.unwrap();
    assert_eq!(total().await, 4 << 20);
    assert_eq!(fs::read(&file).unwrap(), b"kept");
    storage.options[1] = "size=nonsense".into();
    assert_refused(
        calls.update_mount(&storage).await,
        Code::INTERNAL,
        "fsconfig",
    );
    storage.driver = "local".into();
    assert_refused(
        calls.update_mount(&storage).await,
        Code::INTERNAL,
        "not supported",
    );
    storage.mount_point.clear();
    let refused = calls.update_mount(&storage).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "mount_point");

    // What the host is asked for again, and found, stays.
    let shared = "/run/kata-containers/shared/containers/memory";
    storage.driver = "ephemeral".into();
    storage.mount_point = shared.into();
    storage.options = vec!["size=1048576".into()];
    calls.update_mount(&storage).await.unwrap();
    let before = guest.traces();
    let request = agent::RemoveStaleVirtiofsShareMountsRequest::new();
    let looked = calls
        .0
        .remove_stale_virtiofs_share_mounts(context(), &request);
    looked.await.unwrap();
    assert_eq!(guest.traces(), before);
}

#[tokio::test]
async fn whoever_waits_for_an_oom_event_holds_up_nobody_and_is_told_the_end() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let ask = agent::GetOOMEventRequest::new();
    let waiting = {
        let calls = calls.clone();
        let ask = ask.clone();
        tokio::spawn(async move { calls.0.get_oom_event(context(), &ask).await })
    };
    // One that gives up.
    let brief = ttrpc::context::with_timeout(50_000_000);
    assert!(
        guest
            .client()
            .await
            .get_oom_event(brief, &ask)
            .await
            .is_err()
    );
    calls.run(&guest, "web", &["true"]).await;
    assert_eq!(calls.wait("web", "").await.unwrap(), 0);
    let request = agent::DestroySandboxRequest::new();
    calls.0.destroy_sandbox(context(), &request).await.unwrap();
    let told = tokio::time::timeout(DEADLINE, waiting).await.unwrap();
    assert!(told.unwrap().is_err());
    assert_eq!(guest.ended().await, Some(0));
}

#[tokio::test]
async fn every_container_that_runs_out_of_memory_is_told_each_time() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let controllers = fs::read_to_string(guest.cgroup.join("cgroup.controllers"));
    if !controllers.unwrap().contains("memory") {
        return skip("no memory controller in the cgroup v2 hierarchy");
    }
    let calls = Calls(guest.client().await);
    let mut request = container(&guest, "web", &["sleep", "1000"]);
    let mut memory = agent::LinuxMemory::new();
    (memory.Limit, memory.Swap) = (16 << 20, 16 << 20);
    let mut resources = agent::LinuxResources::new();
    resources.Memory = Some(memory).into();
    let linux = request.OCI.as_mut().unwrap().Linux.as_mut().unwrap();
    linux.Resources = Some(resources).into();
    calls.0.create_container(context(), &request).await.unwrap();
    calls.start("web").await.unwrap();
    let ask = agent::GetOOMEventRequest::new();
    for round in 0..3 {
        if round == 2 {
            // The limit that counts is one that no container can reach.
            fs::write(guest.cgroup.join("c-web/own/memory.max"), "max").unwrap();
        }
        let exec = format!("eater{round}");
        let eat = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
        calls.exec("web", &exec, &eat).await.unwrap();
        assert_eq!(calls.wait("web", &exec).await.unwrap(), 137);
        let event = tokio::time::timeout(
            Duration::from_secs(20),
            calls.0.get_oom_event(context(), &ask),
        );
        assert_eq!(event.await.unwrap().unwrap().container_id, "web");
    }
}
