//! The packages of a base: what dpkg's records in it say (dpkg(1), FILES).

use crate::archive::{Archive, Content};
use serde::{Deserialize, Serialize};

/// All packages, a paragraph each.
const STATUS: &str = "var/lib/dpkg/status";
/// A file a package, where there is no dpkg.
const STATUS_DIRECTORY: &str = "var/lib/dpkg/status.d/";

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The machine it is for, or `all`.
    pub architecture: String,
}

/// Those that are installed, sorted.
#[must_use]
pub fn installed(archive: &Archive) -> Vec<Package> {
    let mut packages = Vec::new();
    for (path, entry) in archive.entries() {
        let path = path.as_str();
        let of_one = path.starts_with(STATUS_DIRECTORY) && !path.ends_with(".md5sums");
        if let Content::File(bytes) = &entry.content
            && (path == STATUS || of_one)
        {
            let text = String::from_utf8_lossy(bytes);
            packages.extend(text.split("\n\n").filter_map(read));
        }
    }
    packages.sort();
    packages.dedup();
    packages
}

/// None for a paragraph of a package that is gone, or of none.
fn read(paragraph: &str) -> Option<Package> {
    let field = |name: &str| {
        let mut lines = paragraph.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    };
    // Without dpkg nothing is removed, and nothing said of it.
    let here = field("Status").is_none_or(|status| status.ends_with(" installed"));
    here.then_some(())?;
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Entry;

    #[test]
    fn packages_are_those_that_are_installed() {
        let mut archive = Archive::default();
        let mut add = |path: &str, text: &str| {
            let content = Content::File(text.as_bytes().to_vec());
            let entry = Entry {
                permissions: 0o644,
                content,
            };
            archive.add(path.parse().unwrap(), entry).unwrap();
        };
        add(
            STATUS,
            "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\n\
             Version: 1:1.2.13\nDescription: x\n Version: 9\n\n\
             Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\n",
        );
        add(
            "var/lib/dpkg/status.d/base",
            "Package: base-files\nVersion: 12\nArchitecture: all",
        );
        add(
            "var/lib/dpkg/status.d/base.md5sums",
            "Package: no\nVersion: 1",
        );
        let package = |name: &str, version: &str, architecture: &str| Package {
            name: name.into(),
            version: version.into(),
            architecture: architecture.into(),
        };
        assert_eq!(
            installed(&archive),
            [
                package("base-files", "12", "all"),
                package("zlib1g", "1:1.2.13", "amd64")
            ]
        );
    }
}
