//! Many clients at once, and clients that vanish: nobody waits for what is
//! stuck elsewhere, and nothing is left of what nobody waits for.

use crate::harness::{
    AgentServiceClient, Calls, DEADLINE, Guest, assert_refused, container, context, refusal, skip,
};
use protocols::wire::agent;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};
use ttrpc::Code;

/// Far below the deadline of any call that is stuck; a busy machine needs some
/// of it.
const AT_ONCE: Duration = Duration::from_secs(10);
/// How many containers a storm is of.
const CONTAINERS: usize = 200;
/// How many of them are under way together.
const TOGETHER: usize = 12;

/// A file system that never answers: nobody reads what the kernel asks of it.
const STUCK: &str = "exec 9<>/dev/fuse && mkdir /run/stuck && \
    mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 none /run/stuck";

/// Whether the agent lives, and how long it took to say so.
async fn check(guest: &Guest) -> Duration {
    let begun = Instant::now();
    let health = crate::harness::HealthClient::new(guest.raw_client().await);
    let request = agent::CheckRequest::new();
    health.check(context(), &request).await.unwrap();
    begun.elapsed()
}

/// Calls on a connection that is used later: the agent gives up one on which
/// nothing is said for some seconds, and a busy machine takes longer.
async fn heard(guest: &Guest) -> Calls {
    let calls = Calls(guest.client().await);
    assert!(calls.remove("nothing").await.is_err());
    calls
}

#[tokio::test]
async fn a_full_pipe_holds_up_its_own_container_alone() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    // One that nobody listens to, and one that listens to nobody.
    calls.run(&guest, "loud", &["yes"]).await;
    calls.run(&guest, "deaf", &["sleep", "1000"]).await;
    let data = vec![b'x'; 1 << 20];
    let unread = tokio::spawn({
        let calls = calls.clone();
        async move { calls.write("deaf", "", &data).await }
    });
    let begun = Instant::now();
    for round in 0..5 {
        assert!(check(&guest).await < AT_ONCE);
        let id = format!("quick{round}");
        calls.run(&guest, &id, &["echo", "done"]).await;
        assert_eq!(calls.output(&id, "").await, ("done\n".into(), 0));
        calls.remove(&id).await.unwrap();
    }
    assert!(begun.elapsed() < 5 * AT_ONCE);
    assert!(!unread.is_finished());
    calls.signal("deaf", "", 9).await.unwrap();
    // Whichever is seen first: the end of the reader, or that of the process.
    let (_, text) = refusal(unread.await.unwrap());
    assert!(text.contains("stdin"), "{text}");
}

/// A filter of tens of thousands of tests takes a second to be made, and is
/// then too long for the kernel.
fn endless_profile() -> agent::LinuxSeccomp {
    let test = |value| {
        let mut test = agent::LinuxSeccompArg::new();
        (test.Value, test.Op) = (value, "SCMP_CMP_EQ".into());
        test
    };
    let rule = |value| {
        let mut rule = agent::LinuxSyscall::new();
        rule.Names = vec!["openat".into()];
        rule.Action = "SCMP_ACT_ERRNO".into();
        rule.Args = (0..6_u64).map(|more| test(value + more)).collect();
        rule
    };
    let mut profile = agent::LinuxSeccomp::new();
    profile.DefaultAction = "SCMP_ACT_ALLOW".into();
    profile.Architectures = vec!["SCMP_ARCH_X86".into()];
    profile.Syscalls = (0..20_000).map(rule).collect();
    profile
}

/// Waits until somebody has opened a FIFO to read it; the end to write to.
async fn reader_of(fifo: PathBuf) -> File {
    let (opened, wait) = oneshot::channel();
    // A thread that nobody waits for, should there be no reader.
    std::thread::spawn(move || opened.send(File::options().write(true).open(fifo)));
    let writer = tokio::time::timeout(DEADLINE, wait).await;
    writer.expect("the FIFO is read").unwrap().unwrap()
}

