//! What the end-to-end tests and the benchmarks share: a home of their own for
//! each test, the project's programs, and images to boot.
//!
//! The tests drive `host-ctl` as a user would, as a process. Everything they
//! need is built by `make test`; a piece that is missing is an error that says
//! so, never a test that passes without having run.

pub mod confinement;
pub mod console;
pub mod copies;
pub mod images;
pub mod lab;
pub mod machine;
pub mod place;
pub mod processes;
pub mod read_only;
pub mod root_disks;
pub mod skip;

pub use skip::skipped;

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The project's `target` directory.
///
/// # Panics
/// Never: this package lies one level below the project's root.
#[must_use]
pub fn target() -> PathBuf {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let project = project.expect("the project's root");
    // Without `..`: as the kernel tells of the files in it.
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project.join("target"), PathBuf::from)
}

/// A built file of the project.
///
/// # Panics
/// When it is not there: `make test` builds it.
#[must_use]
pub fn built(relative: &str) -> PathBuf {
    let path = target().join(relative);
    assert!(
        path.exists(),
        "{} is missing; `make test` builds all that the tests need",
        path.display()
    );
    path
}

/// The virtiofsd that `make test` has built, unless another is named.
fn own_virtiofsd() -> Option<PathBuf> {
    let own = target().join("virtiofsd/bin/virtiofsd");
    let named = std::env::var_os("VIRTIOFSD").map(PathBuf::from);
    named.or_else(|| own.is_file().then_some(own))
}

/// The virtiofsd for shared directories. None when there is none that can be
/// used, which is said.
///
/// # Panics
/// With REQUIRE_ALL=1, when there is none.
#[must_use]
pub fn virtiofsd() -> Option<PathBuf> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("start a runtime");
    let confinement = hypervisor::Confinement::Insecure;
    let found = match own_virtiofsd() {
        Some(named) => runtime.block_on(hypervisor::virtiofsd::at(&named, &confinement)),
        None => runtime.block_on(hypervisor::virtiofsd::find(&confinement)),
    };
    match found {
        Ok(found) => Some(found.program),
        Err(error) => {
            skipped(error);
            None
        }
    }
}

/// A state directory of a test's own, and `host-ctl` acting on it. Dropped, it
/// ends every sandbox it still has.
#[derive(Debug)]
pub struct Home {
    directory: tempfile::TempDir,
    program: PathBuf,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// An empty home for the debug build of `host-ctl`.
    ///
    /// # Panics
    /// When there is no room for it, or `host-ctl` was not built.
    #[must_use]
    pub fn new() -> Self {
        Self::with_program(built("debug/host-ctl"))
    }

    /// An empty home for that `host-ctl`.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn with_program(program: PathBuf) -> Self {
        let parent = target().join("homes");
        std::fs::create_dir_all(&parent).expect("make the directory of homes");
        let directory = tempfile::Builder::new()
            .prefix("h")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in(parent)
            .expect("make a home");
        Self { directory, program }
    }

    /// The state directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// `host-ctl` with these arguments, not yet started.
    pub fn command<I>(&self, arguments: I) -> Command
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("TARDIGRADE_HOME", self.path())
            .env("TARDIGRADE_KERNEL", built("guest/vmlinuz"))
            .env("TARDIGRADE_INITRD", built("guest/initrd.img"))
            .envs(own_virtiofsd().map(|program| ("VIRTIOFSD", program)))
            .stdin(Stdio::null());
        command
    }

    /// Runs `host-ctl` to its end, whatever it is.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run<I>(&self, arguments: I) -> Output
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.command(arguments).output().expect("start host-ctl")
    }

    /// Runs `host-ctl`, which must succeed, and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn text<I>(&self, arguments: I) -> String
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "host-ctl: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same with `--output json`, parsed.
    ///
    /// # Panics
    /// When it fails, or prints no JSON.
    pub fn json<I, S>(&self, arguments: I) -> Value
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let arguments: Vec<_> = arguments
            .into_iter()
            .map(|argument| argument.as_ref().to_owned())
            .collect();
        let options = ["--output", "json"].map(Into::into);
        let text = self.text(options.into_iter().chain(arguments));
        let parsed = serde_json::from_str(&text);
        assert!(parsed.is_ok(), "not JSON: {text}");
        parsed.unwrap_or_default()
    }

    /// Runs `host-ctl`, which must fail, and gives its error text.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn failure<I>(&self, arguments: I) -> String
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "succeeded: {text}");
        assert!(text.contains("error: "), "no error was told: {text:?}");
        text
    }

    /// Builds the template `name` of a container that runs `command`.
    ///
    /// # Panics
    /// When the build fails.
    pub fn build_template(&self, name: &str, rootfs: &Path, command: &[&str]) -> Value {
        let mut arguments = vec!["template", "build", name, "--rootfs"];
        let rootfs = rootfs.to_str().expect("paths of the project are text");
        arguments.extend([rootfs, "--memory", "128", "--"]);
        arguments.extend(command);
        self.json(arguments)
    }

    /// Clones `template` and gives the hand-overs.
    ///
    /// # Panics
    /// When a clone fails, or was booted cold instead.
    pub fn clone_template(&self, template: &str, count: usize) -> Vec<Value> {
        let count = count.to_string();
        let clones = self.json(["clone", template, "-n", &count]);
        let clones = clones["clones"].as_array().expect("a list of clones");
        for clone in clones {
            assert_eq!(clone["booted"], false, "booted cold: {clone}");
        }
        clones.clone()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Best effort: what a failed test left is ended with its home.
        let _ = self.run(["rm", "--all"]);
        let _ = self.run(["gc"]);
        processes::kill_those_naming(self.path());
    }
}

/// The id of a sandbox out of a hand-over.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn sandbox(handover: &Value) -> &str {
    handover["sandbox"].as_str().expect("the id of a sandbox")
}
