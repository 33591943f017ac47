//! Containers in a real guest, asked for by the agent's own calls: what becomes
//! of their processes' descriptors, of input nobody reads, and of what they want
//! run after a thaw.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use agent_client::{
    ClientError, ContainerConfig, Generation, Identity, Network, ProcessName, Purpose, Rootfs,
    ThawOrder,
};
use std::time::{Duration, Instant};
use tardigrade_tests::images;
use tardigrade_tests::machine::{self, Machine, ROOTFS};

/// Every wait here is for an emulated guest on a shared machine.
const DEADLINE: Duration = Duration::from_secs(120);
const SIGKILL: u32 = 9;

async fn boot() -> (Machine, impl Drop) {
    let (kept, directory) = machine::directory();
    let spec = machine::spec(&directory, 128, Some(&images::busybox()));
    let qemu = machine::qemu().await.unwrap();
    (Machine::boot(&qemu, &spec).await.unwrap(), kept)
}

/// Another container, with the same files.
fn another(id: &str, command: &[&str]) -> ContainerConfig {
    let command = command.iter().map(ToString::to_string).collect();
    ContainerConfig::new(id, Rootfs::Existing(ROOTFS.into()), command)
}

/// What the agent holds: its descriptors, and its memory in KiB.
async fn held(machine: &Machine) -> (u64, u64) {
    let script = format!(
        "B={ROOTFS}/bin/busybox; $B ls /proc/$PPID/fd | $B wc -l; \
         $B awk '/^VmRSS/ {{ print $2 }}' /proc/$PPID/status; $B tr '\\0' ' ' < /proc/$PPID/cmdline"
    );
    let (status, text) = machine.exec_in_guest(&script).await.unwrap();
    let mut lines = text.lines();
    let mut number = || lines.next().and_then(|line| line.trim().parse().ok());
    let numbers = (number(), number());
    assert!(text.contains("guest-agent agent"), "{status} {text:?}");
    (numbers.0.unwrap(), numbers.1.unwrap())
}