#[tokio::test]
async fn health_is_answered_while_a_filter_is_made_and_while_a_hook_runs() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = heard(&guest).await;
    let mut request = container(&guest, "filtered", &["true"]);
    let linux = request.OCI.mut_or_insert_default().Linux.as_mut().unwrap();
    linux.Seccomp = Some(endless_profile()).into();
    // Nothing holds the filter up: on a busy machine it may be made before the
    // answer is here.
    let mut was_meanwhile = false;
    for _ in 0..10 {
        let making = tokio::spawn({
            let (calls, request) = (calls.clone(), request.clone());
            async move { calls.0.create_container(context(), &request).await }
        });
        // Behind the request, which is a large one.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(check(&guest).await < AT_ONCE);
        was_meanwhile = !making.is_finished();
        assert_refused(making.await.unwrap(), Code::INTERNAL, "instructions");
        if was_meanwhile {
            break;
        }
    }
    assert!(was_meanwhile);

    let gate = guest.root().join("data/gate");
    mknodat(CWD, &gate, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut hook = agent::Hook::new();
    hook.Path = "/bin/busybox".into();
    hook.Args = vec!["cat".into(), "/data/gate".into()];
    hook.Timeout = i64::try_from(DEADLINE.as_secs()).unwrap();
    let mut request = container(&guest, "hooked", &["true"]);
    let spec = request.OCI.mut_or_insert_default();
    spec.Hooks.mut_or_insert_default().StartContainer = vec![hook];
    calls.0.create_container(context(), &request).await.unwrap();
    let starting = tokio::spawn({
        let calls = calls.clone();
        async move { calls.start("hooked").await }
    });
    // It runs, and reads until there is no writer.
    let writer = reader_of(gate).await;
    assert!(check(&guest).await < AT_ONCE);
    assert!(!starting.is_finished());
    drop(writer);
    starting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stuck_mount_holds_up_nobody_who_does_not_ask_for_it() {
    if !Path::new("/dev/fuse").exists() {
        return skip("no /dev/fuse");
    }
    let Some(guest) = Guest::start_with(STUCK, &[]).await else {
        return;
    };
    let mut request = agent::VolumeStatsRequest::new();
    request.volume_guest_path = "/run/stuck/volume".into();
    let client = guest.client().await;
    let mut stuck = Vec::new();
    for _ in 0..100 {
        let (client, request) = (client.clone(), request.clone());
        stuck.push(tokio::spawn(async move {
            client.get_volume_stats(context(), &request).await
        }));
    }
    let calls = Calls(guest.client().await);
    // A container that waits for it, too: its storage is never mounted.
    let mut storage = agent::Storage::new();
    storage.driver = "bind".into();
    storage.source = "/run/stuck/volume".into();
    storage.mount_point = "/run/kata-containers/waits/rootfs".into();
    let mut waits = container(&guest, "waits", &["true"]);
    waits.storages = vec![storage];
    let waiting = tokio::spawn({
        let client = guest.client().await;
        async move { client.create_container(context(), &waits).await }
    });
    for round in 0..5 {
        assert!(check(&guest).await < AT_ONCE);
        let id = format!("quick{round}");
        calls.run(&guest, &id, &["echo", "done"]).await;
        assert_eq!(calls.output(&id, "").await, ("done\n".into(), 0));
        calls.remove(&id).await.unwrap();
    }
    assert!(!waiting.is_finished());
    // Only so many wait for it; the others were told at once.
    let mut refused = 0;
    for one in stuck {
        if one.is_finished() {
            let answer = one.await.unwrap();
            assert_refused(answer, Code::RESOURCE_EXHAUSTED, "too many questions");
            refused += 1;
        }
    }
    assert_eq!(refused, 100 - 32);
    // Those who ask and vanish leave the agent as it was.
    drop(client);
    assert!(check(&guest).await < AT_ONCE);
}

/// xorshift64: a storm can be had again by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// One client's life: a container, and what it does with it as far as its
/// patience reaches. Then its connection is gone, in the middle of a call or
/// between two.
async fn live(client: AgentServiceClient, request: agent::CreateContainerRequest, id: String) {
    let calls = Calls(client);
    let made = calls.0.create_container(context(), &request).await;
    made.unwrap();
    calls.start(&id).await.unwrap();
    calls
        .exec(&id, "one", &["sh", "-c", "echo hi; sleep 1000 & exit 3"])
        .await
        .unwrap();
    assert_eq!(calls.read(&id, "one", 100).await.unwrap(), b"hi\n");
    calls.exec(&id, "two", &["cat"]).await.unwrap();
    calls.write(&id, "two", b"hello").await.unwrap();
    assert_eq!(calls.wait(&id, "one").await.unwrap(), 3);
    let mut pause = agent::PauseContainerRequest::new();
    pause.container_id = id.clone();
    calls.0.pause_container(context(), &pause).await.unwrap();
    let mut resume = agent::ResumeContainerRequest::new();
    resume.container_id = id.clone();
    calls.0.resume_container(context(), &resume).await.unwrap();
    calls.signal(&id, "", 9).await.unwrap();
    assert_eq!(calls.wait(&id, "").await.unwrap(), 137);
    calls.remove(&id).await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_of_many_containers_whose_clients_vanish_at_random() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let seed = std::process::id().into();
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    // The agent's threads and heap are there before it is counted.
    let calls = heard(&guest).await;
    let begun = Instant::now();
    let first = container(&guest, "first", &["sleep", "1000"]);
    live(guest.client().await, first, "first".into()).await;
    // What a life takes when so many are under way, about.
    let life = begun.elapsed() * u32::try_from(TOGETHER / 4).unwrap();
    let life = u64::try_from(life.as_micros()).unwrap();
    let (before, descriptors) = (guest.traces(), guest.descriptors());

    let room = Arc::new(Semaphore::new(TOGETHER));
    let mut clients = Vec::new();
    for number in 0..CONTAINERS {
        let turn = Arc::clone(&room).acquire_owned().await.unwrap();
        let id = format!("storm{number}");
        let client = guest.client().await;
        let lived = live(client, container(&guest, &id, &["sleep", "1000"]), id);
        // Some see it through.
        let patience = match random.below(8) {
            0 => DEADLINE,
            _ => Duration::from_micros(random.below(life)),
        };
        clients.push(tokio::spawn(async move {
            let _turn = turn;
            tokio::time::timeout(patience, lived).await.is_ok()
        }));
    }
    let mut whole = 0;
    for client in clients {
        whole += usize::from(client.await.unwrap());
    }
    eprintln!("{whole} of {CONTAINERS} clients saw it through");
    assert!(whole > 0 && whole < CONTAINERS);

    // Whoever cleans up asks for every container until there is none: one may
    // still be on its way.
    let swept = async {
        while guest.traces() != before || guest.descriptors() > descriptors {
            for number in 0..CONTAINERS {
                // It may never have been, be on its way, or be being removed.
                let _ = calls.remove(&format!("storm{number}")).await;
            }
            // An answer that comes at once would keep the deadline from passing.
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(2 * DEADLINE, swept).await.is_err() {
        assert_eq!(guest.traces(), before);
        assert_eq!(guest.descriptors(), descriptors);
    }
    // And it is as good as new.
    calls.run(&guest, "last", &["echo", "done"]).await;
    assert_eq!(calls.output("last", "").await, ("done\n".into(), 0));
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_no_container_half_paused() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let calls = Calls(guest.client().await);
    calls.run(&guest, "web", &["sleep", "1000"]).await;
    let mut pause = agent::PauseContainerRequest::new();
    pause.container_id = "web".into();
    let mut resume = agent::ResumeContainerRequest::new();
    resume.container_id = "web".into();
    for micros in [0, 50, 100, 200, 400, 800, 1600, 3200] {
        let client = guest.client().await;
        let patience = Duration::from_micros(micros);
        let _ = tokio::time::timeout(patience, client.pause_container(context(), &pause)).await;
        drop(client);
        // Either it was never asked, or it ends paused; it is not left between.
        let paused = async {
            loop {
                match calls.0.pause_container(context(), &pause).await {
                    Ok(_) => return,
                    Err(ttrpc::Error::RpcStatus(status))
                        if status.message.ends_with("is paused") =>
                    {
                        return;
                    }
                    Err(error) => assert!(error.to_string().contains("being paused"), "{error}"),
                }
            }
        };
        tokio::time::timeout(DEADLINE, paused).await.unwrap();
        // What the other asked for last may arrive only now: it is resumed until
        // it runs.
        let exec = format!("exec{micros}");
        let runs = async {
            while let Err(error) = calls.exec("web", &exec, &["echo", "up"]).await {
                assert!(error.to_string().contains("paused"), "{error}");
                // It may still be on its way to stand still.
                let _ = calls.0.resume_container(context(), &resume).await;
            }
        };
        tokio::time::timeout(DEADLINE, runs).await.unwrap();
    }
}
