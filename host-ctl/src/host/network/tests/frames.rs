//! Frames written into a tap as a VMM writes its guest's, and what the kernel
//! lets of them into the host.

use super::*;
use hypervisor::open_tap;
use proptest::prelude::*;
use rtnetlink::packet_route::tc::{TcAttribute, TcStats2};
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
/// A virtio-net header that asks for nothing (VIRTIO 1.2, section 5.1.6).
const PLAIN: [u8; 10] = [0; 10];

/// Whose addresses a frame bears: the guest's or, by one bit, another's.
#[derive(Debug, Clone, Copy)]
struct Flips {
    source: Option<u8>,
    sender: Option<u8>,
    address: Option<u8>,
}

#[derive(Debug, Clone)]
struct Frame {
    kind: u16,
    /// 802.1Q tags in front of the kind.
    tags: Vec<u16>,
    flips: Flips,
    /// Of ARP: what kind of addresses it has, four numbers.
    arp: [u8; 6],
    rest: Vec<u8>,
    /// How many of its bytes are sent.
    length: usize,
}

/// What ARP says of Ethernet and IPv4 (RFC 826).
const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

fn flipped<const N: usize>(mut bytes: [u8; N], bit: Option<u8>) -> [u8; N] {
    if let Some(bit) = bit {
        let bit = usize::from(bit) % (8 * N);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    bytes
}

impl Frame {
    fn bytes(&self, tap: &TapRecord) -> Vec<u8> {
        let address = flipped(tap.addresses.guest.octets(), self.flips.address);
        let mut bytes = tap.host.unwrap().as_bytes().to_vec();
        bytes.extend(flipped(*tap.guest.as_bytes(), self.flips.source));
        for tag in &self.tags {
            bytes.extend(VLAN.to_be_bytes());
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(self.kind.to_be_bytes());
        if self.kind == ARP {
            bytes.extend(self.arp);
            bytes.extend([0, 2]);
            bytes.extend(flipped(*tap.guest.as_bytes(), self.flips.sender));
            bytes.extend(address);
            bytes.extend([0; 6]);
            bytes.extend(tap.addresses.host.octets());
        } else {
            // As in IPv4: what other kinds have there is their own affair.
            bytes.extend([0x45, 0, 0, 100, 0, 0, 0, 0, 64, 17, 0, 0]);
            bytes.extend(address);
            bytes.extend(tap.addresses.host.octets());
        }
        bytes.extend(&self.rest);
        // Whoever sends less than a header has sent nothing: EINVAL; and less
        // than a tag needs is gone before anybody counts.
        let least = if self.tags.is_empty() { 14 } else { 22 };
        bytes.truncate(self.length.max(least));
        bytes
    }

    /// What the fence is for, said another way than the filter does.
    fn is_own(&self) -> bool {
        let Flips {
            source,
            sender,
            address,
        } = self.flips;
        let own = source.is_none() && self.tags.is_empty() && address.is_none();
        match self.kind {
            IPV4 => own && self.length >= 14 + 16,
            ARP => {
                own && sender.is_none() && self.arp == ETHERNET_AND_IPV4 && self.length >= 14 + 18
            }
            _ => false,
        }
    }
}

fn frames() -> impl Strategy<Value = Frame> {
    // Most frames are the guest's own but for one thing.
    let flip = || prop_oneof![6 => Just(None), 1 => any::<u8>().prop_map(Some)];
    let kind = prop_oneof![
        4 => Just(IPV4),
        4 => Just(ARP),
        1 => Just(IPV6),
        1 => any::<u16>().prop_filter("a kind of its own", |kind| ![IPV4, ARP, VLAN, 0x88a8].contains(kind)),
    ];
    let tags = prop_oneof![
        8 => Just(Vec::new()),
        1 => prop::collection::vec(prop_oneof![Just(0), any::<u16>()], 1..3),
    ];
    let arp = prop_oneof![
        6 => Just(ETHERNET_AND_IPV4),
        1 => any::<[u8; 6]>(),
        1 => any::<u8>().prop_map(|bit| flipped(ETHERNET_AND_IPV4, Some(bit))),
    ];
    let length = prop_oneof![8 => Just(usize::MAX), 1 => 14..50_usize];
    let rest = prop::collection::vec(any::<u8>(), 20..1400);
    let flips = (flip(), flip(), flip()).prop_map(|(source, sender, address)| Flips {
        source,
        sender,
        address,
    });
    let parts = (kind, tags, flips, arp, rest, length);
    parts.prop_map(|(kind, tags, flips, arp, rest, length)| Frame {
        kind,
        tags,
        flips,
        arp,
        rest,
        length,
    })
}

/// What the kernel counts at a tap's entry into the host.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    bytes: u64,
    seen: u64,
    dropped: u64,
}

async fn counts(network: &HostNetwork, tap: &TapRecord) -> Counts {
    let index = tap.index.unwrap().cast_signed();
    let mut hooks = network.handle.qdisc();
    let list = hooks.get().index(index).execute().try_collect::<Vec<_>>();
    let list = list.await.unwrap();
    let mut counts = Counts::default();
    let hook = list.iter().find(|hook| {
        let kind = TcAttribute::Kind("ingress".to_owned());
        hook.header.index == index && hook.attributes.contains(&kind)
    });
    for attribute in &hook.unwrap().attributes {
        let TcAttribute::Stats2(stats) = attribute else {
            continue;
        };
        for one in stats {
            match one {
                TcStats2::Basic(basic) => {
                    counts.bytes = basic.bytes;
                    counts.seen = basic.packets.into();
                }
                TcStats2::Queue(queue) => counts.dropped = queue.drops.into(),
                _ => {}
            }
        }
    }
    counts
}

/// Asks the kernel until it has counted as is expected.
async fn await_counts(
    network: &HostNetwork,
    tap: &TapRecord,
    expected: impl Fn(&Counts) -> bool,
) -> Result<(), Counts> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let found = counts(network, tap).await;
        if expected(&found) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(found);
        }
    }
}

