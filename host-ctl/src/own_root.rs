//! For tests that mount: one test of this program, run again where it may, on a
//! root that it owns and nobody else sees.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

/// Set for the second run; names the small file system.
const SMALL_DISK: &str = "TARDIGRADE_TEST_SMALL_DISK";

/// The root is a file system in memory with everything of the machine's in it
/// and two directories more: whoever is not root owns nothing on the way to a
/// path of the machine's, and a state directory wants that.
const SCRIPT: &str = r#"set -e
root=$1
shift
mount -t tmpfs -o mode=0755 none "$root"
for entry in /*; do
    if [ -h "$entry" ]; then
        cp -P "$entry" "$root$entry"
    elif [ -d "$entry" ]; then
        mkdir "$root$entry"
        mount --rbind "$entry" "$root$entry"
    fi
done
mkdir -p "$root/scratch" "$root/small"
mount -t tmpfs -o size=1m,mode=0700 none "$root/small"
export TMPDIR=/scratch
# Where chroot is, out of users' way.
PATH=$PATH:/usr/sbin:/sbin
exec chroot "$root" "$@"
"#;

/// The file system of 1 MiB that this second run of `test` has, whose path is
/// `module`'s (`module_path!`) and its own name; none in the first run, which
/// has run the second, or has said why it is skipped.
pub(crate) fn small_disk(module: &str, test: &str) -> Option<PathBuf> {
    if let Some(small) = std::env::var_os(SMALL_DISK) {
        return Some(small.into());
    }
    let may = Command::new("unshare")
        .args(["--map-root-user", "--mount", "true"])
        .status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {test}: no mount namespace here (unshare --map-root-user --mount)");
        return None;
    }
    let program = std::env::current_exe().unwrap();
    let (_, module) = module.split_once("::").unwrap();
    let name = format!("{module}::{test}");
    let words = [
        program.into(),
        "--exact".into(),
        name.into(),
        "--nocapture".into(),
    ];
    assert!(run(&words).success());
    None
}

fn run(command: &[OsString]) -> ExitStatus {
    let root = tempfile::tempdir().unwrap();
    Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh"])
        .arg(root.path())
        .args(command)
        .env(SMALL_DISK, "/small")
        .status()
        .unwrap()
}
