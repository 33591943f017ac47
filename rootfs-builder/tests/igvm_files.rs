//! IGVM files as the program makes them. What is measured is computed here once
//! more: the file is read by the crate `igvm`, and hashed by the words of the
//! ABI, without anything of ours.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails, also in what it calls"
)]

use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader};
use igvm_defs::IgvmPageDataType;
use proptest::prelude::*;
use rootfs_builder::igvm::expected;
use sha2::{Digest, Sha384};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;
use zerocopy::IntoBytes;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rootfs-builder");
const MEMORY: usize = 32 << 20;
const KERNEL: usize = 0x20_0000;
const INIT_SIZE: u32 = 1 << 20;

/// A bzImage that the boot protocol would take, with code that is none.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x200, b"\xeb\x6aHdrS\x0f\x02");
    put(0x236, &[1]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &(KERNEL as u64).to_le_bytes());
    put(0x260, &INIT_SIZE.to_le_bytes());
    image.extend((0..9000_u32).map(|number| (number / 7) as u8 | 1));
    image
}

fn initrd() -> Vec<u8> {
    (0..6000_u32).map(|number| (number / 5) as u8 | 1).collect()
}

fn run(words: &[&str]) -> Output {
    Command::new(PROGRAM).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Builds a file of the usual inputs in `directory`, which gets them.
fn build(directory: &Path, name: &str, words: &[&str]) -> Output {
    let at = |name: &str| directory.join(name).display().to_string();
    fs::write(at("kernel"), bzimage()).unwrap();
    fs::write(at("initrd"), initrd()).unwrap();
    let (kernel, initrd, output) = (at("kernel"), at("initrd"), at(name));
    let mut all = vec!["igvm", "--kernel", &kernel, "--initrd", &initrd];
    all.extend(["--memory", "32", "--output", &output]);
    all.extend(words);
    run(&all)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The launch digest by the ABI's words: PAGE_INFO of 0x70 bytes for each page,
/// the processor's state last and at the address that KVM has for it.
fn launch_digest(bytes: &[u8]) -> [u8; 48] {
    let file = IgvmFile::new_from_binary(bytes, None).unwrap();
    let mut digest = [0; 48];
    let mut measure = |kind: u8, address: u64, contents: &[u8]| {
        let mut hasher = Sha384::new();
        hasher.update(digest);
        hasher.update(contents);
        hasher.update([0x70, 0, kind, 0, 0, 0, 0, 0]);
        hasher.update(address.to_le_bytes());
        digest = hasher.finalize().into();
    };
    let mut states = Vec::new();
    for directive in file.directives() {
        match directive {
            IgvmDirectiveHeader::PageData {
                gpa,
                data_type,
                data,
                ..
            } => match *data_type {
                IgvmPageDataType::NORMAL => {
                    assert_eq!(data.len(), 4096);
                    measure(1, *gpa, &Sha384::digest(data));
                }
                IgvmPageDataType::SECRETS => measure(5, *gpa, &[0; 48]),
                IgvmPageDataType::CPUID_DATA => measure(6, *gpa, &[0; 48]),
                _ => panic!("a page that none of ours is"),
            },
            IgvmDirectiveHeader::SnpVpContext { vmsa, .. } => states.push(vmsa.clone()),
            IgvmDirectiveHeader::SnpIdBlock { .. } => {}
            other => panic!("a directive that none of ours is: {other:?}"),
        }
    }
    assert_eq!(states.len(), 1);
    measure(2, 0xffff_ffff_f000, &Sha384::digest(states[0].as_bytes()));
    digest
}

/// What a guest finds in its memory, page by page.
fn pages(bytes: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let file = IgvmFile::new_from_binary(bytes, None).unwrap();
    let pages = file.directives().iter().filter_map(|header| match header {
        IgvmDirectiveHeader::PageData { gpa, data, .. } => Some((*gpa, data.clone())),
        _ => None,
    });
    let count = pages.clone().count();
    let pages: BTreeMap<u64, Vec<u8>> = pages.collect();
    assert_eq!(pages.len(), count, "a page is there twice");
    pages
}

fn memory(pages: &BTreeMap<u64, Vec<u8>>, start: usize, size: usize) -> Vec<u8> {
    let range = start as u64..(start + size).next_multiple_of(4096) as u64;
    let mut bytes: Vec<u8> = pages.range(range).flat_map(|page| page.1.clone()).collect();
    bytes.truncate(size);
    bytes
}

/// A file that is only looked at.
static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let built = build(directory.path(), "file", &[]);
    assert!(built.status.success(), "{built:?}");
    fs::read(directory.path().join("file")).unwrap()
});

