//! Processes with a terminal.

use crate::fixture::{DEADLINE, finish, run, shell};
use guest_runtime::process::WindowSize;

const SIZE: WindowSize = WindowSize {
    rows: 33,
    columns: 111,
};

#[test]
fn a_terminal_is_the_containers_own_and_controls_it() {
    run(|fixture| async move {
        let script = "tty; stty size; echo hello > /dev/tty; echo console > /dev/console; \
                      read line; echo got $line; stty size";
        let mut process = shell(script);
        process.terminal = true;
        process.console_size = Some(SIZE);
        process.user.uid = 1000;
        let spec = fixture.spec(process);
        let created = fixture.launcher.create(&spec, true).await.unwrap();
        created.start.start(DEADLINE).await.unwrap();
        let stdio = &created.stdio;
        assert!(stdio.stderr.is_none());
        let mut said = String::new();
        while !said.ends_with("console\r\n") {
            let data = stdio.stdout.as_ref().unwrap().read(1000).await.unwrap();
            assert!(!data.is_empty(), "{said}");
            said += std::str::from_utf8(&data).unwrap();
        }
        assert_eq!(said, "/dev/pts/0\r\n33 111\r\nhello\r\nconsole\r\n");
        let size = WindowSize {
            rows: 5,
            columns: 6,
        };
        stdio.terminal.as_ref().unwrap().resize(size).unwrap();
        let stdin = stdio.stdin.as_ref().unwrap();
        stdin.write_all(b"line\n").await.unwrap();
        // Closing takes no more input, and no terminal away.
        stdin.close();
        let (status, said, _) = finish(&created.process, stdio).await;
        assert_eq!(status, 0);
        assert_eq!(said, "line\r\ngot line\r\n5 6\r\n");
        fixture.remove(&created.cgroup).await;
    });
}

#[test]
fn an_added_process_gets_a_terminal_of_the_container() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let mut process = shell("tty; stty size; ls /proc/$$/fd");
        process.terminal = true;
        process.console_size = Some(SIZE);
        let (status, said, _) = fixture.exec(&init, &cgroup, &process).await;
        assert_eq!(status, 0);
        // The shell keeps a descriptor of its own to the terminal.
        assert!(said.starts_with("/dev/pts/0\r\n33 111\r\n0"), "{said}");
        fixture.remove(&cgroup).await;
    });
}

#[test]
fn a_terminal_without_a_devpts_is_an_error_and_no_panic() {
    run(|fixture| async move {
        let before = fixture.traces();
        let mut process = shell("tty");
        process.terminal = true;
        let mut spec = fixture.spec(process);
        spec.mounts
            .retain(|mount| !mount.destination.ends_with("pts"));
        let error = fixture.launcher.create(&spec, true).await.unwrap_err();
        assert!(
            error.to_string().starts_with("open the terminal"),
            "{error}"
        );
        assert_eq!(fixture.traces(), before);
    });
}

#[test]
fn a_process_with_a_terminal_that_cannot_be_says_why() {
    run(|fixture| async move {
        let before = fixture.traces();
        let mut process = shell("tty");
        process.terminal = true;
        process.cwd = "/bin/busybox".into();
        let spec = fixture.spec(process);
        let error = fixture.launcher.create(&spec, true).await.unwrap_err();
        assert!(error.to_string().starts_with("chdir"), "{error}");
        process = shell("tty");
        process.terminal = true;
        process.user.additional_gids = vec![7; 65537];
        let spec = fixture.spec(process);
        let error = fixture.launcher.create(&spec, true).await.unwrap_err();
        assert!(error.to_string().starts_with("set the user"), "{error}");
        assert_eq!(fixture.traces(), before);
    });
}
