//! The agent's own filter, in front of a container's profile: no process of a
//! container makes a socket of the transport, by which the agent and the host
//! are reached, unless its spec says that it may.
//!
//! Three ways lead to one. socket(2) is refused for the family, as a kernel
//! without it would. socketcall(2), by which 32-bit programs of old C libraries
//! make every socket, has its arguments where no filter sees them: it is
//! refused for socket(2) as a whole, and those libraries that know the call of
//! its own use that. A ring of io_uring(7) makes sockets that no filter is asked
//! about: there is none, as under the profiles that container engines have.

use super::table::is_known;
use super::{
    ArgumentOperator, ArgumentTest, SeccompAction, SeccompArchitecture, SeccompFlag,
    SeccompProfile, SeccompRule,
};

/// `AF_VSOCK`, socket(2).
const FAMILY: u64 = 40;
/// `SYS_SOCKET`, socketcall(2).
const SOCKET: u64 = 1;
/// `EAFNOSUPPORT`, what a kernel without the family says.
const NO_FAMILY: SeccompAction = SeccompAction::Errno(97);
/// `ENOSYS`, what a kernel without the call says.
const NO_CALL: SeccompAction = SeccompAction::Errno(38);

/// The filter as a profile. Every program of the machine's family may run: it
/// is for the container's own profile to say which may not.
pub(in crate::container) fn refuse_vsock() -> SeccompProfile {
    let rule = |name: &str, action, first: Option<u64>| SeccompRule {
        names: vec![name.to_owned()],
        action,
        tests: first
            .into_iter()
            .map(|value| ArgumentTest {
                index: 0,
                operator: ArgumentOperator::MaskedEqual,
                // The kernel takes an int, whatever lies above it.
                value: u32::MAX.into(),
                masked: value,
            })
            .collect(),
    };
    let mut rules = vec![
        rule("socket", NO_FAMILY, Some(FAMILY)),
        rule("io_uring_setup", NO_CALL, None),
    ];
    // Of a call that no program here can make nobody knows the number.
    if is_known("socketcall") {
        rules.push(rule("socketcall", NO_CALL, Some(SOCKET)));
    }
    SeccompProfile {
        default_action: SeccompAction::Allow,
        architectures: vec![
            SeccompArchitecture::X86,
            SeccompArchitecture::X32,
            SeccompArchitecture::Arm,
        ],
        // It looks at no secrets: programs need not become slower for it.
        flags: vec![SeccompFlag::SpeculationAllowed],
        rules,
    }
}
