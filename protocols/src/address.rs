//! Where an agent is reached (host side) and where it listens (guest side).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Why a string is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The part before `://` is none of the known ones.
    #[error("address {address:?}: unknown scheme")]
    Scheme {
        /// What was given.
        address: String,
    },
    /// A number is missing, malformed or out of range.
    #[error("address {address:?}: expected {expected}")]
    Form {
        /// What was given.
        address: String,
        /// The form that this scheme has.
        expected: &'static str,
    },
}

/// The address of an agent as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AgentAddress {
    /// AF_VSOCK (vsock(7)): `vsock://CID:PORT`.
    Vsock {
        /// Context id of the VM, 3 or above.
        cid: u32,
        /// The port where the agent answers RPCs; usually [`crate::port::RPC`].
        port: u32,
    },
    /// The Unix socket by which Cloud Hypervisor and Firecracker reach a
    /// guest's vsock ports: `hvsock://SOCKET:PORT`.
    HybridVsock {
        /// The socket that the VMM listens at.
        socket: PathBuf,
        /// The port where the agent answers RPCs; usually [`crate::port::RPC`].
        port: u32,
    },
    /// The Unix socket of the chardev behind a virtio-serial port:
    /// `serial://SOCKET`.
    Serial {
        /// The socket that the VMM listens at.
        socket: PathBuf,
    },
    /// A Unix socket that speaks the words of hybrid vsock: `unix://PATH`, or
    /// `unix://@NAME` in the abstract namespace (unix(7)).
    Unix {
        /// Path, or `@` and the abstract name.
        path: PathBuf,
    },
}

/// The address an agent listens at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GuestAddress {
    /// AF_VSOCK on any CID of this guest: `vsock://-1:PORT`.
    Vsock {
        /// The port where RPCs are answered; usually [`crate::port::RPC`].
        port: u32,
    },
    /// The virtio-serial port of that name: `serial://NAME`.
    Serial {
        /// The name the VMM gave the port.
        port_name: String,
    },
    /// A Unix socket, for an agent outside a VM: `unix://PATH` or
    /// `unix://@NAME`.
    Unix {
        /// Path, or `@` and the abstract name.
        path: PathBuf,
    },
}

/// `text` cut at its last colon, the part behind it being a number.
fn split_port(text: &str) -> Option<(&str, u32)> {
    let (before, port) = text.rsplit_once(':')?;
    (!before.is_empty()).then_some(())?;
    Some((before, parse_number(port)?))
}

/// A decimal u32 without sign or padding: one number has one form.
fn parse_number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn split_scheme(address: &str) -> Result<(&str, &str), AddressError> {
    address
        .split_once("://")
        .ok_or_else(|| AddressError::Scheme {
            address: address.to_owned(),
        })
}

fn malformed(address: &str, expected: &'static str) -> AddressError {
    AddressError::Form {
        address: address.to_owned(),
        expected,
    }
}

impl FromStr for AgentAddress {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = split_scheme(address)?;
        match scheme {
            "vsock" => split_port(rest)
                .and_then(|(cid, port)| Some((parse_number(cid)?, port)))
                .map(|(cid, port)| Self::Vsock { cid, port })
                .ok_or_else(|| malformed(address, "vsock://CID:PORT")),
            "hvsock" => split_port(rest)
                .map(|(socket, port)| Self::HybridVsock {
                    socket: socket.into(),
                    port,
                })
                .ok_or_else(|| malformed(address, "hvsock://SOCKET:PORT")),
            "serial" if rest.is_empty() => Err(malformed(address, "serial://SOCKET")),
            "serial" => Ok(Self::Serial {
                socket: rest.into(),
            }),
            "unix" if rest.is_empty() || rest == "@" => {
                Err(malformed(address, "unix://PATH or unix://@NAME"))
            }
            "unix" => Ok(Self::Unix { path: rest.into() }),
            _ => Err(AddressError::Scheme {
                address: address.to_owned(),
            }),
        }
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::HybridVsock { socket, port } => {
                write!(f, "hvsock://{}:{port}", socket.display())
            }
            Self::Serial { socket } => write!(f, "serial://{}", socket.display()),
            Self::Unix { path } => write!(f, "unix://{}", path.display()),
        }
    }
}

impl FromStr for GuestAddress {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = split_scheme(address)?;
        match scheme {
            "vsock" => split_port(rest)
                .filter(|(cid, _)| *cid == "-1")
                .map(|(_, port)| Self::Vsock { port })
                .ok_or_else(|| malformed(address, "vsock://-1:PORT")),
            "serial" if rest.is_empty() => Err(malformed(address, "serial://NAME")),
            "serial" => Ok(Self::Serial {
                port_name: rest.to_owned(),
            }),
            "unix" if rest.is_empty() || rest == "@" => {
                Err(malformed(address, "unix://PATH or unix://@NAME"))
            }
            "unix" => Ok(Self::Unix { path: rest.into() }),
            _ => Err(AddressError::Scheme {
                address: address.to_owned(),
            }),
        }
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { port } => write!(f, "vsock://-1:{port}"),
            Self::Serial { port_name } => write!(f, "serial://{port_name}"),
            Self::Unix { path } => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AgentAddress, GuestAddress};
    use proptest::prelude::*;

    #[test]
    fn each_scheme_of_the_host_is_read() {
        assert_eq!(
            "hvsock:///run/a:b/vsock.sock:1024".parse(),
            Ok(AgentAddress::HybridVsock {
                socket: "/run/a:b/vsock.sock".into(),
                port: 1024
            })
        );
        assert_eq!(
            "serial:///run/serial.sock".parse(),
            Ok(AgentAddress::Serial {
                socket: "/run/serial.sock".into()
            })
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "vsock://",
            "vsock://3",
            "vsock://-1:1024",
            "vsock://3:01024",
            "vsock://3:+1",
            "vsock://3:4294967296",
            "hvsock://:1",
            "serial://",
            "unix://",
            "unix://@",
            "tcp://x:1",
            "/run/x",
        ] {
            assert!(text.parse::<AgentAddress>().is_err(), "{text}");
        }
        for text in [
            "vsock://2:1024",
            "vsock://-1:",
            "serial://",
            "hvsock:///x:1",
        ] {
            assert!(text.parse::<GuestAddress>().is_err(), "{text}");
        }
    }

    fn agent_addresses() -> impl Strategy<Value = AgentAddress> {
        let path = "[a-z/.:@]{1,20}x";
        prop_oneof![
            (any::<u32>(), any::<u32>()).prop_map(|(cid, port)| AgentAddress::Vsock { cid, port }),
            (path, any::<u32>()).prop_map(|(socket, port)| AgentAddress::HybridVsock {
                socket: socket.into(),
                port
            }),
            path.prop_map(|socket| AgentAddress::Serial {
                socket: socket.into()
            }),
            path.prop_map(|path| AgentAddress::Unix { path: path.into() }),
        ]
    }

    proptest! {
        #[test]
        fn an_agent_address_reads_back_as_written(address in agent_addresses()) {
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn a_guest_address_reads_back_as_written(port: u32, name in "[a-z.0-9]{1,20}") {
            for address in [
                GuestAddress::Vsock { port },
                GuestAddress::Serial { port_name: name.clone() },
                GuestAddress::Unix { path: format!("@{name}").into() },
            ] {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }

        #[test]
        fn reading_any_text_does_not_panic(text: String) {
            let _ = text.parse::<AgentAddress>();
            let _ = text.parse::<GuestAddress>();
        }
    }
}