#[test]
fn the_measurement_is_that_of_another_reader_and_another_hash_chain() {
    let directory = tempfile::tempdir().unwrap();
    for vmm in ["qemu", "cloud-hypervisor"] {
        let words = ["--cmdline", "console=ttyS0", "--vmm", vmm, "--svn", "7"];
        let built = build(directory.path(), vmm, &words);
        assert!(built.status.success(), "{built:?}");
        let image = directory.path().join(vmm);
        let digest = hex(&launch_digest(&fs::read(&image).unwrap()));
        let reference = json(&directory.path().join(format!("{vmm}.json")));
        assert_eq!(reference["expected"]["measurement"], digest.as_str());
        assert_eq!(reference["svn"], 7);
        assert_eq!(reference["expected"]["guest_svn"], 0, "no key signed it");
        let measured = run(&["measure", image.to_str().unwrap()]);
        assert!(measured.status.success(), "{measured:?}");
        assert_eq!(
            text(&measured.stdout),
            format!(
                "platform: sev-snp\nmeasurement: {digest}\npolicy: 0x30000\nvcpus: 1\nguest svn: 0\n"
            )
        );
    }
    // Where the state lies in the file is the loader's affair, not KVM's.
    let measurement = |name: &str| json(&directory.path().join(name))["expected"].clone();
    assert_eq!(
        measurement("qemu.json"),
        measurement("cloud-hypervisor.json")
    );
}

#[test]
fn kernel_initrd_and_command_line_are_where_the_zero_page_says() {
    let pages = pages(&FILE);
    let kernel = bzimage();
    let code = &kernel[1024..];
    assert_eq!(memory(&pages, KERNEL, code.len()), code);
    let zero_page = memory(&pages, 0x9_0000, 4096);
    let number = |at: usize, size: usize| {
        let bytes = zero_page[at..at + size].iter().rev();
        bytes.fold(0, |number, &byte| number << 8 | usize::from(byte))
    };
    assert_eq!(&zero_page[0x1f1..0x210], &kernel[0x1f1..0x210]);
    assert_eq!(number(0x21c, 4), initrd().len());
    assert_eq!(memory(&pages, number(0x218, 4), initrd().len()), initrd());
    assert_eq!(memory(&pages, number(0x228, 4), 16), b"agent.end=reset\0");
    assert_eq!(memory(&pages, number(0x70, 8), 8), b"RSD PTR ");
    // All memory that the kernel takes for its own is there, and what is not
    // is not its own.
    for entry in 0..number(0x1e8, 1) {
        let at = 0x2d0 + entry * 20;
        let (start, size) = (number(at, 8) as u64, number(at + 8, 8) as u64);
        let usable = number(at + 16, 4) == 1;
        for page in (start..start + size).step_by(4096) {
            assert!(!usable || pages.contains_key(&page), "{page:#x}");
        }
    }
    assert!(pages.keys().all(|&page| page < MEMORY as u64));
    // The blob that leads to the pages of secrets and CPUID.
    let entry = memory(&pages, number(0x250, 8), 20);
    assert_eq!(entry[8], 7);
    let blob = u32::from_le_bytes(entry[16..20].try_into().unwrap()) as usize;
    let blob = memory(&pages, blob & !4095, 4096)[blob & 4095..].to_vec();
    assert_eq!(&blob[..4], b"AMDE");
}

#[test]
fn the_same_inputs_give_the_same_file_and_nothing_is_said_of_where_they_lay() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let key = other.path().join("key");
    let made = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-384",
            "-out",
        ])
        .arg(&key)
        .output();
    assert!(made.unwrap().status.success(), "openssl is needed");
    let words = ["--svn", "3", "--id-key", key.to_str().unwrap()];
    for directory in [&one, &other] {
        let built = build(directory.path(), "image", &words);
        assert!(built.status.success(), "{built:?}");
    }
    for name in ["image", "image.json"] {
        let bytes = |directory: &tempfile::TempDir| fs::read(directory.path().join(name)).unwrap();
        assert_eq!(bytes(&one), bytes(&other));
    }
    let reference = text(&fs::read(one.path().join("image.json")).unwrap());
    assert!(!reference.contains(one.path().to_str().unwrap()));
}

