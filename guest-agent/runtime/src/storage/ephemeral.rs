//! Memory file systems that are changed while they are used.

use super::{StorageError, StorageSpec, drivers, failed, mount_storage, refused, tree};
use crate::mount_options::{MountOptions, UnsupportedOption};
use rustix::fs::CWD;
use rustix::mount::{
    FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fspick,
};

/// The driver that may be changed, and the option that does.
const DRIVER: &str = "ephemeral";
const REMOUNT: &str = "remount";

/// Mounts what is not there, and gives what is there other options if it is
/// asked to by `remount`: another size, say. Without options nothing is mounted;
/// the directory is made.
///
/// # Errors
/// What is not supported, and what failed; what was mounted before is then as
/// it was.
pub fn update_ephemeral(spec: &StorageSpec) -> Result<(), StorageError> {
    if spec.driver != DRIVER {
        return Err(refused(spec, "an update"));
    }
    super::check(spec)?;
    if spec
        .options
        .iter()
        .all(|option| option.starts_with("fsgid="))
    {
        return tree::make(&spec.mount_point, drivers::MODE, &mut Vec::new());
    }
    let mut spec = spec.clone();
    let words = spec.options.iter().flat_map(|option| option.split(','));
    let words: Vec<String> = words.map(ToOwned::to_owned).collect();
    let asked = words.iter().any(|word| word == REMOUNT);
    spec.options = words.into_iter().filter(|word| word != REMOUNT).collect();
    match tree::mounted_on(&spec.mount_point)?.as_deref() {
        // It stays, as what a sandbox shares.
        None => mount_storage(&spec).map(drop),
        Some("tmpfs") if asked => change(&spec),
        Some("tmpfs") => Ok(()),
        Some(_) => Err(StorageError::Busy(spec.mount_point)),
    }
}

/// By fspick(2) and fsconfig(2): what is not named stays as it is.
fn change(spec: &StorageSpec) -> Result<(), StorageError> {
    let point = &spec.mount_point;
    let options = MountOptions::parse_of_guest(&spec.options)
        .map_err(|UnsupportedOption(option)| refused(spec, format!("mount option {option}")))?;
    let (_, options) = drivers::take_group(spec, &options)?;
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_SYMLINK_NOFOLLOW;
    let context = fspick(CWD, point, flags).map_err(failed("fspick", point))?;
    for (key, value) in &options.data {
        let set = match value {
            Some(value) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, key),
        };
        set.map_err(failed("fsconfig", point))?;
    }
    fsconfig_reconfigure(&context).map_err(failed("fsconfig", point))?;
    drivers::change_mounted(spec, &options)
}
