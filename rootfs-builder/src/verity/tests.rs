//! The tree against a recomputation of another kind, and against veritysetup.

use super::*;
use crate::tool::command;
use crate::uuid::Uuid;
use proptest::prelude::*;

fn noise(blocks: u64) -> Vec<u8> {
    (0..blocks * BLOCK as u64 / 8)
        .flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

fn superblock(data_blocks: u64) -> Superblock {
    Superblock {
        uuid: Uuid::of(&Digest::of(b"uuid")),
        data_blocks,
        salt: Digest::of(b"salt"),
    }
}

fn tree(data: &[u8]) -> Tree {
    build(data, &superblock((data.len() / BLOCK) as u64)).unwrap()
}

/// The digest over the part of the data below one node: from the top down, by
/// the definition, without a tree in memory.
fn node(data: &[u8], height: u32, salt: &[u8]) -> [u8; 32] {
    let span = |height: u32| BLOCK * 128_usize.pow(height);
    let block = if height == 0 {
        data.to_vec()
    } else {
        let children = data.chunks(span(height - 1));
        let mut block: Vec<u8> = children
            .flat_map(|child| node(child, height - 1, salt))
            .collect();
        block.resize(BLOCK, 0);
        block
    };
    let mut salted = salt.to_vec();
    salted.extend(block);
    *Digest::of(&salted).as_bytes()
}

#[test]
fn the_root_is_that_of_an_independent_recomputation() {
    for (blocks, height) in [(1, 0), (2, 1), (127, 1), (128, 1), (129, 2), (300, 2)] {
        let data = noise(blocks);
        let tree = tree(&data);
        let expected = node(&data, height, Digest::of(b"salt").as_bytes());
        assert_eq!(tree.root, Digest::from_bytes(expected), "{blocks}");
        assert_eq!(tree.area.len() as u64, area_blocks(blocks) * BLOCK as u64);
        assert_eq!(levels(blocks).len(), height as usize);
    }
}

#[test]
fn a_tree_has_three_levels_from_where_two_are_too_few() {
    assert_eq!(levels(128 * 128), [128, 1]);
    assert_eq!(levels(128 * 128 + 1), [129, 2, 1]);
    assert_eq!(area_blocks(128 * 128 + 1), 1 + 129 + 2 + 1);
}

#[test]
fn veritysetup_reads_our_superblock_and_agrees_on_the_tree() {
    if command("veritysetup").arg("--version").output().is_err() {
        eprintln!("skipped: veritysetup is not installed (package cryptsetup-bin)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for blocks in [2, 129, 16_400] {
        let data = noise(blocks);
        let tree = tree(&data);
        let (file, hashes) = (directory.path().join("data"), directory.path().join("hash"));
        std::fs::write(&file, &data).unwrap();
        std::fs::write(&hashes, &tree.area).unwrap();
        let run = |words: &[&str]| {
            let mut command = command("veritysetup");
            command.args(words).arg(&file).arg(&hashes);
            command
        };
        let verified = run(&["verify"])
            .arg(tree.root.to_string())
            .output()
            .unwrap();
        assert!(verified.status.success(), "{verified:?}");
        // Made by it, the tree is the same to the last byte.
        let made = directory.path().join("made");
        let salt = format!("--salt={}", Digest::of(b"salt"));
        let uuid = format!("--uuid={}", superblock(1).uuid);
        let mut format = command("veritysetup");
        format.args(["format", &salt, &uuid]).arg(&file).arg(&made);
        let formatted = format.output().unwrap();
        assert!(formatted.status.success(), "{formatted:?}");
        let said = String::from_utf8_lossy(&formatted.stdout).into_owned();
        assert!(said.contains(&tree.root.to_string()), "{said}");
        assert!(std::fs::read(&made).unwrap() == tree.area);
    }
}

#[test]
fn a_superblock_is_read_as_it_was_written_and_no_other_is() {
    let block = superblock(77).to_block();
    assert_eq!(Superblock::from_block(&block), Ok(superblock(77)));
    assert_eq!(
        Superblock::from_block(&[0; BLOCK]),
        Err(SuperblockError::Magic)
    );
    for at in [8, 12, 33, 64, 69, 80] {
        let mut block = block;
        block[at] ^= 1;
        let error = Superblock::from_block(&block).unwrap_err();
        assert!(matches!(error, SuperblockError::Kind(_)), "{at}: {error}");
    }
}

#[test]
fn a_superblock_that_promises_too_much_is_an_error() {
    let data = noise(3);
    for blocks in [0, 4, 400, u64::MAX / 4096, u64::MAX] {
        let mut tree = tree(&data);
        tree.area[72..80].copy_from_slice(&blocks.to_le_bytes());
        let error = check(data.as_slice(), &tree.area, &tree.root).unwrap_err();
        assert!(
            matches!(error, CheckError::TooSmall(_) | CheckError::Root { .. }),
            "{blocks}: {error}"
        );
    }
}

#[test]
fn less_data_than_asked_for_is_an_error() {
    let error = build(noise(1).as_slice(), &superblock(2)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(build(noise(1).as_slice(), &superblock(0)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_flipped_bit_is_found_and_told_where_it_is(
        blocks in 1_u64..200,
        at: prop::sample::Index,
        bit in 0_u8..8,
    ) {
        let mut data = noise(blocks);
        let mut tree = tree(&data);
        check(data.as_slice(), &tree.area, &tree.root).unwrap();
        let tree_start = HASH_START as usize * BLOCK;
        let at = at.index(data.len() + tree.area.len() - tree_start);
        let expected = if at < data.len() {
            data[at] ^= 1 << bit;
            format!("data block {} is", at / BLOCK)
        } else {
            let at = at - data.len() + tree_start;
            tree.area[at] ^= 1 << bit;
            match at / BLOCK {
                1 => "the root hash is".into(),
                block => format!("hash block {block} is"),
            }
        };
        let error = check(data.as_slice(), &tree.area, &tree.root).unwrap_err();
        let only_block = matches!(error, CheckError::DataBlock(0)) && blocks == 1;
        prop_assert!(error.to_string().starts_with(&expected) || only_block, "{error}");
    }

    #[test]
    fn no_root_hash_but_the_right_one_is_taken(blocks in 1_u64..150, other: [u8; 32]) {
        let data = noise(blocks);
        let tree = tree(&data);
        let other = Digest::from_bytes(other);
        prop_assert!(check(data.as_slice(), &tree.area, &other).is_err());
    }

    #[test]
    fn garbage_never_panics(area: Vec<u8>, start in 0_usize..3) {
        let mut whole = superblock(5).to_block().to_vec();
        whole.truncate(BLOCK * start / 2);
        whole.extend(area);
        let _ = check([].as_slice(), &whole, &Digest::of(b""));
    }
}
