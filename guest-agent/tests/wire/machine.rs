//! The machine and its packet filter: what is refused outside a VM, what is
//! done by the guest's own programs.

use crate::harness::{Calls, Guest, assert_refused, context};
use protocols::wire::agent;
use ttrpc::Code;

const OUTSIDE: &str = "changes the machine and is refused outside a VM";

#[tokio::test]
async fn hot_plugging_and_swap_are_looked_at_and_refused_outside_a_vm() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let client = guest.client().await;
    let mut online = agent::OnlineCPUMemRequest::new();
    online.nb_cpus = 2;
    let mut probe = agent::MemHotplugByProbeRequest::new();
    probe.memHotplugProbeAddr = vec![0x1_0000_0000];
    let mut device = agent::AddSwapRequest::new();
    device.PCIPath = vec![2, 0x1f];
    let mut file = agent::AddSwapPathRequest::new();
    file.path = "/run/swap".into();
    for answer in [
        client.online_cpu_mem(context(), &online).await,
        client.mem_hotplug_by_probe(context(), &probe).await,
        client.add_swap(context(), &device).await,
        client.add_swap_path(context(), &file).await,
    ] {
        assert_refused(answer, Code::FAILED_PRECONDITION, OUTSIDE);
    }
    online.nb_cpus = u32::MAX;
    let refused = client.online_cpu_mem(context(), &online).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "nb_cpus");
    for slots in [vec![], vec![0x20], vec![2, 300]] {
        device.PCIPath = slots;
        let refused = client.add_swap(context(), &device).await;
        assert_refused(refused, Code::INVALID_ARGUMENT, "PCIPath");
    }
    file.path = "../swap".into();
    let refused = client.add_swap_path(context(), &file).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "path");
}

#[tokio::test]
async fn a_kernel_module_is_loaded_in_a_guest_alone() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let client = guest.client().await;
    let mut module = agent::KernelModule::new();
    let mut sandbox = agent::CreateSandboxRequest::new();
    sandbox.kernel_modules = vec![module.clone()];
    let refused = client.create_sandbox(context(), &sandbox).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "kernel_modules.name");
    module.name = "dummy".into();
    sandbox.kernel_modules = vec![module];
    let refused = client.create_sandbox(context(), &sandbox).await;
    assert_refused(refused, Code::FAILED_PRECONDITION, OUTSIDE);
}

#[tokio::test]
async fn outside_a_vm_there_is_no_memory_agent_and_its_settings_are_looked_at_first() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let client = guest.client().await;
    let mut reclaim = agent::MemAgentMemcgConfig::new();
    reclaim.swappiness_max = Some(200);
    reclaim.period_secs = Some(60);
    let refused = client.mem_agent_memcg_set(context(), &reclaim).await;
    assert_refused(refused, Code::INTERNAL, "mem-agent is disabled");
    reclaim.swappiness_max = Some(201);
    let refused = client.mem_agent_memcg_set(context(), &reclaim).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "swappiness_max");
    let mut compact = agent::MemAgentCompactConfig::new();
    compact.compact_order = Some(9);
    let refused = client.mem_agent_compact_set(context(), &compact).await;
    assert_refused(refused, Code::INTERNAL, "mem-agent is disabled");
    compact.compact_order = Some(11);
    let refused = client.mem_agent_compact_set(context(), &compact).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "compact_order");
    compact = agent::MemAgentCompactConfig::new();
    compact.compact_sec_max = Some(-1);
    let refused = client.mem_agent_compact_set(context(), &compact).await;
    assert_refused(refused, Code::INVALID_ARGUMENT, "compact_sec_max");
}

/// Programs in the place of the distribution's: one tells its rules, the other
/// keeps what it is given, or fails as told, or never ends.
const PROGRAMS: &str = r#"mkdir sbin && \
    printf '#!/bin/sh\ncat rules\n' > sbin/iptables-save && \
    printf '#!/bin/sh\n[ "$*" = "--wait 5" ] && cat > /run/rules && \
        case $(cat /run/rules) in bad*) echo "line 1 failed" >&2; exit 2;; esac; echo done\n' \
        > sbin/iptables-restore && \
    printf '#!/bin/sh\nyes\n' > sbin/ip6tables-save && \
    sed -i "s,rules$,$PWD/rules," sbin/iptables-save && chmod +x sbin/ip*tables-* && \
    echo '*filter' > rules && mount --bind sbin /usr/sbin"#;

#[tokio::test]
async fn the_packet_filter_is_read_and_changed_by_the_guests_programs() {
    let Some(guest) = Guest::start_with(PROGRAMS, &[]).await else {
        return;
    };
    let calls = Calls(guest.client().await);
    let before = guest.traces();
    let mut get = agent::GetIPTablesRequest::new();
    let rules = calls.0.get_ip_tables(context(), &get).await.unwrap();
    assert_eq!(rules.data, b"*filter\n");
    let mut set = agent::SetIPTablesRequest::new();
    // More than a pipe holds.
    set.data = b"rule\n".repeat(100_000);
    let said = calls.0.set_ip_tables(context(), &set).await.unwrap();
    assert_eq!(said.data, b"done\n");
    let kept = std::fs::read(guest.inside("/run/rules")).unwrap();
    assert_eq!(kept, set.data);
    set.data = b"bad".into();
    let failed = calls.0.set_ip_tables(context(), &set).await;
    assert_refused(
        failed,
        Code::INTERNAL,
        "failed with status 2: line 1 failed",
    );
    // A program that says more than a reply holds is ended.
    get.is_ipv6 = true;
    let endless = calls.0.get_ip_tables(context(), &get).await;
    assert_refused(endless, Code::INTERNAL, "read what a program says");
    set.is_ipv6 = true;
    let missing = calls.0.set_ip_tables(context(), &set).await;
    assert_refused(missing, Code::INTERNAL, "/usr/sbin/ip6tables-restore");
    std::fs::remove_file(guest.inside("/run/rules")).unwrap();
    guest.has_left_nothing_since(&before).await;
}
