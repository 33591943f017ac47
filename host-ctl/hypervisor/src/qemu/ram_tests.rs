//! Streams as QEMU 7.2 writes them, made by hand, and the damage done to them.

use super::*;
use proptest::prelude::*;
use std::io::{Seek, SeekFrom};

const SIZE: u64 = 64 * PAGE_SIZE as u64;
const DEVICES: &[u8] = b"\x04devices and the rest";

fn text(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    [&[length], text.as_bytes()].concat()
}

fn list(address: u64) -> Vec<u8> {
    let total = (SIZE + 2 * PAGE_SIZE as u64) | MEMORY_SIZE;
    let mut bytes = total.to_be_bytes().to_vec();
    for (name, length) in [("ram", SIZE), ("pc.rom", 2 * PAGE_SIZE as u64)] {
        bytes.extend(text(name));
        bytes.extend(length.to_be_bytes());
        bytes.extend(address.to_be_bytes());
    }
    bytes
}

/// A page's record: of zeroes in the short form.
fn record(block: Option<&str>, offset: u64, page: &[u8]) -> Vec<u8> {
    let is_zero = page.iter().all(|byte| *byte == 0);
    let kind = if is_zero { ZERO } else { PAGE };
    let more = if block.is_none() { CONTINUE } else { 0 };
    let mut bytes = (offset | kind | more).to_be_bytes().to_vec();
    bytes.extend(block.map(text).unwrap_or_default());
    bytes.extend(if is_zero { &[0][..] } else { page });
    bytes
}

fn section(tag: u8, records: &[u8]) -> Vec<u8> {
    let number = 2_u32.to_be_bytes();
    let mut bytes = [&[tag], &number[..]].concat();
    if tag == SECTION_START {
        bytes.extend(text("ram"));
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 4]);
    }
    bytes.extend(records);
    bytes.extend(END.to_be_bytes());
    bytes.push(SECTION_FOOTER);
    bytes.extend(number);
    bytes
}

fn head() -> Vec<u8> {
    let mut bytes = [MAGIC.to_be_bytes(), VERSION.to_be_bytes()].concat();
    bytes.push(CONFIGURATION);
    bytes.extend(6_u32.to_be_bytes());
    bytes.extend(b"pc-q35");
    bytes.push(SUBSECTION);
    bytes.extend(text("configuration/capabilities"));
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend(text("x-ignore-shared"));
    bytes
}

/// A whole stream of these pages of RAM, with one of another block between.
fn stream(pages: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let firmware = record(Some("pc.rom"), 0, &[7; PAGE_SIZE]);
    let mut parts = firmware.clone();
    for (index, (offset, page)) in pages.iter().enumerate() {
        let name = (index == 0).then_some("ram");
        parts.extend(record(name, *offset, page));
    }
    parts.extend(firmware);
    [
        head(),
        section(SECTION_START, &list(0)),
        section(SECTION_PART, &parts),
        section(SECTION_END, &[]),
        DEVICES.to_vec(),
    ]
    .concat()
}

/// What that stream is without the RAM's pages.
fn state() -> Vec<u8> {
    let firmware = record(Some("pc.rom"), 0, &[7; PAGE_SIZE]).repeat(2);
    [
        head(),
        section(SECTION_START, &list(0)),
        section(SECTION_PART, &firmware),
        section(SECTION_END, &[]),
        DEVICES.to_vec(),
    ]
    .concat()
}

fn contents(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The memory file and the state.
fn taken_apart(stream: &[u8]) -> Result<(Vec<u8>, Vec<u8>), SplitError> {
    let (memory, state) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let bytes = split(stream, SIZE, &memory, &state)?;
    let state = contents(state);
    assert_eq!(state.len() as u64, bytes);
    Ok((contents(memory), state))
}

fn any_page() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let page = prop_oneof![Just(0_u8), any::<u8>()].prop_map(|byte| vec![byte; PAGE_SIZE]);
    ((0..64_u64).prop_map(|page| page * PAGE_SIZE as u64), page)
}

proptest! {
    #[test]
    fn every_page_is_where_it_was_sent_for_last(pages in prop::collection::vec(any_page(), 0..100)) {
        let (memory, state_bytes) = taken_apart(&stream(&pages)).unwrap();
        let mut wanted = vec![0; usize::try_from(SIZE).unwrap()];
        for (offset, page) in &pages {
            let offset = usize::try_from(*offset).unwrap();
            wanted[offset..offset + PAGE_SIZE].copy_from_slice(page);
        }
        prop_assert!(memory == wanted);
        prop_assert!(state_bytes == state());
    }

    #[test]
    fn a_stream_that_is_cut_before_its_devices_is_refused(part in 0.0..1.0_f64) {
        let pages = [(0, vec![1; PAGE_SIZE])];
        let whole = stream(&pages);
        let whole = &whole[..whole.len() - DEVICES.len()];
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "any place will do")]
        let cut = (whole.len() as f64 * part) as usize;
        prop_assert!(taken_apart(&whole[..cut]).is_err());
    }

    #[test]
    fn damage_is_an_error_or_harmless(place in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = stream(&[(0, vec![1; PAGE_SIZE]), (PAGE_SIZE as u64, vec![2; PAGE_SIZE])]);
        let place = place.index(bytes.len());
        bytes[place] = byte;
        let _ = taken_apart(&bytes);
    }
}

#[test]
fn a_page_beyond_the_end_and_one_of_no_block_are_refused() {
    let beyond = taken_apart(&stream(&[(SIZE, vec![1; PAGE_SIZE])])).unwrap_err();
    assert!(beyond.to_string().contains("beyond the end"), "{beyond}");
    let nobodys = record(None, 0, &[1; PAGE_SIZE]);
    let bytes = [
        head(),
        section(SECTION_START, &[list(0), nobodys].concat()),
        DEVICES.to_vec(),
    ];
    let error = taken_apart(&bytes.concat()).unwrap_err();
    assert!(error.to_string().contains("no block"), "{error}");
}

#[test]
fn a_stream_may_claim_neither_more_ram_nor_less_than_the_guest_has() {
    let stream = stream(&[(0, vec![1; PAGE_SIZE])]);
    for size in [SIZE - PAGE_SIZE as u64, SIZE + PAGE_SIZE as u64, 0] {
        let (memory, state) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let error = split(stream.as_slice(), size, &memory, &state).unwrap_err();
        assert!(error.to_string().contains("the size of the ram"), "{error}");
        assert_eq!(memory.metadata().unwrap().len(), 0, "nothing was written");
    }
}

#[test]
fn a_guest_whose_ram_is_not_listed_is_no_guest() {
    let bytes = [
        head(),
        section(SECTION_START, &[]),
        section(SECTION_END, &[]),
        DEVICES.to_vec(),
    ];
    let error = taken_apart(&bytes.concat()).unwrap_err();
    assert!(error.to_string().contains("not in it"), "{error}");
}