/// A tap that its VMM has open.
async fn plugged(network: &HostNetwork) -> (TapRecord, File) {
    let tap = made(network, 4).await;
    let queue = open_tap(&tap.name).unwrap();
    (tap, queue.into())
}

/// Never to be written to in parts: a write is a frame.
fn send(mut queue: &File, header: &[u8], frame: &[u8]) {
    let bytes = [header, frame].concat();
    assert_eq!(queue.write(&bytes).unwrap(), bytes.len());
}

/// A datagram over UDP, without its optional checksum (RFC 768).
fn datagram(tap: &TapRecord, from: Ipv4Addr, port: u16, text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + text.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(from.octets());
    ip.extend(tap.addresses.host.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from(sum).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = tap.host.unwrap().as_bytes().to_vec();
    frame.extend(tap.guest.as_bytes());
    frame.extend(IPV4.to_be_bytes());
    frame.extend(ip);
    frame.extend(9_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((length - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(text);
    frame
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 8, ..ProptestConfig::default() })]

    #[test]
    fn of_a_guests_frames_its_own_pass_and_of_a_fenced_one_none(
        frames in prop::collection::vec(frames(), 1..60),
    ) {
        in_own_network(|network| async move {
            let (tap, queue) = plugged(&network).await;
            let (mut seen, mut dropped) = (0, 0);
            for is_open in [false, true, false] {
                if is_open {
                    network.lift_fence(&tap).await.unwrap();
                } else {
                    network.fence(&tap).await.unwrap();
                }
                for frame in &frames {
                    send(&queue, &PLAIN, &frame.bytes(&tap));
                    seen += 1;
                    dropped += u64::from(!is_open || !frame.is_own());
                    // A drop that is counted too late is told by the next frame.
                    let expected = |counts: &Counts| (counts.seen, counts.dropped) == (seen, dropped);
                    let counted = await_counts(&network, &tap, expected).await;
                    assert_eq!(counted, Ok(()), "not {seen}, {dropped}: {frame:?}, open: {is_open}");
                }
            }
        });
    }
}

#[test]
fn a_guests_own_datagram_arrives_and_a_spoofed_one_does_not() {
    in_own_network(|network| async move {
        let (tap, queue) = plugged(&network).await;
        network.lift_fence(&tap).await.unwrap();
        let AddressPair { host, guest } = tap.addresses;
        let socket = UdpSocket::bind((host, 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let port = socket.local_addr().unwrap().port();
        let another = Ipv4Addr::from_bits(guest.to_bits() + 2);
        send(&queue, &PLAIN, &datagram(&tap, another, port, b"spoofed"));
        send(&queue, &PLAIN, &datagram(&tap, guest, port, b"own"));
        let mut text = [0; 16];
        let (length, from) = socket.recv_from(&mut text).unwrap();
        assert_eq!((&text[..length], from.ip()), (&b"own"[..], guest.into()));
        // What was on its way when the fence came down again is not kept.
        network.fence(&tap).await.unwrap();
        send(&queue, &PLAIN, &datagram(&tap, guest, port, b"late"));
        let fenced = |counts: &Counts| counts.dropped == 2;
        assert_eq!(await_counts(&network, &tap, fenced).await, Ok(()));
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv_from(&mut text).is_err());
    });
}

#[test]
fn a_frame_that_is_still_to_be_segmented_is_treated_as_its_segments_are() {
    // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4: 54 bytes of headers,
    // segments of 1448 bytes, the checksum 16 bytes into TCP's header.
    let mut header = vec![1, 1];
    for number in [54_u16, 1448, 34, 16] {
        header.extend(number.to_ne_bytes());
    }
    in_own_network(|network| async move {
        let (tap, queue) = plugged(&network).await;
        let segments = |address: Ipv4Addr| {
            let mut frame = datagram(&tap, address, 9, &[0; 40_000]);
            // Of TCP: the protocol, and how long its header is.
            frame[23] = 6;
            frame[46] = 5 << 4;
            frame
        };
        let guest = tap.addresses.guest;
        let another = Ipv4Addr::from_bits(guest.to_bits() ^ 1 << 16);
        let mut expected = Counts::default();
        for (is_open, address, passes) in [
            (false, guest, false),
            (true, guest, true),
            (true, another, false),
        ] {
            if is_open {
                network.lift_fence(&tap).await.unwrap();
            }
            let frame = segments(address);
            send(&queue, &header, &frame);
            // Ethernet's header is taken off before.
            expected.bytes += u64::try_from(frame.len() - 14).unwrap();
            expected.dropped += u64::from(!passes);
            // How many segments it is to be is not known there yet.
            let counted = |counts: &Counts| {
                (counts.bytes, counts.dropped) == (expected.bytes, expected.dropped)
            };
            let counted = await_counts(&network, &tap, counted).await;
            assert_eq!(counted, Ok(()), "not {expected:?}");
        }
    });
}
