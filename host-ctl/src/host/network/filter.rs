//! What of a guest's frames gets past its tap: two filters at the tap's entry
//! into the host, tc(8)'s `ingress`, asked in this order.
//!
//! | priority | there | a frame |
//! |---|---|---|
//! | [`PASS`] | while the fence is lifted | passes if it bears the guest's own addresses |
//! | [`DROP`] | from before the tap is up | is dropped |
//!
//! So each step is one change that the kernel makes as a whole, and there is
//! no moment at which the tap is up and unfiltered.
//!
//! Why this way. A fence that is a link which is down fails the guest's first
//! frame with EIO, at which Cloud Hypervisor gives the interface up for good.
//! XDP has every segmented (TSO) frame copied into one piece first, and tc's
//! `flower` looks for addresses inside of tunnels, where a guest may write what
//! it likes. A program of classic BPF looks at fixed places only, goes by
//! netlink like the rest, and needs no more than `CAP_NET_ADMIN`, `sch_ingress`
//! and `cls_bpf`, which the kernel loads by itself.

use super::{HardwareAddress, HostNetwork, NetworkError, TapRecord};
use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
    TcOption,
};
use rustix::io::Errno;
use std::net::Ipv4Addr;

/// The filter that passes a guest's own frames.
const PASS: u16 = 1;
/// The filter that drops what comes to it.
const DROP: u16 = 2;

/// Where filters of incoming frames hang (linux/pkt_sched.h).
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: TcHandle::MIN_INGRESS,
};
/// Our only filter of a priority.
const ONLY: TcHandle = TcHandle { major: 0, minor: 1 };
/// `ETH_P_ALL`, linux/if_ether.h.
const EVERY_PROTOCOL: u16 = 3;
/// `TCA_BPF_OPS_LEN` and `TCA_BPF_OPS`, linux/pkt_cls.h: how many instructions,
/// and they.
const INSTRUCTION_COUNT: u16 = 4;
const INSTRUCTIONS: u16 = 5;

/// `TC_ACT_SHOT`, linux/pkt_cls.h: what a program that decides by itself
/// ("direct action") says for a frame that is to be dropped.
const SHOT: u32 = 2;
/// What a program that does not decide says: its filter takes the frame, which
/// passes for lack of an action; or leaves it to the next one. The kernel says
/// the latter for a program that looks behind the end of a frame.
const TAKE: u32 = u32::MAX;
const LEAVE: u32 = 0;

/// An instruction, `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    number: u32,
}

