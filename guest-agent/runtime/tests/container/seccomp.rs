//! seccomp filters, seen from the inside: from what /proc says and from what
//! calls answer.

use crate::fixture::{DEADLINE, capabilities, process, run, shell};
use guest_runtime::container::{
    ArgumentOperator, ArgumentTest, CapabilitySets, HookSpec, SeccompAction, SeccompProfile,
    SeccompRule, StartError,
};

fn profile(rules: Vec<SeccompRule>) -> SeccompProfile {
    SeccompProfile {
        default_action: SeccompAction::Allow,
        architectures: vec!["SCMP_ARCH_X86".parse().unwrap()],
        flags: vec!["SECCOMP_FILTER_FLAG_TSYNC".parse().unwrap()],
        rules,
    }
}

fn rule(names: &[&str], action: SeccompAction) -> SeccompRule {
    SeccompRule {
        names: names.iter().map(ToString::to_string).collect(),
        action,
        tests: Vec::new(),
    }
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::parse("SCMP_ACT_ERRNO", number.try_into().unwrap()).unwrap()
}

#[test]
fn a_call_fails_with_the_number_of_its_rule_with_and_without_new_privileges() {
    run(|fixture| async move {
        for no_new_privileges in [true, false] {
            for uid in [0, 1000] {
                let mut process =
                    shell("grep -E 'Seccomp:|NoNewPrivs|CapEff' /proc/self/status; mkdir /tmp/x");
                process.user.uid = uid;
                process.no_new_privileges = no_new_privileges;
                process.capabilities = capabilities(&["CAP_CHOWN"]);
                let rules = vec![rule(&["mkdir", "mkdirat"], errno(nix::libc::ENOSPC))];
                process.seccomp = Some(profile(rules));
                let spec = fixture.spec(process);
                let (status, said, stderr) = fixture.output(&spec).await;
                assert_eq!(status, 1, "{said}{stderr}");
                assert!(stderr.contains("No space left"), "{stderr}");
                assert!(said.contains("Seccomp:\t2"), "{said}");
                let told = format!("NoNewPrivs:\t{}", u8::from(no_new_privileges));
                assert!(said.contains(&told), "{said}");
                // Installing it has kept nothing of the privilege it took.
                let effective = if uid == 0 { 1 } else { 0 };
                let told = format!("CapEff:\t{effective:016x}");
                assert!(said.contains(&told), "{said}");
            }
        }
    });
}

#[test]
fn a_rule_looks_at_arguments() {
    run(|fixture| async move {
        // kill(2) with signal 10 only.
        let mut refused = rule(&["kill"], errno(nix::libc::EDOM));
        refused.tests = vec![ArgumentTest::new(1, ArgumentOperator::Equal, 10, 0).unwrap()];
        let mut process = shell("trap : 12; kill -12 $$ && echo sent; kill -10 $$ || echo refused");
        process.seccomp = Some(profile(vec![refused]));
        let (_, said, stderr) = fixture.output(&fixture.spec(process)).await;
        assert_eq!(said, "sent\nrefused\n", "{stderr}");
        assert!(stderr.contains("domain"), "{stderr}");
    });
}

#[test]
fn a_killing_rule_kills() {
    run(|fixture| async move {
        let mut process = shell("echo before; mkdir /tmp/x; echo after");
        process.args[2] += "; true";
        let killed = rule(&["mkdir", "mkdirat"], SeccompAction::KillProcess);
        process.seccomp = Some(profile(vec![killed]));
        let (_, said, stderr) = fixture.output(&fixture.spec(process)).await;
        assert_eq!(said, "before\nafter\n");
        assert!(stderr.contains("Bad system call"), "{stderr}");
    });
}

/// What is installed with no_new_privs comes last: the profile need not know
/// what the agent does before it.
#[test]
fn a_profile_of_what_the_program_needs_is_enough() {
    run(|fixture| async move {
        let needed = [
            "execve",
            "exit_group",
            "write",
            "brk",
            "mmap",
            "mprotect",
            "munmap",
            "arch_prctl",
            "set_tid_address",
            "set_robust_list",
            "rseq",
            "prlimit64",
            "getrandom",
            "readlinkat",
            "readlink",
            "uname",
            "getuid",
            "prctl",
            "ioctl",
            "fcntl",
            "fstat",
            "newfstatat",
            "futex",
            "no_such_call",
        ];
        let mut process = process(&["echo", "hello"]);
        process.seccomp = Some(SeccompProfile {
            default_action: SeccompAction::KillProcess,
            ..profile(vec![rule(&needed, SeccompAction::Allow)])
        });
        let spec = fixture.spec(process);
        let (status, said, _) = fixture.output(&spec).await;
        assert_eq!((status, said.as_str()), (0, "hello\n"));
        // A missing program is told all the same.
        let mut spec = spec;
        spec.process.args = vec!["no-such".into()];
        let created = fixture.launcher.create(&spec, false).await.unwrap();
        let error = created.start.start(DEADLINE).await.unwrap_err();
        assert!(matches!(error, StartError::Execute { .. }), "{error}");
        assert_eq!(error.exit_status(), Some(127));
        fixture.remove(&created.cgroup).await;
    });
}

