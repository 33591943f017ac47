//! The memory agent of a real guest: what containers have read and no longer use
//! is taken back, by generations of pages and by `memory.reclaim`; free memory is
//! put together; and a freeze waits for none of it.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use agent_client::{
    ClientError, Generation, Identity, MemoryCompaction, MemoryReclaim, Network, Purpose,
    StatusCode, ThawOrder,
};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tardigrade_tests::console::Console;
use tardigrade_tests::images;
use tardigrade_tests::machine::{self, Machine, ROOTFS};

/// Every wait here is for an emulated guest on a shared machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// What a container reads, bytes.
const READ: usize = 24 << 20;
/// What it may keep of that.
const KEPT: u64 = 4 << 20;
/// The most that a freeze may take, by the agent's own limit of 10 s, and what the
/// call itself may on a shared machine: far less than a compaction may.
const FREEZE: Duration = Duration::from_secs(10 + 10);

/// A disk with busybox, and a file to be read.
fn disk(directory: &Path) -> std::path::PathBuf {
    let tree = directory.join("tree");
    for place in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(tree.join(place)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "dd", "sleep"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    // Of pages that are all different: none is left out of the image.
    let mut payload = vec![0; READ];
    for (number, page) in payload.chunks_exact_mut(4096).enumerate() {
        page[..8].copy_from_slice(&number.to_le_bytes());
    }
    fs::write(tree.join("payload"), payload).unwrap();
    let image = directory.join("disk.erofs");
    images::tree_to_erofs(&tree, &image);
    image
}

/// A guest whose memory agent does nothing until it is told to.
async fn boot(directory: &Path, words: &str) -> Machine {
    let mut spec = machine::spec(directory, 256, Some(&disk(directory)));
    spec.cmdline = format!(
        "{} agent.mem_agent_memcg_disable=true agent.mem_agent_compact_disable=true \
         agent.mem_agent_enable=1 {words}",
        spec.cmdline
    );
    let qemu = machine::qemu().await.unwrap();
    let machine = Machine::boot(&qemu, &spec).await.unwrap();
    machine.start(&["sleep", "100000"]).await.unwrap();
    machine
}

/// A number that the guest's file has behind a word.
async fn number(machine: &Machine, file: &str, word: &str) -> u64 {
    let script = format!("{ROOTFS}/bin/busybox awk '$1 == \"{word}\" {{ print $2 }}' {file}");
    let (status, text) = machine.exec_in_guest(&script).await.unwrap();
    assert_eq!(status, 0, "{text}");
    text.trim().parse().unwrap()
}

/// What the container holds of files, bytes.
async fn cached(machine: &Machine) -> u64 {
    let file = "/sys/fs/cgroup/tardigrade/c-main/memory.stat";
    number(machine, file, "file").await
}

async fn read(machine: &Machine) {
    let script = "cat /payload > /dev/null && echo read";
    let (status, said) = machine.exec(&["sh", "-c", script]).await.unwrap();
    assert_eq!((status, said.as_str()), (0, "read\n"));
}

/// A page of a file is taken when nobody has used it for some periods, and no
/// sooner: until then, that is until the job is on, it stays.
async fn takes_back_what_was_read(words: &str) {
    let (_kept, directory) = machine::directory();
    let machine = boot(&directory, words).await;
    read(&machine).await;
    let before = cached(&machine).await;
    assert!(before > READ as u64 * 3 / 4, "{before}");
    let mut change = MemoryReclaim {
        period_secs: Some(1),
        eviction_run_aging_count_min: Some(2),
        ..MemoryReclaim::default()
    };
    let agent = &machine.agent;
    agent.set_memory_reclaim(&change, DEADLINE).await.unwrap();
    // It is still off.
    assert!(cached(&machine).await > before / 2);
    change = MemoryReclaim {
        disabled: Some(false),
        ..MemoryReclaim::default()
    };
    agent.set_memory_reclaim(&change, DEADLINE).await.unwrap();
    let begun = Instant::now();
    let mut left = before;
    while left > KEPT {
        assert!(begun.elapsed() < DEADLINE, "{left} of {before} bytes left");
        left = cached(&machine).await;
    }
    // It was memory and not content that was lost, and the freeze comes through.
    read(&machine).await;
    agent.quiesce(Purpose::Template, DEADLINE).await.unwrap();
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn what_a_container_no_longer_uses_is_taken_by_generations() {
    takes_back_what_was_read("").await;
}

#[tokio::test]
async fn what_a_container_no_longer_uses_is_taken_where_nobody_sees_generations() {
    takes_back_what_was_read("debugfs=off").await;
}

/// Has free memory be put together once a second, whatever it is like and
/// whoever waits for memory.
async fn compact(machine: &Machine) {
    let change = MemoryCompaction {
        disabled: Some(false),
        period_secs: Some(1),
        period_psi_percent_limit: Some(100),
        compact_psi_percent_limit: Some(100),
        compact_force_times: Some(0),
        ..MemoryCompaction::default()
    };
    let changed = machine.agent.set_memory_compaction(&change, DEADLINE).await;
    changed.unwrap();
}

#[tokio::test]
async fn free_memory_is_put_together_by_the_kernel_and_pages_are_moved_for_it() {
    let (_kept, directory) = machine::directory();
    let machine = boot(&directory, "").await;
    read(&machine).await;
    let counted = async |word| number(&machine, "/proc/vmstat", word).await;
    let words = [
        "compact_migrate_scanned",
        "compact_free_scanned",
        "pgmigrate_success",
    ];
    let mut before = Vec::new();
    for word in words {
        before.push(counted(word).await);
    }
    // It is off: whoever else may do it has no reason to.
    for (word, before) in words.into_iter().zip(&before) {
        assert_eq!(counted(word).await, *before, "{word}");
    }
    compact(&machine).await;
    let begun = Instant::now();
    for (word, before) in words.into_iter().zip(before) {
        while counted(word).await == before {
            assert!(begun.elapsed() < DEADLINE, "{word} stays at {before}");
        }
        eprintln!("{word} has grown after {:?}", begun.elapsed());
    }
    let refused = MemoryCompaction {
        compact_order: Some(11),
        ..MemoryCompaction::default()
    };
    let refused = machine
        .agent
        .set_memory_compaction(&refused, DEADLINE)
        .await;
    assert!(
        matches!(&refused, Err(ClientError::Status { code, .. }) if *code == StatusCode::InvalidArgument),
        "{refused:?}"
    );
    machine.kill().await.unwrap();
}

/// Whether a compaction was killed for the freeze that comes once one has begun;
/// if not, the guest runs again.
async fn freeze_while_compacting(machine: &Machine, console: &mut Console) -> bool {
    let agent = &machine.agent;
    console.forget();
    console.hear("compacting memory").await.unwrap();
    let begun = Instant::now();
    let quiesced = agent.quiesce(Purpose::Template, DEADLINE).await.unwrap();
    let waited = begun.elapsed();
    assert!(waited < FREEZE, "{waited:?}");
    let said = console.hear("compacted memory").await.unwrap();
    let mut ends = said
        .lines()
        .filter(|line| line.contains("compacted memory"));
    let was_killed = ends.any(|line| line.contains("\"ended\":\"quiesce\""));
    eprintln!("frozen after {waited:?}, a compaction was killed for it: {was_killed}");
    if was_killed {
        return true;
    }
    let order = ThawOrder {
        quiesce_id: quiesced.quiesce_id,
        generation: Generation::random().unwrap(),
        identity: Identity {
            hostname: "same".into(),
            machine_id: "1".repeat(32),
            boot_id: "00000000-0000-4000-8000-000000000001".into(),
        },
        network: Network::default(),
        dns: Vec::new(),
        files: Vec::new(),
    };
    agent.thaw(&order, DEADLINE).await.unwrap();
    let released = agent.release(order.generation, None, DEADLINE).await;
    released.unwrap();
    false
}

#[tokio::test]
async fn a_freeze_in_the_middle_of_a_compaction_has_it_killed() {
    let (_kept, directory) = machine::directory();
    let machine = boot(&directory, "agent.log=debug").await;
    let mut console = Console::connect(&directory.join("console.sock"))
        .await
        .unwrap();
    // Much to be moved.
    read(&machine).await;
    let script = "dd if=/dev/zero of=/tmp/much bs=1048576 count=64 && echo written";
    let (status, said) = machine.exec(&["sh", "-c", script]).await.unwrap();
    assert_eq!((status, said.as_str()), (0, "written\n"));
    compact(&machine).await;
    // Nothing holds a compaction open: one may have ended before the freeze.
    let begun = Instant::now();
    while !freeze_while_compacting(&machine, &mut console).await {
        assert!(begun.elapsed() < DEADLINE, "no freeze found a compaction");
    }
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_kernel_that_counts_no_pressure_is_told_to_who_changes_settings() {
    let (_kept, directory) = machine::directory();
    let machine = boot(&directory, "psi=0").await;
    let agent = &machine.agent;
    let (reclaim, compaction) = (MemoryReclaim::default(), MemoryCompaction::default());
    for refused in [
        agent.set_memory_reclaim(&reclaim, DEADLINE).await,
        agent.set_memory_compaction(&compaction, DEADLINE).await,
    ] {
        let text = refused.unwrap_err().to_string();
        assert!(
            text.contains("the kernel has no pressure stall information"),
            "{text}"
        );
    }
    machine.kill().await.unwrap();
}