/// openssl is the other one that knows the signature.
#[test]
fn a_signed_identity_is_one_that_openssl_accepts() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let openssl = |words: &[&str]| {
        let output = Command::new("openssl")
            .args(words)
            .current_dir(directory.path())
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    openssl(&["ecparam", "-name", "secp384r1", "-genkey", "-out", "key"]);
    openssl(&["ec", "-in", "key", "-pubout", "-out", "public"]);
    let key = at("key").display().to_string();
    let words = ["--svn", "9", "--id-key", &key];
    let built = build(directory.path(), "image", &words);
    assert!(built.status.success(), "{built:?}");
    let bytes = fs::read(at("image")).unwrap();
    let file = IgvmFile::new_from_binary(&bytes, None).unwrap();
    let IgvmInitializationHeader::GuestPolicy { policy, .. } = file.initializations()[0] else {
        panic!("no policy");
    };
    let block = file.directives().last().unwrap();
    let IgvmDirectiveHeader::SnpIdBlock {
        ld,
        family_id,
        image_id,
        version,
        guest_svn,
        id_key_signature,
        ..
    } = block
    else {
        panic!("no identity");
    };
    assert_eq!((*ld, *guest_svn), (launch_digest(&bytes), 9));
    let mut signed = ld.to_vec();
    signed.extend(family_id);
    signed.extend(image_id);
    signed.extend(version.to_le_bytes());
    signed.extend(guest_svn.to_le_bytes());
    signed.extend(policy.to_le_bytes());
    fs::write(at("signed"), signed).unwrap();
    // In DER: two numbers, each with a zero before a first bit that is set.
    let number = |field: &[u8; 72]| {
        let mut number: Vec<u8> = field[..48].iter().rev().copied().collect();
        let zeros = number.iter().take_while(|&&byte| byte == 0).count();
        number.drain(..zeros);
        if number[0] & 0x80 != 0 {
            number.insert(0, 0);
        }
        [&[2, number.len() as u8], &number[..]].concat()
    };
    let numbers = [
        number(&id_key_signature.r_comp),
        number(&id_key_signature.s_comp),
    ]
    .concat();
    fs::write(
        at("signature"),
        [&[0x30, numbers.len() as u8], &numbers[..]].concat(),
    )
    .unwrap();
    openssl(&[
        "dgst",
        "-sha384",
        "-verify",
        "public",
        "-signature",
        "signature",
        "signed",
    ]);
    let measured = run(&["measure", at("image").to_str().unwrap()]);
    assert!(text(&measured.stdout).contains("guest svn: 9\nid key digest: "));
}

#[test]
fn a_file_is_held_against_its_reference_and_its_identity() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    assert!(build(directory.path(), "one", &[]).status.success());
    let words = ["--cmdline", "quiet"];
    assert!(build(directory.path(), "other", &words).status.success());
    let measure =
        |image: &str, reference: &str| run(&["measure", &at(image), "--reference", &at(reference)]);
    assert!(measure("one", "one.json").status.success());
    let output = measure("one", "other.json");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("its reports will be other than"));
    let output = measure("one", "kernel");
    assert!(text(&output.stderr).contains("read the reference measurements"));
}

