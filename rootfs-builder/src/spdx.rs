//! What is inside an image, as an SPDX 2.3 document in JSON
//! (spdx.github.io/spdx-spec/v2.3): packages, and every file with its digests.
//!
//! The same contents give the same document. SHA-1 is in it because the
//! specification asks for it; SHA-256 is what counts.

use crate::archive::{Archive, Content};
use crate::contents::Contents;
use crate::digest::Digest;
use crate::manifest::{Input, Role};
use crate::packages::Package;
use crate::uuid::Uuid;
use serde::Serialize;
use sha1::{Digest as _, Sha1};
use std::fmt::Write;

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const IMAGE: &str = "SPDXRef-image";
const AGENT: &str = "SPDXRef-agent";
const KERNEL: &str = "SPDXRef-kernel";
/// Nothing is known, or nothing was looked at.
const NO_ASSERTION: &str = "NOASSERTION";

/// The document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: &'static str,
    document_namespace: String,
    creation_info: Creation,
    packages: Vec<Described>,
    files: Vec<File>,
    relationships: Vec<Relationship>,
}

#[derive(Clone, Debug, Serialize)]
struct Creation {
    created: String,
    creators: [String; 1],
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_info: Option<String>,
    download_location: &'static str,
    files_analyzed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    package_verification_code: Option<VerificationCode>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checksums: Vec<Checksum>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<ExternalReference>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VerificationCode {
    package_verification_code_value: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checksum {
    algorithm: &'static str,
    checksum_value: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalReference {
    reference_category: &'static str,
    reference_type: &'static str,
    reference_locator: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(rename = "SPDXID")]
    id: String,
    file_name: String,
    checksums: [Checksum; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Relationship {
    spdx_element_id: String,
    relationship_type: &'static str,
    related_spdx_element: String,
}

/// Describes what lies in an image, whatever its format.
#[must_use]
pub fn document(contents: &Contents) -> Document {
    let manifest = &contents.manifest;
    let files = files(contents);
    let mut packages = vec![image(&files)];
    let input = |role| manifest.inputs.iter().find(|input| input.role == role);
    let agent = input(Role::Agent);
    packages.extend(
        agent.map(|input| of_input(AGENT, "guest-agent", manifest.agent_version.clone(), input)),
    );
    let kernel = input(Role::Kernel);
    packages.extend(
        kernel.map(|input| of_input(KERNEL, "linux", manifest.kernel_release.clone(), input)),
    );
    let distribution = distribution(&contents.archive);
    let listed = (1..).zip(&manifest.packages);
    packages.extend(
        listed.map(|(number, package)| of_package(number, package, distribution.as_deref())),
    );
    let mut relationships = vec![relationship(DOCUMENT, "DESCRIBES", IMAGE)];
    for package in &packages[1..] {
        // A kernel is what an image is for, and lies beside it.
        relationships.push(if package.id == KERNEL {
            relationship(IMAGE, "DEPENDS_ON", KERNEL)
        } else {
            relationship(IMAGE, "CONTAINS", &package.id)
        });
    }
    relationships.extend((files.iter()).map(|file| relationship(IMAGE, "CONTAINS", &file.id)));
    let mut document = Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        id: DOCUMENT,
        name: "tardigrade-guest-image",
        document_namespace: String::new(),
        creation_info: Creation {
            created: time(manifest.source_date_epoch),
            creators: [format!(
                "Tool: rootfs-builder-{}",
                env!("CARGO_PKG_VERSION")
            )],
        },
        packages,
        files,
        relationships,
    };
    // It must be another for every document, and is made of this one's content.
    let text = serde_json::to_string(&document).unwrap_or_default();
    document.document_namespace = format!("urn:uuid:{}", Uuid::of(&Digest::of(text.as_bytes())));
    document
}

fn files(contents: &Contents) -> Vec<File> {
    let files = contents.archive.entries().filter_map(|(path, entry)| {
        let Content::File(bytes) = &entry.content else {
            return None;
        };
        Some((path, bytes))
    });
    let describe = |(number, (path, bytes)): (usize, (&crate::archive::EntryPath, &Vec<u8>))| {
        let module = path.name().strip_suffix(".ko").filter(|stem| {
            let modules = &contents.manifest.modules;
            modules.iter().any(|name| name == stem)
        });
        File {
            id: format!("SPDXRef-file-{number}"),
            file_name: format!("./{path}"),
            checksums: [
                Checksum {
                    algorithm: "SHA1",
                    checksum_value: hex(&Sha1::digest(bytes)),
                },
                sha256(&Digest::of(bytes)),
            ],
            comment: module.map(|name| format!("kernel module {name}")),
        }
    };
    (1..).zip(files).map(describe).collect()
}

/// All of it. Its verification code is the SHA-1 of its files' SHA-1s, sorted
/// (section 7.9).
fn image(files: &[File]) -> Described {
    let mut digests: Vec<&str> = files
        .iter()
        .map(|file| file.checksums[0].checksum_value.as_str())
        .collect();
    digests.sort_unstable();
    Described {
        package_verification_code: Some(VerificationCode {
            package_verification_code_value: hex(&Sha1::digest(digests.concat())),
        }),
        files_analyzed: true,
        ..package(IMAGE, "guest-image", None)
    }
}

fn of_input(id: &str, name: &str, version: Option<String>, input: &Input) -> Described {
    Described {
        checksums: vec![sha256(&input.sha256)],
        ..package(id, name, version)
    }
}

fn of_package(number: usize, of: &Package, distribution: Option<&str>) -> Described {
    let id = format!("SPDXRef-package-{number}");
    let locator = distribution.map(|distribution| {
        format!(
            "pkg:deb/{distribution}/{}@{}?arch={}",
            percent(&of.name),
            percent(&of.version),
            percent(&of.architecture)
        )
    });
    Described {
        external_refs: locator
            .map(|reference_locator| ExternalReference {
                reference_category: "PACKAGE-MANAGER",
                reference_type: "purl",
                reference_locator,
            })
            .into_iter()
            .collect(),
        ..package(&id, &of.name, Some(of.version.clone()))
    }
}

fn package(id: &str, name: &str, version_info: Option<String>) -> Described {
    Described {
        id: id.into(),
        name: name.into(),
        version_info,
        download_location: NO_ASSERTION,
        files_analyzed: false,
        package_verification_code: None,
        checksums: Vec::new(),
        external_refs: Vec::new(),
    }
}

fn relationship(from: &str, kind: &'static str, to: &str) -> Relationship {
    Relationship {
        spdx_element_id: from.into(),
        relationship_type: kind,
        related_spdx_element: to.into(),
    }
}

/// The ID of os-release(5), where the base has one that can be part of a name.
fn distribution(archive: &Archive) -> Option<String> {
    let of = |path: &str| match &archive.get(&path.parse().ok()?)?.content {
        Content::File(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    let text = of("usr/lib/os-release").or_else(|| of("etc/os-release"))?;
    let id = text.lines().find_map(|line| line.strip_prefix("ID="))?;
    let id = id.trim_matches('"');
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    (!id.is_empty() && id.bytes().all(plain)).then(|| id.to_owned())
}

/// As package URLs have it: RFC 3986, section 2.1.
fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b".-_~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // A String takes every write.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn sha256(digest: &Digest) -> Checksum {
    Checksum {
        algorithm: "SHA256",
        checksum_value: digest.to_string(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ`.
fn time(seconds: u32) -> String {
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u32| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u32::from(leap(year)) {
        days -= 365 + u32::from(leap(year));
        year += 1;
    }
    let february = 28 + u32::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let day = days + 1;
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (u32::MAX, "2106-02-07T06:28:15Z"),
        ] {
            assert_eq!(time(seconds), expected);
        }
    }

    #[test]
    fn names_in_urls_have_no_delimiters() {
        assert_eq!(percent("1:2.0+b1~rc"), "1%3A2.0%2Bb1~rc");
    }
}
