//! A container's device nodes.

use crate::fixture::{DEADLINE, bind, capabilities, run, shell, skip};
use guest_runtime::container::{CreateError, DeviceNode, DeviceRule, DeviceSpec, ProcessSpec};
use std::path::Path;

#[test]
fn the_default_nodes_work_and_cannot_be_changed() {
    run(|fixture| async move {
        let script = "echo x > /dev/null; cat /dev/null; dd if=/dev/zero bs=1 count=3 2>/dev/null | wc -c; \
                      dd if=/dev/urandom bs=1 count=3 2>/dev/null | wc -c; \
                      echo x 2>/dev/null > /dev/full || echo full; \
                      chmod 000 /dev/null 2>/dev/null || echo refused; \
                      readlink /dev/fd; readlink /dev/stdin; readlink /dev/ptmx; echo x > /dev/stdout";
        let said = fixture.say(script).await;
        assert_eq!(
            said,
            "3\n3\nfull\nrefused\n/proc/self/fd\n/proc/self/fd/0\npts/ptmx\nx\n"
        );
    });
}

#[test]
fn a_node_made_in_the_container_leads_nowhere() {
    run(|fixture| async move {
        // The zero device by its numbers, in every place that can be written.
        let script = "for place in /dev /dev/shm /tmp /data; do \
                      mknod $place/made c 1 5 || echo not made; \
                      dd if=$place/made bs=1 count=1 2>/dev/null | wc -c; done";
        assert_eq!(fixture.say(script).await, "0\n0\n0\n0\n");
    });
}

#[test]
fn a_container_without_a_dev_gets_one_and_its_image_is_left_alone() {
    run(|fixture| async move {
        let mut spec = fixture.spec(shell("echo x > /dev/null; ls /dev; touch /dev/x"));
        spec.mounts
            .retain(|mount| !mount.destination.starts_with("/dev"));
        let (status, said, _) = fixture.output(&spec).await;
        assert_eq!(status, 0);
        assert!(said.contains("null\n"), "{said}");
        let dev = std::fs::read_dir(fixture.root().join("dev")).unwrap();
        assert_eq!(dev.count(), 0);
    });
}

#[test]
fn a_readonly_dev_is_filled_before_it_is_made_so() {
    run(|fixture| async move {
        let mut spec = fixture.spec(shell("echo x > /dev/null; touch /dev/x || echo refused"));
        for mount in &mut spec.mounts {
            if mount.destination.ends_with("dev") {
                mount.options.push("ro".into());
            }
        }
        // Nothing can be made in it for these any more.
        spec.mounts
            .retain(|mount| mount.destination.parent() != Some(Path::new("/dev")));
        let (status, said, stderr) = fixture.output(&spec).await;
        assert_eq!((status, said.as_str()), (0, "refused\n"), "{stderr}");
    });
}

#[test]
fn a_device_that_not_every_container_has_is_not_bound() {
    run(|fixture| async move {
        let before = fixture.traces();
        for (node, allowed) in [("/dev/null", true), ("/dev/kmsg", false)] {
            let mut spec = fixture.spec(shell("echo x > /data/node"));
            let source = Path::new(node);
            spec.mounts.push(bind(source, "/data/node", &["bind"]));
            match fixture.launcher.create(&spec, false).await {
                Ok(created) => {
                    assert!(allowed, "{node}");
                    created.start.start(DEADLINE).await.unwrap();
                    assert_eq!(created.process.wait().await.code(), 0);
                    fixture.remove(&created.cgroup).await;
                }
                Err(error) => assert!(!allowed, "{node}: {error}"),
            }
        }
        let mut spec = fixture.spec(shell("echo x > /guest/null || echo refused"));
        let dev = Path::new("/dev");
        spec.mounts.push(bind(dev, "/guest", &["rbind"]));
        let (_, said, _) = fixture.output(&spec).await;
        assert_eq!(said, "refused\n");
        assert_eq!(fixture.traces(), before);
    });
}

fn node(path: &str, node: DeviceNode) -> DeviceSpec {
    DeviceSpec {
        path: path.into(),
        node,
        mode: 0o640,
        uid: 7,
        gid: 8,
    }
}

fn allow(kind: &str, numbers: (i64, i64), access: &str) -> DeviceRule {
    DeviceRule::parse(true, kind, numbers, access).unwrap()
}

