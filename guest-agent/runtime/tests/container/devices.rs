//! A container's device nodes.

use crate::fixture::{DEADLINE, bind, run, shell};
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
