//! Layouts made here, each with one thing wrong.

use super::*;
use crate::sample::{link, member, tar};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;

/// A layout that grows blob by blob.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        let version = json!({ "imageLayoutVersion": "1.0.0" });
        fs::write(directory.path().join("oci-layout"), version.to_string()).unwrap();
        Self { directory }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        let path = self.directory.path().join("blobs/sha256").join(&digest);
        fs::write(path, bytes).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.directory.path().join("index.json"), index.to_string()).unwrap();
    }

    /// An image of these layers (media type, packed, unpacked).
    fn image(&self, architecture: &str, layers: &[(&str, Vec<u8>, Vec<u8>)]) -> Value {
        let diff_ids = layers
            .iter()
            .map(|(_, _, unpacked)| format!("sha256:{}", Digest::of(unpacked)));
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>() },
        });
        let blobs = layers
            .iter()
            .map(|(kind, packed, _)| self.blob(kind, packed));
        let manifest = json!({
            "schemaVersion": 2,
            "config": self.blob(CONFIG, config.to_string().as_bytes()),
            "layers": blobs.collect::<Vec<_>>(),
        });
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn load(&self, reference: Option<&str>) -> Result<Layers, OciError> {
        super::load(self.directory.path(), reference, Architecture::X86_64)
            .map(|(layers, _)| layers)
    }

    fn complaint(&self) -> String {
        use std::error::Error;
        let error = self.load(None).unwrap_err();
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn plain(unpacked: Vec<u8>) -> (&'static str, Vec<u8>, Vec<u8>) {
    (LAYER, unpacked.clone(), unpacked)
}

#[test]
fn layers_of_each_packing_lie_one_on_the_other() {
    let place = Place::new();
    let first = tar(&[member("a", b'0', b"1"), member("gone", b'0', b"")]);
    let second = tar(&[member("b", b'0', b"2"), member(".wh.gone", b'0', b"")]);
    let third = tar(&[link("c", b'2', "b")]);
    let layers = [
        (GZIP, gzip(&first), first.clone()),
        (
            ZSTD,
            zstd::bulk::compress(&second, 3).unwrap(),
            second.clone(),
        ),
        plain(third),
    ];
    place.index(&[place.image("amd64", &layers)]);
    let (loaded, inputs) = super::load(place.directory.path(), None, Architecture::X86_64).unwrap();
    let names: Vec<_> = loaded
        .archive
        .entries()
        .map(|(path, _)| path.to_string())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    // Manifest, configuration, three layers, each with its digest.
    assert_eq!(inputs.len(), 5);
    assert_eq!(inputs[2].sha256, Digest::of(&layers[0].1));
}

#[test]
fn an_image_is_found_by_name_and_by_machine() {
    let place = Place::new();
    let layer = |name: &str| [plain(tar(&[member(name, b'0', b"")]))];
    let named = |mut image: Value, name: &str| {
        image["annotations"] = json!({ REFERENCE: name });
        image
    };
    let of = |mut image: Value, architecture: &str| {
        image["platform"] = json!({ "architecture": architecture, "os": "linux" });
        image
    };
    let nested = json!({
        "manifests": [
            of(place.image("arm64", &layer("arm")), "arm64"),
            of(place.image("amd64", &layer("intel")), "amd64"),
        ],
    });
    let nested = place.blob(INDEX, nested.to_string().as_bytes());
    let other = place.image("amd64", &layer("other"));
    place.index(&[named(nested, "r.io/x:1"), named(other, "y")]);
    let names = |reference: &str| {
        let layers = place.load(Some(reference)).unwrap();
        let names = layers.archive.entries().map(|(path, _)| path.to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names("r.io/x:1"), ["intel"]);
    assert_eq!(names("y"), ["other"]);
    assert!(place.complaint().contains("2 images are called so"));
    let error = place.load(Some("z")).unwrap_err().to_string();
    assert!(
        error.contains("\"z\" for amd64") && error.contains("0 images"),
        "{error}"
    );
    place.index(&[place.image("arm64", &layer("arm"))]);
    assert!(
        place
            .complaint()
            .contains("the image is for linux/arm64, the agent for amd64")
    );
}

#[test]
fn a_blob_that_is_not_what_it_is_called_is_refused() {
    let content = || vec![plain(tar(&[member("a", b'0', b"1")]))];
    // The layer's bytes, its size, its diff_id.
    let damaged = |damage: &dyn Fn(&Place, &Path)| {
        let place = Place::new();
        let layers = content();
        place.index(&[place.image("amd64", &layers)]);
        let digest = Digest::of(&layers[0].1).to_string();
        let blob = place.directory.path().join("blobs/sha256").join(digest);
        damage(&place, &blob);
        place.complaint()
    };
    let said = damaged(&|_, blob| {
        let mut bytes = fs::read(blob).unwrap();
        bytes[513] ^= 1;
        fs::write(blob, bytes).unwrap();
    });
    assert!(said.contains("its sha256 is not"), "{said}");
    let said = damaged(&|_, blob| fs::write(blob, "short").unwrap());
    assert!(said.contains("its size is not"), "{said}");
    let said = damaged(&|_, blob| fs::remove_file(blob).unwrap());
    assert!(said.contains("No such file"), "{said}");
    // The same bytes, elsewhere.
    let said = damaged(&|place, blob| {
        fs::rename(blob, place.directory.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(place.directory.path().join("elsewhere"), blob).unwrap();
    });
    assert!(said.contains("Too many levels of symbolic links"), "{said}");
    let said = damaged(&|_, blob| {
        fs::remove_file(blob).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, blob, mode).unwrap();
    });
    assert!(said.contains("not a regular file"), "{said}");
    let place = Place::new();
    let mut layers = content();
    layers[0].2.push(0);
    place.index(&[place.image("amd64", &layers)]);
    assert!(place.complaint().contains("its diff_id is not"));
}

#[test]
fn nothing_but_a_digest_becomes_part_of_a_path() {
    let digest = "0".repeat(64);
    for name in [
        "sha256:../../index.json".to_owned(),
        format!("sha256:../{}", &digest[3..]),
        format!("sha512:{digest}"),
        format!("sha256:{}", "A".repeat(64)),
        String::new(),
    ] {
        let place = Place::new();
        place.index(&[json!({ "mediaType": MANIFEST, "digest": name, "size": 10 })]);
        let error = place.load(None).unwrap_err();
        assert!(matches!(error, OciError::Algorithm(_)), "{name}: {error}");
    }
}

#[test]
fn what_lies_elsewhere_is_never_fetched() {
    let place = Place::new();
    let layers = [plain(tar(&[member("a", b'0', b"1")]))];
    place.index(&[place.image("amd64", &layers)]);
    let blob = Digest::of(&layers[0].1).to_string();
    fs::remove_file(place.directory.path().join("blobs/sha256").join(blob)).unwrap();
    assert!(place.complaint().contains("No such file"));
    // By its type, a layer that is not distributed with its image.
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    place.index(&[place.image("amd64", &[(foreign, Vec::new(), Vec::new())])]);
    assert!(place.complaint().contains("use a layer of type"));
}

#[test]
fn documents_are_bounded_in_size_and_depth() {
    let place = Place::new();
    let index = place.directory.path().join("index.json");
    fs::write(&index, vec![b' '; (MAX_JSON_BYTES + 1) as usize]).unwrap();
    assert!(place.complaint().contains("more than 4194304 bytes"));
    fs::write(&index, "[".repeat(100_000)).unwrap();
    assert!(place.complaint().contains("index.json"));
    fs::write(&index, format!("{{\"x\":{}", "[".repeat(100_000))).unwrap();
    assert!(place.complaint().contains("EOF while parsing"));
    // Indexes in indexes.
    let mut image = place.image("amd64", &[]);
    for _ in 0..=MAX_INDEXES {
        let index = json!({ "manifests": [image] });
        image = place.blob(INDEX, index.to_string().as_bytes());
    }
    place.index(&[image]);
    assert!(place.complaint().contains("4 indexes"));
    let size = json!({ "mediaType": MANIFEST, "digest": format!("sha256:{}", Digest::of(b"")), "size": u64::MAX });
    place.index(&[size]);
    assert!(place.load(None).is_err());
    fs::write(
        place.directory.path().join("oci-layout"),
        "{\"imageLayoutVersion\":\"2\"}",
    )
    .unwrap();
    assert!(place.complaint().contains("only layouts of version 1.0.0"));
}

#[test]
fn a_bomb_is_refused_before_it_is_unpacked() {
    // A file of 5 GiB, of zeros: it packs to some MB, twice packed to some KB.
    let place = Place::new();
    let mut header = tar(&[member("bomb", b'0', b"")]);
    header.truncate(512);
    header[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\x01\x40\0\0\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut layers = Layers::default();
    let endless = io::Read::chain(header.as_slice(), io::repeat(0));
    let capped = Capped {
        from: endless,
        left: 1 << 20,
    };
    // Not even begun: the header says it.
    let error = layers.apply(capped).err().unwrap();
    let LayerError::Tar(super::super::tar::TarError::Read(error)) = error else {
        panic!("{error}")
    };
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    // As a layer that is not whole.
    place.index(&[place.image("amd64", &[(GZIP, gzip(&header), header.clone())])]);
    assert!(place.complaint().contains("apply layer 1"));
}