#[test]
fn nodes_of_the_spec_are_made_and_used_as_the_rules_say() {
    run(|fixture| async move {
        // The log of the kernel, by a name of its own, and one elsewhere.
        let script = "stat -c '%a %u %g %t %T' /dev/sub/log /opt/log; stat -c '%F %a' /dev/pipe; \
                      for log in /dev/sub/log /opt/log; do \
                      head -c 1 $log >/dev/null 2>&1 && echo read $log; \
                      { echo x > $log; } 2>/dev/null && echo written $log; done; echo";
        let mut spec = fixture.spec(shell(script));
        spec.process.capabilities = capabilities(&["CAP_SYSLOG", "CAP_DAC_OVERRIDE"]);
        spec.devices = vec![
            node("/dev/sub/log", DeviceNode::Character(1, 11)),
            node("/opt/log", DeviceNode::Character(1, 11)),
            node("/dev/pipe", DeviceNode::Fifo),
        ];
        let nodes = "640 7 8 1 b\n640 7 8 1 b\nfifo 640\n";
        for (rules, used) in [
            (vec![], ""),
            (
                vec![allow("c", (1, 11), "r")],
                "read /dev/sub/log\nread /opt/log\n",
            ),
            (
                vec![allow("c", (1, 11), "w")],
                "written /dev/sub/log\nwritten /opt/log\n",
            ),
            (
                vec![
                    allow("a", (-1, -1), "rwm"),
                    DeviceRule::parse(false, "c", (1, 11), "w").unwrap(),
                ],
                "read /dev/sub/log\nread /opt/log\n",
            ),
        ] {
            spec.device_rules = rules;
            let (_, said, stderr) = fixture.output(&spec).await;
            assert_eq!(said, format!("{nodes}{used}\n"), "{stderr}");
        }
        // Made in a /dev of the container's own, which may be read-only.
        assert!(!fixture.root().join("dev/sub").exists());
        for mount in &mut spec.mounts {
            if mount.destination.ends_with("dev") {
                mount.options.push("ro".into());
            }
        }
        spec.mounts
            .retain(|mount| mount.destination.parent() != Some(Path::new("/dev")));
        let (_, said, _) = fixture.output(&spec).await;
        assert!(said.starts_with(nodes), "{said}");
    });
}

#[test]
fn a_rule_for_everything_gives_no_memory_and_no_disk() {
    run(|fixture| async move {
        let disk = std::fs::read_dir("/sys/class/block").unwrap().next();
        let Some(Ok(disk)) = disk else {
            return skip("no block device");
        };
        let numbers = std::fs::read_to_string(disk.path().join("dev")).unwrap();
        let (major, minor) = numbers.trim().split_once(':').unwrap();
        let (major, minor) = (major.parse().unwrap(), minor.parse().unwrap());
        let script = "for node in /dev/disk /dev/log; do \
                      { head -c 0 $node; } 2>/dev/null && echo $node; done; echo";
        let mut spec = fixture.spec(shell(script));
        spec.process.capabilities = ProcessSpec::guest_root().capabilities;
        spec.devices = vec![
            node("/dev/disk", DeviceNode::Block(major, minor)),
            node("/dev/log", DeviceNode::Character(1, 11)),
        ];
        spec.device_rules = vec![allow("a", (-1, -1), "rwm")];
        let (_, said, stderr) = fixture.output(&spec).await;
        assert_eq!(said, "/dev/log\n\n", "{stderr}");
        // Named by both numbers it is the spec's own doing.
        let numbers = (major.into(), minor.into());
        if minor != 0 {
            spec.device_rules.push(allow("b", numbers, "r"));
            assert!(fixture.output(&spec).await.1.starts_with("/dev/disk\n"));
        }
        // Not even a node of memory is made.
        spec.devices = vec![node("/dev/mem", DeviceNode::Character(1, 1))];
        let before = fixture.traces();
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(error.to_string().contains("/dev/mem"), "{error}");
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn a_node_in_the_way_is_kept_and_a_node_in_a_bind_is_refused() {
    run(|fixture| async move {
        std::fs::write(fixture.root().join("data/file"), "kept").unwrap();
        let mut spec = fixture.spec(shell("true"));
        spec.devices = vec![node("/data/file", DeviceNode::Character(1, 3))];
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(error.to_string().contains("/data/file"), "{error}");
        let kept = std::fs::read(fixture.root().join("data/file")).unwrap();
        assert_eq!(kept, b"kept");
        let outside = fixture.directory.path().to_owned();
        spec.mounts.push(bind(&outside, "/data", &["rbind"]));
        let error = fixture.launcher.create(&spec, false).await.unwrap_err();
        assert!(matches!(error, CreateError::Refused(_)), "{error}");
    });
}

#[test]
fn a_container_that_takes_its_own_device_program_away_gains_nothing() {
    run(|fixture| async move {
        // Another program than busybox needs the guest's libraries.
        let program = std::fs::canonicalize(env!("CARGO_BIN_EXE_container-stage")).unwrap();
        for (target, name) in [("usr/lib", "lib"), ("usr/lib64", "lib64")] {
            std::os::unix::fs::symlink(target, fixture.root().join(name)).unwrap();
        }
        let look = "{ head -c 1 /dev/log >/dev/null; } 2>/dev/null && echo read || echo refused";
        let script = format!("{look}; /detach detach; /detach detach; {look}");
        let mut spec = fixture.spec(shell(&script));
        spec.process.capabilities = ProcessSpec::guest_root().capabilities;
        spec.mounts.push(bind(&program, "/detach", &["bind"]));
        spec.mounts
            .push(bind(Path::new("/usr"), "/usr", &["rbind", "ro"]));
        spec.devices = vec![node("/dev/log", DeviceNode::Character(1, 11))];
        let (_, said, stderr) = fixture.output(&spec).await;
        assert_eq!(said, "refused\nOk(1)\nOk(0)\nrefused\n", "{stderr}");
        // The node would lead there.
        spec.device_rules = vec![allow("c", (1, 11), "r")];
        let (_, said, stderr) = fixture.output(&spec).await;
        assert_eq!(said, "read\nOk(1)\nOk(0)\nread\n", "{stderr}");
    });
}