#[test]
fn the_words_of_a_root_disk_are_measured() {
    let directory = tempfile::tempdir().unwrap();
    let digest = "ab".repeat(32);
    let manifest = serde_json::json!({
        "format": 3, "kind": "erofs", "kernel_release": null, "agent_version": null,
        "source_date_epoch": 0, "inputs": [], "modules": [], "files": [],
        "disk": {
            "layout": "verity", "uuid": "00000000-0000-8000-8000-000000000000",
            "offset": 2 << 20, "size": 4096,
            "verity": {
                "root_hash": digest, "salt": digest, "data_blocks": 1,
                "offset": 4 << 20, "size": 8192,
            },
        },
    });
    let path = directory.path().join("root.json");
    fs::write(&path, manifest.to_string()).unwrap();
    let words = ["--manifest", path.to_str().unwrap(), "--cmdline", "quiet"];
    let built = build(directory.path(), "image", &words);
    assert!(built.status.success(), "{built:?}");
    let reference = json(&directory.path().join("image.json"));
    let line = reference["command_line"].as_str().unwrap();
    assert!(
        line.contains(&format!("1 sha256 {digest} {digest}\" root=/dev/dm-0")),
        "{line}"
    );
    assert_eq!(reference["root_hash"], digest.as_str());
    let pages = pages(&fs::read(directory.path().join("image")).unwrap());
    assert_eq!(memory(&pages, 0x9_8000, line.len()), line.as_bytes());
}

#[test]
fn what_cannot_be_built_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    for (words, complaint) in [
        (&["--memory", "1"][..], "32 MiB to 2048 MiB"),
        (&["--memory", "4096"], "32 MiB to 2048 MiB"),
        (&["--cmdline", "a\tb"], "a byte 0x09"),
        (&["--guest-policy", "0x0"], "bit 17 is always set"),
        (&["--id-key", "/dev/null"], "not a regular file"),
        (
            &["--platform", "native", "--id-key", "/x"],
            "nothing isolates",
        ),
        (&["--manifest", "/nowhere"], "open /nowhere"),
    ] {
        let words: Vec<&str> = words.to_vec();
        // The last --memory would be an error of the parser's.
        let output = if words[0] == "--memory" {
            let kernel = directory.path().join("kernel").display().to_string();
            let output = directory.path().join("image").display().to_string();
            fs::write(&kernel, bzimage()).unwrap();
            run(&[
                &["igvm", "--kernel", &kernel, "--output", &output],
                &words[..],
            ]
            .concat())
        } else {
            build(directory.path(), "image", &words)
        };
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains(complaint), "{said}");
        let left = fs::read_dir(directory.path()).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name());
        assert!(
            left.into_iter()
                .all(|name| name == "kernel" || name == "initrd")
        );
    }
}

/// The digest as the program has it, without what the checksum would say first.
fn measured(mut bytes: Vec<u8>) -> Option<String> {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let headers = number(8)..number(8) + number(12);
    bytes[20..24].fill(0);
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[..24]);
    checksum.update(&bytes[headers]);
    let checksum = checksum.finalize();
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    let expected = expected::measure(&bytes).ok()?;
    Some(expected[0].measurement.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The file's data is all measured; of the headers the pages' addresses are.
    #[test]
    fn no_measured_byte_can_be_changed_unseen(at: prop::sample::Index, bit in 0..8_u32) {
        let right = measured(FILE.clone());
        let start = 24 + u32::from_le_bytes(FILE[12..16].try_into().unwrap()) as usize;
        let mut bytes = FILE.clone();
        let at = start + at.index(bytes.len() - start);
        bytes[at] ^= 1 << bit;
        prop_assert_ne!(measured(bytes), right);
    }

    #[test]
    fn no_page_can_be_put_elsewhere_unseen(at: prop::sample::Index, bit in 0..40_u32) {
        let right = measured(FILE.clone());
        let mut bytes = FILE.clone();
        // Fixed header, platform, policy; then 32 bytes for each page, whose
        // address is behind kind and length.
        let page = 24 + 24 + 24 + at.index(8000) * 32 + 8;
        bytes[page + 1 + bit as usize / 8] ^= 1 << (bit % 8);
        prop_assert_ne!(measured(bytes), right);
    }

    #[test]
    fn a_damaged_file_never_panics(at: prop::sample::Index, byte: u8, length: prop::sample::Index) {
        let mut bytes = FILE.clone();
        let size = 24 + u32::from_le_bytes(FILE[12..16].try_into().unwrap()) as usize;
        let at = at.index(size);
        bytes[at] = byte;
        let _ = expected::measure(&bytes);
        if !(8..16).contains(&at) {
            let _ = measured(bytes.clone());
        }
        bytes.truncate(length.index(bytes.len()));
        let _ = expected::measure(&bytes);
    }
}
