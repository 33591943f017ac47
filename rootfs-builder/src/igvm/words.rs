//! The kernel's command line, which is measured: what a root disk of ours needs
//! comes first, then the caller's own words.

use crate::image;
use crate::manifest::Manifest;

/// The machine has no register that turns it off, but one that resets it.
const END: &str = "agent.end=";
const BY_RESET: &str = "agent.end=reset";

/// Why a command line can't be put together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// It has something that the kernel reads otherwise than one might think.
    #[error("it has a byte {0:#04x}: printable ASCII and spaces are what it may have")]
    Byte(u8),
    /// The kernel does not take as much.
    #[error("it has {found} bytes, {limit} are the most")]
    Length {
        /// What it has.
        found: usize,
        /// What the kernel takes.
        limit: usize,
    },
    /// The last one would win.
    #[error("it has {0}, and so has the root disk's manifest")]
    Twice(&'static str),
    /// A disk that nothing would check.
    #[error("the manifest is of no root disk with a hash tree, whose root hash could be measured")]
    NoTree,
}

/// The command line, at most `limit` bytes.
///
/// # Errors
/// See [`WordsError`].
pub(super) fn command_line(
    own: &str,
    root_disk: Option<&Manifest>,
    device: &str,
    limit: usize,
) -> Result<String, WordsError> {
    let mut parts = Vec::new();
    if !has(own, END) {
        parts.push(String::from(BY_RESET));
    }
    if let Some(manifest) = root_disk {
        for word in ["dm-mod.create=", "root=", "rootfstype="] {
            if has(own, word) {
                return Err(WordsError::Twice(word));
            }
        }
        let tree = manifest.disk.as_ref().and_then(|disk| disk.verity.as_ref());
        tree.ok_or(WordsError::NoTree)?;
        parts.push(image::kernel_parameters(manifest, device).ok_or(WordsError::NoTree)?);
    }
    parts.extend((!own.is_empty()).then(|| own.into()));
    let line = parts.join(" ");
    if let Some(byte) = line.bytes().find(|byte| !matches!(byte, b' '..=b'~')) {
        return Err(WordsError::Byte(byte));
    }
    if line.len() > limit {
        return Err(WordsError::Length {
            found: line.len(),
            limit,
        });
    }
    Ok(line)
}

/// Whether one of the words begins like this. Quotes hide nothing: what is in
/// them is found, too, and refused rather than misread.
fn has(line: &str, start: &str) -> bool {
    line.split([' ', '"']).any(|word| word.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(tree: bool) -> Manifest {
        let mut manifest = serde_json::json!({
            "format": 3, "kind": "erofs", "kernel_release": null, "agent_version": null,
            "source_date_epoch": 0, "inputs": [], "modules": [], "files": [],
        });
        if tree {
            let digest = "0".repeat(64);
            manifest["disk"] = serde_json::json!({
                "layout": "verity", "uuid": "00000000-0000-8000-8000-000000000000",
                "offset": 2 << 20, "size": 4096,
                "verity": {
                    "root_hash": digest, "salt": digest, "data_blocks": 1,
                    "offset": 4 << 20, "size": 8192,
                },
            });
        }
        serde_json::from_value(manifest).unwrap()
    }

    #[test]
    fn the_disk_s_words_come_before_the_caller_s() {
        let line = command_line("console=ttyS0 -- x", Some(&disk(true)), "/dev/vda", 2047);
        let line = line.unwrap();
        assert!(
            line.starts_with("agent.end=reset dm-mod.create=\"root,,,ro,0 8 verity 1 /dev/vda1")
        );
        assert!(line.ends_with(" root=/dev/dm-0 rootfstype=erofs ro console=ttyS0 -- x"));
        let line = command_line("agent.end=power-off", None, "", 20).unwrap();
        assert_eq!(line, "agent.end=power-off");
        assert_eq!(command_line("", None, "", 20).unwrap(), "agent.end=reset");
    }

    #[test]
    fn what_the_kernel_would_read_otherwise_is_refused() {
        let refused =
            |own: &str, tree| command_line(own, Some(&disk(tree)), "/dev/vda", 2047).unwrap_err();
        assert_eq!(refused("root=/dev/vdb", true), WordsError::Twice("root="));
        assert_eq!(
            refused("a \"dm-mod.create=x y\"", true),
            WordsError::Twice("dm-mod.create=")
        );
        assert_eq!(refused("", false), WordsError::NoTree);
        assert_eq!(refused("a\nb", true), WordsError::Byte(b'\n'));
        assert_eq!(refused("a\0b", true), WordsError::Byte(0));
        assert_eq!(refused("é", true), WordsError::Byte(0xc3));
        assert_eq!(
            command_line("abc", None, "", 18),
            Err(WordsError::Length {
                found: 19,
                limit: 18
            })
        );
    }
}