/// `BPF_RET | BPF_K`: the end of a program.
const RETURN: u16 = 0x06;
/// `BPF_JMP | BPF_JEQ | BPF_K`: compares what was loaded.
const JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_LD | BPF_ABS` with `BPF_W` or `BPF_H`: four bytes, two bytes.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;

/// What a frame has at a place.
type Mark = (u16, u32, u32);

/// Four bytes at an offset.
const fn word(at: u32, value: u32) -> Mark {
    (LOAD_WORD, at, value)
}

/// Two bytes at an offset.
const fn half(at: u32, value: u16) -> Mark {
    (LOAD_HALF, at, value as u32)
}

/// `SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT`, linux/filter.h: whether the frame had
/// an 802.1Q tag, which the kernel takes out before it asks.
const VLAN_TAGGED: u32 = (-0x1000_i32 + 48).cast_unsigned();

/// The program of [`PASS`]. Ethernet's header is 14 bytes: to, from, type. IPv4
/// has its source 12 bytes behind it (RFC 791), ARP its sender's two addresses
/// 8 and 14 bytes (RFC 826).
fn own_frames(guest: HardwareAddress, address: Ipv4Addr) -> Vec<Instruction> {
    let [a, b, c, d, e, f] = *guest.as_bytes();
    let start = u32::from_be_bytes([a, b, c, d]);
    let end = u16::from_be_bytes([e, f]);
    let address = address.to_bits();
    let ipv4 = [
        word(VLAN_TAGGED, 0),
        word(6, start),
        half(10, end),
        half(12, 0x0800),
        word(26, address),
    ];
    let arp = [
        word(VLAN_TAGGED, 0),
        word(6, start),
        half(10, end),
        half(12, 0x0806),
        // Of Ethernet and IPv4, whose addresses have 6 and 4 bytes.
        word(14, 0x0001_0800),
        half(18, 0x0604),
        word(22, start),
        half(26, end),
        word(28, address),
    ];
    any_of(&[&ipv4, &arp])
}

/// The program of [`DROP`].
fn every_frame() -> Vec<Instruction> {
    vec![end(SHOT)]
}

/// A program that takes the frames which have all marks of one of the kinds.
fn any_of(kinds: &[&[Mark]]) -> Vec<Instruction> {
    let mut program = Vec::new();
    for marks in kinds {
        // From the last one on: behind it there is one instruction of its kind
        // left, behind each one before it two more.
        let behind = (1..=u8::MAX).step_by(2);
        let pairs = marks.iter().rev().zip(behind).map(|(mark, behind)| {
            let (code, at, value) = *mark;
            [
                Instruction {
                    code,
                    if_true: 0,
                    if_false: 0,
                    number: at,
                },
                Instruction {
                    code: JUMP_IF_EQUAL,
                    if_true: 0,
                    // On to the next kind.
                    if_false: behind,
                    number: value,
                },
            ]
        });
        let pairs: Vec<_> = pairs.collect();
        program.extend(pairs.into_iter().rev().flatten());
        program.push(end(TAKE));
    }
    program.push(end(LEAVE));
    program
}

fn end(number: u32) -> Instruction {
    Instruction {
        code: RETURN,
        if_true: 0,
        if_false: 0,
        number,
    }
}

/// As the kernel takes it: in its own byte order.
fn encode(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in program {
        bytes.extend(one.code.to_ne_bytes());
        bytes.extend([one.if_true, one.if_false]);
        bytes.extend(one.number.to_ne_bytes());
    }
    bytes
}

impl HostNetwork {
    /// Makes sure that a tap drops what no other filter takes.
    pub(super) async fn drop_frames(
        &self,
        tap: &TapRecord,
        index: u32,
    ) -> Result<(), NetworkError> {
        let mut hooks = self.handle.qdisc();
        let hook = hooks.add(index.cast_signed()).ingress().execute();
        match self.ask("add ingress to", &tap.name, hook).await {
            Err(error) if error.refusal() == Some(Errno::EXIST.raw_os_error()) => {}
            Err(error) => {
                let module = "sch_ingress (CONFIG_NET_SCH_INGRESS)";
                return Err(lacking(error, &tap.name, module));
            }
            Ok(()) => {}
        }
        let program = every_frame();
        let set = self.set_filter(index, DROP, &program, TcBpfFlags::DirectAction);
        let set = self.ask("set the drop filter of", &tap.name, set).await;
        set.map_err(|error| lacking(error, &tap.name, "cls_bpf (CONFIG_NET_CLS_BPF)"))
    }

    /// Lets a guest's own frames pass, and no others.
    pub(super) async fn pass_own_frames(
        &self,
        tap: &TapRecord,
        index: u32,
    ) -> Result<(), NetworkError> {
        let program = own_frames(tap.guest, tap.addresses.guest);
        let set = self.set_filter(index, PASS, &program, TcBpfFlags::empty());
        self.ask("set the pass filter of", &tap.name, set).await
    }

    /// Lets no frame pass any more; what is under way in the kernel at this
    /// moment apart.
    pub(super) async fn pass_no_frames(
        &self,
        tap: &TapRecord,
        index: u32,
    ) -> Result<(), NetworkError> {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header = header(index, PASS, TcHandle::UNSPEC);
        let message = RouteNetlinkMessage::DelTrafficFilter(message);
        let remove = self.send(message, 0);
        match self
            .ask("remove the pass filter of", &tap.name, remove)
            .await
        {
            // There is none.
            Err(error) if error.refusal() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
            done => done,
        }
    }

    /// Whether the kernel drops all frames of a tap: ours is the only filter.
    pub(super) async fn drops_all_frames(
        &self,
        tap: &TapRecord,
        index: u32,
    ) -> Result<bool, NetworkError> {
        let mut filters = self.handle.traffic_filter(index.cast_signed());
        let list = filters.get().ingress().execute().try_collect();
        let list: Vec<TcMessage> = self.ask("list the filters of", &tap.name, list).await?;
        let only = list
            .iter()
            .all(|one| one.header.info >> 16 == u32::from(DROP));
        Ok(only && list.iter().any(is_drop_filter))
    }

    /// Adds or replaces, as a whole, our filter of a priority.
    async fn set_filter(
        &self,
        index: u32,
        priority: u16,
        program: &[Instruction],
        flags: TcBpfFlags,
    ) -> Result<(), rtnetlink::Error> {
        let count = u16::try_from(program.len()).unwrap_or(u16::MAX);
        let count = DefaultNla::new(INSTRUCTION_COUNT, count.to_ne_bytes().to_vec());
        let options = [
            TcFilterBpfOption::Other(count),
            TcFilterBpfOption::Other(DefaultNla::new(INSTRUCTIONS, encode(program))),
            TcFilterBpfOption::Flags(flags),
        ];
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header = header(index, priority, ONLY);
        message.attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).to_vec()),
        ];
        let message = RouteNetlinkMessage::NewTrafficFilter(message);
        self.send(message, NLM_F_CREATE).await
    }

    /// Awaits the kernel's answer to a request that only says done or refused.
    pub(super) async fn send(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), rtnetlink::Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

fn header(index: u32, priority: u16, handle: TcHandle) -> TcHeader {
    TcHeader {
        index: index.cast_signed(),
        handle,
        parent: INGRESS,
        info: u32::from(priority) << 16 | u32::from(EVERY_PROTOCOL.to_be()),
        ..TcHeader::default()
    }
}

fn is_drop_filter(filter: &TcMessage) -> bool {
    let wanted = DefaultNla::new(INSTRUCTIONS, encode(&every_frame()));
    let wanted = [
        TcOption::Bpf(TcFilterBpfOption::Other(wanted)),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ];
    filter.attributes.iter().any(|attribute| match attribute {
        TcAttribute::Options(options) => wanted.iter().all(|one| options.contains(one)),
        _ => false,
    })
}

/// The kernel's word for what it neither has nor finds a module of: ENOENT of a
/// kind, and EOPNOTSUPP without traffic control.
fn lacking(error: NetworkError, link: &str, module: &'static str) -> NetworkError {
    const WORDS: [i32; 2] = [Errno::NOENT.raw_os_error(), Errno::OPNOTSUPP.raw_os_error()];
    match error {
        NetworkError::Netlink { source, .. }
            if source
                .raw_os_error()
                .is_some_and(|word| WORDS.contains(&word)) =>
        {
            NetworkError::Unsupported {
                link: link.to_owned(),
                module,
                source,
            }
        }
        other => other,
    }
}