#[tokio::test]
async fn an_ended_exec_leaves_its_status_and_no_descriptor() {
    const EXECS: u64 = 25;
    const UNREAD: u64 = 10;
    /// What may come and go meanwhile, far below one for each exec.
    const SLACK: u64 = 4;
    let (machine, _kept) = boot().await;
    let agent = &machine.agent;
    machine.start(&["sleep", "100000"]).await.unwrap();
    machine
        .add(another("web", &["sleep", "100000"]))
        .await
        .unwrap();
    let (before, _) = held(&machine).await;

    let id = |number: u64| format!("exec{number}");
    for number in 0..EXECS {
        let id = id(number);
        let name = ProcessName::exec("web", &id);
        let command = ["sh", "-c", "echo out; echo err >&2; exit 7"];
        agent.exec_process(name, &command, DEADLINE).await.unwrap();
        let mut output = Vec::new();
        loop {
            let data = agent.read_stdout(name, 100, DEADLINE).await.unwrap();
            if data.is_empty() {
                break;
            }
            output.extend(data);
        }
        assert_eq!(output, b"out\n");
        while !agent
            .read_stderr(name, 100, DEADLINE)
            .await
            .unwrap()
            .is_empty()
        {}
        assert_eq!(agent.wait_process(name, DEADLINE).await.unwrap(), 7);
    }
    let (after, _) = held(&machine).await;
    assert!(
        after <= before + SLACK,
        "{before} descriptors, then {after}"
    );
    // Ended, read and closed: the status is there for whoever asks.
    for number in 0..EXECS {
        let id = id(number);
        let name = ProcessName::exec("web", &id);
        assert_eq!(agent.wait_process(name, DEADLINE).await.unwrap(), 7);
        let more = agent.read_stdout(name, 100, DEADLINE).await.unwrap();
        assert!(more.is_empty());
    }

    // What nobody has read can still be read, and goes with the container.
    for number in EXECS..EXECS + UNREAD {
        let id = id(number);
        let name = ProcessName::exec("web", &id);
        agent
            .exec_process(name, &["echo", "unread"], DEADLINE)
            .await
            .unwrap();
        assert_eq!(agent.wait_process(name, DEADLINE).await.unwrap(), 0);
    }
    let (unread, _) = held(&machine).await;
    assert!(
        unread >= after + UNREAD,
        "{after} descriptors, then {unread}"
    );
    agent.remove_container("web", DEADLINE).await.unwrap();
    let (removed, _) = held(&machine).await;
    assert!(
        removed <= before + SLACK,
        "{before} descriptors, then {removed}"
    );
    let first = id(0);
    let gone = agent.wait_process(ProcessName::exec("web", &first), DEADLINE);
    assert!(gone.await.is_err());
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_process_that_never_reads_its_stdin_holds_up_nobody_else() {
    const PIECE: usize = 1 << 19;
    /// Pieces until the agent has had to do with as many at once as it ever
    /// will: its heap keeps the room it once needed.
    const FIRST: usize = 4;
    const MORE: usize = 8;
    /// Long enough for a piece to arrive on a busy machine.
    const PATIENCE: Duration = Duration::from_millis(1500);
    /// One piece may wait in the agent and one be on its way, in the few copies
    /// there are of a message while it is read, decoded and handed on.
    const ROOM_KIB: u64 = 6 << 10;
    /// Less than two of the pieces that nobody has read.
    const GROWTH_KIB: u64 = 900;
    let (machine, _kept) = boot().await;
    let agent = &machine.agent;
    machine.start(&["sleep", "100000"]).await.unwrap();
    machine.add(another("echo", &["cat"])).await.unwrap();
    let (deaf, echo) = (ProcessName::init("main"), ProcessName::init("echo"));
    let piece = vec![b'x'; PIECE];
    let write_unread = async |pieces: usize| {
        for _ in 0..pieces {
            let begun = Instant::now();
            let written = agent.write_stdin(deaf, &piece, PATIENCE).await;
            assert!(
                matches!(written, Err(ClientError::Deadline { .. })),
                "{written:?}"
            );
            assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
        }
        held(&machine).await.1
    };
    let (_, before) = held(&machine).await;
    let first = write_unread(FIRST).await;
    assert!(first < before + ROOM_KIB, "{before} KiB, then {first}");
    let more = write_unread(MORE).await;
    assert!(more < first + GROWTH_KIB, "{first} KiB, then {more}");

    // While one write waits, all else is done.
    let waiting = agent.write_stdin(deaf, &piece, 2 * DEADLINE);
    let others = async {
        agent.check(DEADLINE).await.unwrap();
        assert_eq!(
            agent.write_stdin(echo, b"hello", DEADLINE).await.unwrap(),
            5
        );
        agent.close_stdin(echo, DEADLINE).await.unwrap();
        assert_eq!(
            agent.read_stdout(echo, 100, DEADLINE).await.unwrap(),
            b"hello"
        );
        assert_eq!(agent.wait_process(echo, DEADLINE).await.unwrap(), 0);
        agent.close_stdin(deaf, DEADLINE).await.unwrap();
    };
    tokio::select! {
        biased;
        written = waiting => panic!("nobody reads it: {written:?}"),
        () = others => {}
    }
    agent.signal_process(deaf, SIGKILL, DEADLINE).await.unwrap();
    let status = agent.wait_process(deaf, DEADLINE).await.unwrap();
    assert_eq!(status, 128 + SIGKILL as i32);
    machine.kill().await.unwrap();
}

fn own_life(quiesce_id: agent_client::QuiesceId, number: u8) -> ThawOrder {
    ThawOrder {
        quiesce_id,
        generation: Generation::random().unwrap(),
        identity: Identity {
            hostname: format!("clone-{number}"),
            machine_id: format!("{number:032x}"),
            boot_id: format!("00000000-0000-4000-8000-0000000000{number:02x}"),
        },
        network: Network::default(),
        dns: Vec::new(),
        files: Vec::new(),
    }
}

#[tokio::test]
async fn each_clone_runs_its_after_thaw_hooks_once_and_one_that_hangs_is_told() {
    const HOOKS: &str = r#"[["sh", "-c", "cat /run/tardigrade/generation >> /tmp/hook; echo >> /tmp/hook"],
        ["sleep", "100000"], ["sh", "-c", "exit 3"], ["no-such-command"]]"#;
    let qemu = machine::qemu().await.unwrap();
    let (_kept, template) = machine::directory();
    let spec = machine::spec(&template, 128, Some(&images::busybox()));
    let booted = Machine::boot(&qemu, &spec).await.unwrap();
    let mut container = machine::container(&["sleep", "100000"]);
    let annotation = ("dev.tardigrade.after-thaw".to_owned(), HOOKS.to_owned());
    container.annotations.extend([annotation]);
    booted.start_as(container).await.unwrap();
    let quiesced = booted.agent.quiesce(Purpose::Template, DEADLINE).await;
    let quiesce_id = quiesced.unwrap().quiesce_id;
    booted.save(&template).await.unwrap();

    for number in 1..=2 {
        let (_kept, directory) = machine::directory();
        let clone = Machine::resume_copy(&qemu, &template, &spec, &directory);
        let clone = clone.await.unwrap();
        let order = own_life(quiesce_id, number);
        clone.agent.thaw(&order, DEADLINE).await.unwrap();
        // The second hook hangs, and the container is handed over all the same.
        let begun = Instant::now();
        let first_ran = async {
            while begun.elapsed() < DEADLINE {
                let ran = clone.exec(&["cat", "/tmp/hook"]).await;
                if matches!(&ran, Ok((0, text)) if !text.is_empty()) {
                    return Instant::now();
                }
            }
            panic!("the first hook has left nothing within {DEADLINE:?}");
        };
        let release = async {
            let released = clone.agent.release(order.generation, None, DEADLINE).await;
            (released.unwrap(), Instant::now())
        };
        let ((released, ended), ran) = tokio::join!(release, first_ran);
        assert!(
            ran < ended,
            "the container could not be used while a hook hung"
        );
        let outcome = |place: usize| {
            let hook = &released.hooks[place];
            assert_eq!(hook.container_id, "main");
            (hook.path.as_str(), hook.exit_status, hook.timed_out)
        };
        assert_eq!(released.hooks.len(), 4);
        assert_eq!(outcome(0), ("sh", 0, false));
        assert_eq!(outcome(1), ("sleep", 128 + SIGKILL as i32, true));
        assert_eq!(outcome(2), ("sh", 3, false));
        assert_eq!(outcome(3), ("no-such-command", 127, false));

        // Once, in its own life.
        let (status, text) = clone.exec(&["cat", "/tmp/hook"]).await.unwrap();
        assert_eq!(status, 0);
        let lives: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(lives.len(), 1, "{text}");
        let generation: String = order
            .generation
            .as_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(lives[0], generation);
        clone.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_template_saved_with_unread_bytes_recovers() {
    let qemu = machine::qemu().await.unwrap();
    let (_kept, template) = machine::directory();
    let spec = machine::spec(&template, 128, Some(&images::busybox()));
    let booted = Machine::boot(&qemu, &spec).await.unwrap();
    booted.start(&["sleep", "100000"]).await.unwrap();
    let serial = template.join("serial.sock");
    booted.pause_with_unread_bytes(&serial).await.unwrap();
    booted.save(&template).await.unwrap();

    let (_kept, directory) = machine::directory();
    let copy = Machine::resume_copy(&qemu, &template, &spec, &directory);
    let copy = copy.await.unwrap();
    let (status, text) = copy.exec(&["echo", "heard"]).await.unwrap();
    assert_eq!((status, text.as_str()), (0, "heard\n"));
    copy.kill().await.unwrap();
}