#[test]
fn an_added_process_is_filtered_by_its_own_profile() {
    run(|fixture| async move {
        let (init, cgroup) = fixture.sleeper().await;
        let mut process = shell("mkdir /tmp/x");
        let rules = vec![rule(&["mkdir", "mkdirat"], errno(nix::libc::ENOSPC))];
        process.seccomp = Some(profile(rules));
        let (status, _, stderr) = fixture.exec(&init, &cgroup, &process).await;
        assert_eq!(status, 1);
        assert!(stderr.contains("No space left"), "{stderr}");
        fixture.remove(&cgroup).await;
    });
}

/// What perl says of a socket of the transport, of one of the network, and of a
/// ring.
const SOCKETS: &str = "use Socket; \
    printf '%d ', socket(S, 40, SOCK_STREAM, 0) ? 0 : $!; \
    printf '%d ', socket(S, AF_INET, SOCK_STREAM, 0) ? 0 : $!; \
    printf '%d', syscall(425, 0, 0) < 0 ? $! : 0;";

#[test]
fn a_container_makes_no_socket_of_the_transport_unless_it_may() {
    if !std::path::Path::new("/usr/bin/perl").exists() {
        return crate::fixture::skip("no /usr/bin/perl (package perl-base)");
    }
    run(|fixture| async move {
        for name in ["lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), fixture.root().join(name)).unwrap();
        }
        let perl = |no_new_privileges, vsock| {
            let mut process = process(&["/usr/bin/perl", "-e", SOCKETS]);
            process.no_new_privileges = no_new_privileges;
            process.vsock = vsock;
            let mut spec = fixture.spec(process);
            let usr = std::path::Path::new("/usr");
            spec.mounts
                .push(crate::fixture::bind(usr, "/usr", &["bind", "ro"]));
            spec
        };
        let refused = format!("{} 0 {}", nix::libc::EAFNOSUPPORT, nix::libc::ENOSYS);
        for no_new_privileges in [true, false] {
            // All capabilities there are change nothing.
            let mut spec = perl(no_new_privileges, false);
            spec.process.capabilities = CapabilitySets::own();
            let (status, said, stderr) = fixture.output(&spec).await;
            assert_eq!((status, said.as_str()), (0, refused.as_str()), "{stderr}");
            // Behind it, a profile that lets no filter be installed.
            spec.process.seccomp = Some(profile(vec![rule(&["seccomp"], errno(1))]));
            let (status, said, stderr) = fixture.output(&spec).await;
            assert_eq!((status, said.as_str()), (0, refused.as_str()), "{stderr}");
            // In its start hooks, too, which are the image's.
            let mut spec = perl(no_new_privileges, false);
            let note = format!("open(STDOUT, '>', '/data/hook'); {SOCKETS}");
            spec.hooks.start_container = vec![HookSpec {
                path: "/usr/bin/perl".into(),
                args: ["perl", "-e", &note].map(Into::into).into(),
                env: Vec::new(),
                timeout: std::time::Duration::from_secs(10),
            }];
            let (status, _, stderr) = fixture.output(&spec).await;
            assert_eq!(status, 0, "{stderr}");
            let hook = std::fs::read_to_string(fixture.root().join("data/hook")).unwrap();
            assert_eq!(hook, refused);
            // As the kernel has it.
            let (_, said, _) = fixture.output(&perl(no_new_privileges, true)).await;
            let (vsock, rest) = said.split_once(' ').unwrap();
            let own = std::process::Command::new("/usr/bin/perl")
                .args(["-e", SOCKETS])
                .output()
                .unwrap();
            let own = String::from_utf8(own.stdout).unwrap();
            assert_eq!(own.split_once(' ').unwrap(), (vsock, rest));
        }
    });
}
