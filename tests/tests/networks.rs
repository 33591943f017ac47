//! Clones with taps, and ways of memory, on the VMM that every machine has.
//! `lab_vmms` does the same and more on all of them.

use std::path::Path;
use tardigrade_tests::{Home, images, sandbox, skipped};

fn is_there(tap: &str) -> bool {
    Path::new("/sys/class/net").join(tap).exists()
}

#[test]
fn clones_with_taps_have_addresses_of_their_own_and_leave_no_link() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        skipped("taps need root and /dev/net/tun");
        return;
    }
    let home = Home::new();
    let rootfs = images::busybox();
    let mut build = vec!["template", "build", "net", "--network", "tap"];
    build.extend(["--memory", "128", "--rootfs", rootfs.to_str().unwrap()]);
    build.extend(["--", "sleep", "100000"]);
    home.json(build);
    let clones = home.clone_template("net", 2);
    assert_ne!(clones[0]["addresses"], clones[1]["addresses"]);
    let mut taps = Vec::new();
    for clone in &clones {
        let id = sandbox(clone);
        let own = clone["addresses"]["guest"].as_str().unwrap();
        let command = [
            "exec",
            id,
            "--",
            "/bin/busybox",
            "ip",
            "addr",
            "show",
            "eth0",
        ];
        let shown = home.text(command);
        assert!(shown.contains(&format!("inet {own}")), "{shown}");
        let inspected = home.json(["inspect", id]);
        let mac = inspected["tap"]["guest"].as_str().unwrap();
        assert!(shown.contains(mac), "{shown}");
        let tap = inspected["tap"]["name"].as_str().unwrap();
        assert!(is_there(tap));
        taps.push(tap.to_owned());
    }
    home.text(["stop", "--grace", "0", sandbox(&clones[0])]);
    assert!(!is_there(&taps[0]));
    home.text(["gc"]);
    assert!(is_there(&taps[1]), "a sweep takes a live sandbox's tap");
    home.text(["rm", "--all"]);
    assert!(!is_there(&taps[1]));

    let error = home.run(["clone", "net", "--memory", "on-demand"]);
    let told = String::from_utf8_lossy(&error.stdout);
    assert!(!error.status.success(), "{told}");
    assert!(
        told.contains("qemu") && told.contains("on-demand"),
        "{told}"
    );
}
