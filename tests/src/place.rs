//! A home in the nested host, for one VMM.

use crate::{Home, built, images, lab, processes};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// What is drawn from the kernel's generator, and what a sandbox is called.
const WHO: &str = "hostname; cat /proc/sys/kernel/random/boot_id /etc/machine-id; \
                   dd if=/dev/urandom bs=32 count=1 2>/dev/null | sha256sum";

/// A home in the nested host, for one VMM.
#[derive(Debug)]
pub struct Place {
    /// The home.
    pub home: Home,
    /// The VMM's name.
    pub vmm: &'static str,
}

impl Place {
    /// An empty one.
    ///
    /// # Panics
    /// Outside the nested host.
    #[must_use]
    pub fn new(vmm: &'static str) -> Self {
        Self::with_home(vmm, Home::new())
    }

    /// The same with that home.
    ///
    /// # Panics
    /// Outside the nested host.
    #[must_use]
    pub fn with_home(vmm: &'static str, home: Home) -> Self {
        lab::assert_nested_host();
        Self { home, vmm }
    }

    /// The words of `run` or `template build`, with a container that runs
    /// `seconds` long: another number is another template.
    ///
    /// # Panics
    /// When something that is needed was not built.
    #[must_use]
    pub fn words(&self, command: &[&str], options: &[&str], seconds: u32) -> Vec<String> {
        let mut words = self.machine(command);
        words.extend(["--rootfs".into(), text(&images::busybox())]);
        words.extend(options.iter().map(ToString::to_string));
        words.extend(["--".into(), "sleep".into(), seconds.to_string()]);
        words
    }

    /// The words of `run` or `template build` that say what machine.
    ///
    /// # Panics
    /// When something that is needed was not built.
    #[must_use]
    pub fn machine(&self, command: &[&str]) -> Vec<String> {
        let mut words: Vec<String> = command.iter().map(ToString::to_string).collect();
        // It takes no compressed kernel.
        if self.vmm == "firecracker" {
            words.extend(["--kernel".into(), text(&built("guest/vmlinux"))]);
        }
        words.extend(["--vmm", self.vmm, "--memory", "128"].map(Into::into));
        words
    }

    /// `run` or `template build`.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn make(&self, command: &[&str], options: &[&str]) -> Value {
        self.home.json(self.words(command, options, 100_000))
    }

    /// What a shell in the sandbox says.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn shell(&self, id: &str, script: &str) -> String {
        self.home.text(["exec", id, "--", "sh", "-c", script])
    }

    /// Hostname, boot id, machine id and something random of a sandbox, a line
    /// each.
    ///
    /// # Panics
    /// When it does not say so much.
    #[must_use]
    pub fn who(&self, id: &str) -> Vec<String> {
        let said = self.shell(id, WHO);
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 4, "{said}");
        lines
    }

    /// Ends all there is; nothing may be left then.
    ///
    /// # Panics
    /// When something is.
    pub fn end(&self) {
        self.home.text(["rm", "--all"]);
        self.home.text(["gc"]);
        assert!(processes::machines(self.home.path()).is_empty());
        for directory in ["run", "store/staging"] {
            let entries = fs::read_dir(self.home.path().join(directory)).expect("read a directory");
            assert_eq!(entries.count(), 0, "{directory} is not empty");
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
