//! What a security module is to hold a process to: AppArmor's profile, SELinux's
//! label (OCI `config.md`, "Linux Process"), and the label of what is mounted for
//! a container (`config-linux.md`, "Mount Label").
//!
//! A kernel without the module would not hold anybody to anything: what asks for
//! one is then refused before anything is done for it.

use super::error::{Failure, Refused, Step};
use super::spec::{ContainerSpec, ProcessSpec};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The modules that are active, in the order in which they are asked.
const LIST: &str = "/sys/kernel/security/lsm";
/// `Y` where AppArmor is active; for where securityfs is not mounted.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
/// There where SELinux is active, and has a policy loaded.
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// Below the process's own directory in /proc. The second is from before
/// modules had files of their own.
const APPARMOR_FILES: [&str; 2] = ["attr/apparmor/exec", "attr/exec"];
const SELINUX_FILES: [&str; 1] = ["attr/exec"];

/// Which modules the kernel asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Modules {
    apparmor: bool,
    selinux: bool,
}

impl Modules {
    fn active() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let list = read(LIST);
        Self::of(
            list.as_deref(),
            read(APPARMOR).as_deref(),
            Path::new(SELINUX).exists(),
        )
    }

    fn of(list: Option<&str>, apparmor: Option<&str>, selinux: bool) -> Self {
        match list {
            Some(list) => {
                let has = |name: &str| list.trim().split(',').any(|one| one == name);
                Self {
                    apparmor: has("apparmor"),
                    selinux: has("selinux"),
                }
            }
            None => Self {
                apparmor: apparmor.is_some_and(|text| text.trim() == "Y"),
                selinux,
            },
        }
    }

    fn require(self, asked: &[(bool, &str, &Option<String>)]) -> Result<(), Refused> {
        for (is_selinux, what, text) in asked {
            let Some(text) = text else { continue };
            let shown: String = text.chars().take(128).collect();
            if text.is_empty() || text.contains(['\0', '\n']) {
                return Err(Refused(format!("{what} {shown:?}")));
            }
            let (name, there) = if *is_selinux {
                ("SELinux", self.selinux)
            } else {
                ("AppArmor", self.apparmor)
            };
            if !there {
                return Err(Refused(format!(
                    "{what} {shown:?} on a kernel without {name}"
                )));
            }
        }
        Ok(())
    }
}

impl ProcessSpec {
    /// Whether a security module is to hold it to something.
    pub(super) fn is_held(&self) -> bool {
        self.apparmor_profile.is_some() || self.selinux_label.is_some()
    }

    /// Whether the kernel can.
    pub(super) fn require_modules(&self) -> Result<(), Refused> {
        if !self.is_held() {
            return Ok(());
        }
        Modules::active().require(&[
            (false, "apparmorProfile", &self.apparmor_profile),
            (true, "selinuxLabel", &self.selinux_label),
        ])
    }
}

impl ContainerSpec {
    /// Whether the kernel can hold it to all that it is to be held to.
    pub(super) fn require_modules(&self) -> Result<(), Refused> {
        self.process.require_modules()?;
        if self.mount_label.is_none() {
            return Ok(());
        }
        Modules::active().require(&[(true, "mountLabel", &self.mount_label)])
    }
}

/// Has the modules hold this process to it from its next execve(2) on. `proc` is
/// a procfs of the guest's: that of a container is the container's to arrange.
pub(super) fn apply(process: &ProcessSpec, proc: Option<&OwnedFd>) -> Result<(), Failure> {
    let orders = [
        (
            &APPARMOR_FILES[..],
            process
                .apparmor_profile
                .as_ref()
                .map(|name| format!("exec {name}")),
        ),
        (&SELINUX_FILES[..], process.selinux_label.clone()),
    ];
    for (files, order) in orders {
        if let Some(order) = order {
            let written = proc
                .ok_or_else(|| Errno::BADF.into())
                .and_then(|proc| write(proc, files, &order));
            written.map_err(Failure::at(Step::Security, order))?;
        }
    }
    Ok(())
}

fn write(proc: &OwnedFd, files: &[&str], order: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let mut error = Errno::NOENT;
    for file in files {
        // The thread's own: there it may change what it may not of others.
        match openat(proc, format!("thread-self/{file}"), flags, Mode::empty()) {
            Err(Errno::NOENT) => {}
            Err(other) => {
                error = other;
                break;
            }
            // In one write, or it is another order.
            Ok(file) => return File::from(file).write_all(order.as_bytes()),
        }
    }
    Err(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_those_of_the_list_or_else_of_their_own_files() {
        let modules = |apparmor, selinux| Modules { apparmor, selinux };
        for (list, apparmor, selinux, expected) in [
            (
                Some("lockdown,capability,apparmor\n"),
                None,
                false,
                modules(true, false),
            ),
            (
                Some("capability,selinux"),
                Some("Y\n"),
                false,
                modules(false, true),
            ),
            (
                Some("capability,apparmor2"),
                Some("Y\n"),
                true,
                modules(false, false),
            ),
            (Some(""), None, true, modules(false, false)),
            (None, Some("Y\n"), false, modules(true, false)),
            (None, Some("N\n"), true, modules(false, true)),
            (None, None, false, modules(false, false)),
        ] {
            assert_eq!(Modules::of(list, apparmor, selinux), expected, "{list:?}");
        }
    }

    #[test]
    fn what_the_kernel_cannot_hold_a_process_to_is_refused_by_name() {
        let selinux = Modules {
            apparmor: false,
            selinux: true,
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            selinux.require(&[(false, "a", &None), (true, "b", &text("x"))]),
            Ok(())
        );
        for (asked, name) in [
            ((false, "a", &text("x")), "AppArmor"),
            ((true, "b", &text("")), "b"),
            ((true, "b", &text("x\ny")), "b"),
        ] {
            let refused = selinux.require(&[asked]).unwrap_err();
            assert!(refused.to_string().contains(name), "{refused}");
        }
    }

    #[test]
    fn an_order_is_written_to_the_first_file_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("thread-self/attr");
        fs::create_dir_all(own.join("apparmor")).unwrap();
        fs::write(own.join("exec"), "").unwrap();
        let proc = OwnedFd::from(File::open(directory.path()).unwrap());
        let mut process = ProcessSpec::guest_root();
        process.apparmor_profile = Some("profile".into());
        apply(&process, Some(&proc)).unwrap();
        assert_eq!(
            fs::read_to_string(own.join("exec")).unwrap(),
            "exec profile"
        );
        fs::write(own.join("apparmor/exec"), "").unwrap();
        fs::write(own.join("exec"), "").unwrap();
        process.selinux_label = Some("label".into());
        apply(&process, Some(&proc)).unwrap();
        let written = fs::read_to_string(own.join("apparmor/exec")).unwrap();
        assert_eq!(written, "exec profile");
        assert_eq!(fs::read_to_string(own.join("exec")).unwrap(), "label");
        fs::remove_dir_all(&own).unwrap();
        assert!(apply(&process, Some(&proc)).is_err());
        assert!(apply(&process, None).is_err());
    }
}
