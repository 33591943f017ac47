//! Messages of rtnetlink(7) as they are sent and received: a fixed header, then
//! attributes. The headers' layout is netlink-packet-route's; of the attributes
//! the few that are asked for are looked up where they are used. Its own types
//! for whole messages know every kind of link and tunnel, which nobody here
//! asks for, and took an eighth of the agent.

use super::NetworkError;
use futures::StreamExt;
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE,
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};
use netlink_proto::ConnectionHandle;
use netlink_proto::sys::{SocketAddr, protocols::NETLINK_ROUTE};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A message of whatever type.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// `RTM_*`, linux/rtnetlink.h.
    kind: u16,
    /// The fixed header and the attributes.
    body: Vec<u8>,
}

impl Message {
    /// A message of a type, with the header that belongs to it.
    pub(super) fn new(kind: u16, header: &impl Emitable) -> Self {
        let mut message = Self {
            kind,
            body: Vec::new(),
        };
        message.append(header);
        message
    }

    /// With one attribute more.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.append(&DefaultNla::new(kind, value.to_vec()));
        self
    }

    /// The same content in a message of another type: a listed object, to be
    /// removed.
    pub(super) fn with_kind(self, kind: u16) -> Self {
        Self { kind, ..self }
    }

    fn append(&mut self, part: &impl Emitable) {
        let end = self.body.len();
        self.body.resize(end + part.buffer_len(), 0);
        part.emit(&mut self.body[end..]);
    }

    /// Takes it apart: the header, and each attribute with its type. `parse`
    /// reads a header that is as long as an emitted one. A damaged message, or
    /// the damaged end of one, is as if it had not been sent.
    pub(super) fn parts<H: Emitable>(
        &self,
        parse: impl FnOnce(&[u8]) -> Result<H, DecodeError>,
    ) -> Option<(H, impl Iterator<Item = (u16, &[u8])>)> {
        let header = parse(&self.body).ok()?;
        let attributes = self.body.get(header.buffer_len()..)?;
        Some((header, attributes_of(attributes)))
    }
}

/// Each attribute with its type.
pub(super) fn attributes_of(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let attributes = NlasIterator::new(bytes).map_while(Result::ok);
    attributes.map(|attribute| {
        let bytes: &[u8] = attribute.into_inner();
        let attribute = netlink_packet_core::NlaBuffer::new(bytes);
        (
            attribute.kind(),
            &bytes[HEADER..HEADER + attribute.value_length()],
        )
    })
}

/// The bytes of an attribute's own header.
const HEADER: usize = netlink_packet_core::NLA_HEADER_SIZE;

/// A number as the kernel has it.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// An address of either family.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes)
            .ok()
            .map(|bytes| Ipv4Addr::from(bytes).into()),
        _ => <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|bytes| Ipv6Addr::from(bytes).into()),
    }
}

/// An address as an attribute has it.
pub(super) fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self {
            kind: header.message_type,
            body: payload.to_vec(),
        })
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}

/// A way to the kernel. Clones share one socket.
#[derive(Debug, Clone)]
pub(super) struct Kernel(ConnectionHandle<Message>);

impl Kernel {
    /// Opens the socket. To be called in a tokio runtime.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _messages) =
            netlink_proto::new_connection(NETLINK_ROUTE).map_err(NetworkError::Open)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Has something changed.
    pub(super) async fn change(&self, message: Message) -> Result<(), io::Error> {
        self.request(message, NLM_F_ACK).await.map(drop)
    }

    /// Has something put in the place of its equal, or added if there is none.
    pub(super) async fn replace(&self, message: Message) -> Result<(), io::Error> {
        let flags = NLM_F_ACK | NLM_F_REPLACE | NLM_F_CREATE;
        self.request(message, flags).await.map(drop)
    }

    /// Has all of something listed.
    pub(super) async fn list(&self, message: Message) -> Result<Vec<Message>, io::Error> {
        self.request(message, NLM_F_DUMP).await
    }

    async fn request(&self, message: Message, flags: u16) -> Result<Vec<Message>, io::Error> {
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | flags;
        // Port 0 is the kernel, netlink(7).
        let kernel = SocketAddr::new(0, 0);
        let mut replies = self.0.request(packet, kernel).map_err(io::Error::other)?;
        let mut messages = Vec::new();
        while let Some(reply) = replies.next().await {
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Error(refusal) => return Err(refusal.to_io()),
                _ => {}
            }
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::LinkHeader;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn attributes_come_back_in_order(
            index: u32,
            attributes in prop::collection::vec((1_u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
        ) {
            let header = LinkHeader { index, ..LinkHeader::default() };
            let message = attributes
                .iter()
                .fold(Message::new(16, &header), |message, (kind, value)| message.with(*kind, value));
            let mut sent = vec![0; message.buffer_len()];
            message.serialize(&mut sent);
            let header = NetlinkHeader::default();
            let Ok(received) = Message::deserialize(&header, &sent);
            let (header, found) = received.parts(LinkHeader::parse).unwrap();
            prop_assert_eq!(header.index, index);
            let found: Vec<_> = found.map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(found, attributes);
        }

        #[test]
        fn a_damaged_message_is_taken_apart_as_far_as_it_goes(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind: 16, body };
            if let Some((_, attributes)) = message.parts(LinkHeader::parse) {
                for (_, value) in attributes {
                    let _ = (number(value), address(value));
                    prop_assert!(value.len() < 200);
                }
            }
        }

        #[test]
        fn an_address_survives_its_bytes(given: IpAddr) {
            prop_assert_eq!(address(&bytes_of(given)), Some(given));
        }
    }
}
