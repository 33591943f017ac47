//! What is written for which limit.

use super::*;
use crate::cgroup::workload::settings_there;
use proptest::prelude::*;

fn written(resources: &Resources) -> Vec<(String, String)> {
    let settings = resources.settings().unwrap();
    settings
        .into_iter()
        .map(|setting| (setting.file, setting.value))
        .collect()
}

fn pair(file: &str, value: &str) -> (String, String) {
    (file.into(), value.into())
}

#[test]
fn a_pids_limit_is_set_when_it_is_there_and_only_then() {
    assert!(written(&Resources::default()).is_empty());
    let resources = Resources {
        pids_limit: Some(20),
        ..Resources::default()
    };
    assert_eq!(written(&resources), [pair("pids.max", "20")]);
}

#[test]
fn swap_is_what_is_over_memory() {
    let resources = Resources {
        memory_limit: Some(100),
        memory_swap: Some(150),
        ..Resources::default()
    };
    assert_eq!(
        written(&resources),
        [pair("memory.max", "100"), pair("memory.swap.max", "50")]
    );
    let alone = Resources {
        memory_swap: Some(150),
        ..Resources::default()
    };
    assert!(alone.settings().is_err());
}

#[test]
fn minus_one_takes_a_limit_away_and_minus_two_is_refused() {
    let resources = |value| Resources {
        cpu_quota: Some(value),
        cpu_period: Some(100_000),
        ..Resources::default()
    };
    assert_eq!(written(&resources(-1)), [pair("cpu.max", "max 100000")]);
    assert!(resources(-2).settings().is_err());
}

#[test]
fn a_period_by_itself_leaves_the_quota_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    file("cgroup.controllers", "cpu memory\n");
    let resources = Resources {
        cpu_period: Some(50_000),
        ..Resources::default()
    };
    for (before, written) in [
        ("20000 100000\n", "20000 50000"),
        ("max 100000\n", "max 50000"),
    ] {
        file("cpu.max", before);
        let settings = settings_there(directory.path(), &resources).unwrap();
        let values: Vec<&str> = settings.iter().map(|one| one.value.as_str()).collect();
        assert_eq!(values, [written]);
    }
}

#[test]
fn no_minus_one_and_no_zero_is_lost() {
    let resources = Resources {
        memory_limit: Some(-1),
        memory_swap: Some(-1),
        memory_reservation: Some(0),
        pids_limit: Some(-1),
        cpu_quota: Some(-1),
        cpu_burst: Some(0),
        cpu_idle: Some(false),
        ..Resources::default()
    };
    assert_eq!(
        written(&resources),
        [
            pair("memory.max", "max"),
            pair("memory.low", "0"),
            pair("memory.swap.max", "max"),
            pair("pids.max", "max"),
            pair("cpu.max", "max"),
            pair("cpu.max.burst", "0"),
            pair("cpu.idle", "0"),
        ]
    );
}

#[test]
fn disks_are_weighed_and_limited() {
    let disk = |minor| DeviceNumbers { major: 8, minor };
    let resources = Resources {
        io: IoResources {
            weight: Some(10),
            device_weights: vec![(disk(0), 1000)],
            limits: vec![
                (disk(16), IoLimitKind::WriteOperations, 7),
                (disk(0), IoLimitKind::ReadBytes, 4096),
                (disk(16), IoLimitKind::WriteBytes, 0),
            ],
        },
        ..Resources::default()
    };
    assert_eq!(
        written(&resources),
        [
            pair("io.weight", "default 1"),
            pair("io.weight", "8:0 10000"),
            pair("io.max", "8:0 rbps=4096"),
            pair("io.max", "8:16 wbps=max wiops=7"),
        ]
    );
    let settings = resources.settings().unwrap();
    let rather = settings[1].rather.clone().unwrap();
    assert_eq!(rather, ("io.bfq.weight", "8:0 1000".into()));
    let mut twice = resources;
    twice.io.limits.push((disk(0), IoLimitKind::ReadBytes, 1));
    assert!(twice.settings().is_err());
    twice.io.limits.clear();
    twice.io.weight = Some(9);
    assert!(twice.settings().is_err());
}

#[test]
fn huge_pages_rdma_and_files_by_name_are_written_and_checked() {
    let mut resources = Resources::default();
    resources.hugepage_limits.insert("2MB".into(), 1 << 21);
    let limit = RdmaLimit {
        handles: Some(3),
        objects: None,
    };
    resources.rdma.insert("mlx5_1".into(), limit);
    resources
        .unified
        .insert("memory.high".into(), "12345".into());
    assert_eq!(
        written(&resources),
        [
            pair("hugetlb.2MB.max", "2097152"),
            pair("hugetlb.2MB.rsvd.max", "2097152"),
            pair("rdma.max", "mlx5_1 hca_handle=3 hca_object=max"),
            pair("memory.high", "12345"),
        ]
    );
    for size in ["", "2", "MB", "2mb", "2MB/../x"] {
        let mut wrong = Resources::default();
        wrong.hugepage_limits.insert(size.into(), 1);
        assert!(wrong.settings().is_err(), "{size}");
    }
    for file in [
        "",
        "memory",
        "memory.",
        ".max",
        "cgroup.freeze",
        "../memory.max",
        "c-x/memory.max",
        "memory.max\n",
    ] {
        let mut wrong = Resources::default();
        wrong.unified.insert(file.into(), "1".into());
        assert!(wrong.settings().is_err(), "{file}");
    }
}

proptest! {
    #[test]
    fn every_weight_of_a_disk_is_one_the_kernel_takes_or_refused(value: u32) {
        if let Ok(weight) = io::weight(value) {
            prop_assert!((1..=10_000).contains(&weight));
        }
    }

    #[test]
    fn every_share_has_a_weight_the_kernel_takes(shares: u64) {
        prop_assert!((1..=10_000).contains(&weight(shares)));
    }

    #[test]
    fn no_number_makes_the_conversion_panic(limit: i64, total: i64, period: u64) {
        let resources = Resources {
            memory_limit: Some(limit),
            memory_swap: Some(total),
            cpu_quota: Some(total),
            cpu_period: Some(period),
            ..Resources::default()
        };
        let _ = resources.settings();
    }
}

#[test]
fn a_limit_is_put_back_by_what_its_file_said_of_the_same_device() {
    let back =
        |file: &str, value: &str, content: &str| Setting::new("", "", file, value).back_to(content);
    assert_eq!(back("memory.max", "5", "4096\n"), "4096\n");
    assert_eq!(back("cpu.max", "1 2", "max 100000\n"), "max 100000\n");
    assert_eq!(back("cpuset.cpus", "0", "\n"), "\n");
    let limited = "8:0 rbps=5 wbps=max riops=max wiops=max\n8:16 rbps=7 wbps=max riops=1 wiops=2\n";
    assert_eq!(
        back("io.max", "8:16 rbps=1", limited),
        "8:16 rbps=7 wbps=max riops=1 wiops=2"
    );
    assert_eq!(
        back("io.max", "8:1 rbps=1", limited),
        "8:1 rbps=max wbps=max riops=max wiops=max"
    );
    let weights = "default 100\n8:0 50\n";
    assert_eq!(back("io.weight", "default 7", weights), "default 100");
    assert_eq!(back("io.weight", "8:1 7", weights), "8:1 default");
    assert_eq!(
        back("rdma.max", "mlx4_0 hca_handle=1", ""),
        "mlx4_0 hca_handle=max hca_object=max"
    );
}
