//! mkfs.erofs as we call it.

use super::*;
use crate::tool::command;
use std::fs;
use std::os::unix::fs::symlink;

fn tools_are_missing() -> bool {
    let missing = command("mkfs.erofs").arg("--help").output().is_err();
    if missing {
        eprintln!("skipped: mkfs.erofs is not installed (package erofs-utils)");
    }
    missing
}

/// A tree, with its names made in the given order.
fn plant(root: &Path, mut names: Vec<u32>) {
    fs::create_dir_all(root.join("d")).unwrap();
    for number in names.drain(..) {
        let text = format!("{number} ").repeat(number as usize * 300);
        fs::write(root.join(format!("d/{number:03}")), text).unwrap();
    }
    symlink("../../../../etc/shadow", root.join("escape")).unwrap();
    fs::hard_link(root.join("d/001"), root.join("twin")).unwrap();
    fs::write(root.join("d/\u{e4} \n-x"), "odd").unwrap();
}

fn request(directory: &Path, packing: Packing) -> Request {
    Request {
        tree: directory.join("tree"),
        output: directory.join("image"),
        packing,
        source_date_epoch: 0,
        deadline: Duration::from_secs(60),
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes_wherever_and_whenever_it_was_made() {
    if tools_are_missing() {
        return;
    }
    for packing in [Packing::None, Packing::Lz4] {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        plant(&here.path().join("tree"), (0..60).collect());
        plant(&there.path().join("tree"), (0..60).rev().collect());
        let first = build(&request(here.path(), packing)).unwrap();
        let second = build(&request(there.path(), packing)).unwrap();
        assert_eq!(first.sha256, second.sha256);
        assert_eq!(first.uuid, second.uuid);
        let bytes = |directory: &Path| fs::read(directory.join("image")).unwrap();
        assert!(bytes(here.path()) == bytes(there.path()));
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 2);
    }
}

#[test]
fn the_image_holds_the_tree_exactly() {
    if tools_are_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    plant(&directory.path().join("tree"), (0..40).collect());
    let image = build(&request(directory.path(), Packing::None)).unwrap();
    let output = directory.path().join("out");
    let extracted = command("fsck.erofs")
        .arg(format!("--extract={}", output.display()))
        .arg(directory.path().join("image"))
        .output()
        .unwrap();
    assert!(extracted.status.success(), "{extracted:?}");
    let target = fs::read_link(output.join("escape")).unwrap();
    assert_eq!(target, Path::new("../../../../etc/shadow"));
    let survey = tree::survey(&output).unwrap();
    assert_eq!((survey.entries, survey.bytes), (image.entries, image.bytes));
    assert_eq!(survey.digest, image.tree_sha256);
}

#[test]
fn a_refused_tree_leaves_the_old_image_alone() {
    let directory = tempfile::tempdir().unwrap();
    plant(&directory.path().join("tree"), vec![1]);
    fs::write(directory.path().join("image"), "old").unwrap();
    let socket = directory.path().join("tree/socket");
    let _listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    let error = build(&request(directory.path(), Packing::None)).unwrap_err();
    assert!(matches!(error, ErofsError::Tree(_)), "{error}");
    assert_eq!(fs::read(directory.path().join("image")).unwrap(), b"old");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn an_image_inside_its_own_tree_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    plant(&directory.path().join("tree"), vec![1]);
    let mut request = request(directory.path(), Packing::None);
    request.output = directory.path().join("tree/d/image");
    let error = build(&request).unwrap_err();
    assert!(matches!(error, ErofsError::Inside(_)), "{error}");
}

#[test]
fn compressors_are_read_from_the_help_of_old_and_new_versions() {
    let old = "options are:\n -zX[,Y]  X=compressor\n\nAvailable compressors are: lz4hc, lz4\n";
    assert_eq!(listed(old), ["lz4hc", "lz4"]);
    let new = "options:\n -zX[,level=Y]  X=compressor\n    lz4\n    lz4hc[,level=<0-12>] (9)\n    \
               zstd[,level=<0-22>]\n --workers=#  lzma\n";
    assert_eq!(listed(new), ["lz4", "lz4hc", "zstd"]);
}

#[test]
fn zstd_packs_where_mkfs_erofs_has_it_and_is_refused_by_name_where_not() {
    if tools_are_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    plant(&directory.path().join("tree"), (0..9).collect());
    let request = request(directory.path(), Packing::Zstd);
    let known = compressors(request.deadline).unwrap();
    assert!(known.iter().any(|name| name == "lz4hc"), "{known:?}");
    match build(&request) {
        Ok(image) => {
            assert!(known.iter().any(|name| name == "zstd"), "{known:?}");
            assert!(image.size < image.bytes);
        }
        Err(error) => {
            assert!(!known.iter().any(|name| name == "zstd"), "{error}");
            let text = error.to_string();
            assert!(text.contains("cannot compress with zstd"), "{text}");
            assert!(!request.output.exists());
        }
    }
}
