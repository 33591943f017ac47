//! What two images differ in, by their manifests.

use crate::manifest::{Input, Listed, ListedContent, Manifest};
use crate::packages::Package;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// The differences, a line each: `-` what only the first has, `+` what only the
/// second has, `~` what both have and is not the same. Nothing for two images
/// with one description.
#[must_use]
pub fn diff(first: &Manifest, second: &Manifest) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(value("kind", &first.kind, &second.kind));
    let releases = (&first.kernel_release, &second.kernel_release);
    lines.extend(value("kernel release", releases.0, releases.1));
    let versions = (&first.agent_version, &second.agent_version);
    lines.extend(value("agent version", versions.0, versions.1));
    let times = (first.source_date_epoch, second.source_date_epoch);
    lines.extend(value("source date epoch", &times.0, &times.1));
    lines.extend(value("load order", &first.modules, &second.modules));
    lines.extend(compare("input", &inputs(first), &inputs(second)));
    lines.extend(compare("package", &packages(first), &packages(second)));
    lines.extend(value("changes", &first.changes, &second.changes));
    lines.extend(compare("file", &files(first), &files(second)));
    lines.extend(value("image", &first.image, &second.image));
    lines.extend(value("SPDX list", &first.spdx, &second.spdx));
    lines.extend(value("disk", &first.disk, &second.disk));
    lines
}

fn value<T: Debug + PartialEq>(name: &str, first: &T, second: &T) -> Option<String> {
    (first != second).then(|| format!("~ {name}: {first:?} -> {second:?}"))
}

fn inputs(manifest: &Manifest) -> BTreeMap<&str, String> {
    let line = |input: &Input| format!("{} bytes, sha256 {}", input.size, input.sha256);
    manifest
        .inputs
        .iter()
        .map(|input| (input.name.as_str(), line(input)))
        .collect()
}

fn packages(manifest: &Manifest) -> BTreeMap<&str, String> {
    let line = |package: &Package| format!("{} for {}", package.version, package.architecture);
    manifest
        .packages
        .iter()
        .map(|package| (package.name.as_str(), line(package)))
        .collect()
}

fn files(manifest: &Manifest) -> BTreeMap<&str, String> {
    let line = |file: &Listed| {
        let content = match &file.content {
            ListedContent::Directory => "directory".into(),
            ListedContent::File { size, sha256 } => format!("{size} bytes, sha256 {sha256}"),
            ListedContent::Symlink { target } => format!("link to {target:?}"),
            ListedContent::CharacterDevice { major, minor } => {
                format!("character device {major},{minor}")
            }
        };
        format!("{} {content}", file.permissions)
    };
    manifest
        .files
        .iter()
        .map(|file| (file.path.as_str(), line(file)))
        .collect()
}

fn compare(
    what: &str,
    first: &BTreeMap<&str, String>,
    second: &BTreeMap<&str, String>,
) -> Vec<String> {
    let mut names: Vec<_> = first.keys().chain(second.keys()).collect();
    names.sort();
    names.dedup();
    let line = |name: &&str| match (first.get(name), second.get(name)) {
        (Some(one), Some(other)) if one == other => None,
        (Some(one), Some(other)) => Some(format!("~ {what} {name}: {one} -> {other}")),
        (Some(one), None) => Some(format!("- {what} {name}: {one}")),
        (None, Some(other)) => Some(format!("+ {what} {name}: {other}")),
        (None, None) => None,
    };
    names.into_iter().filter_map(line).collect()
}
