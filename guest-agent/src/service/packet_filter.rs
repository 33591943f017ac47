//! The guest's packet filter, by the programs of the distribution that the
//! guest is made of.

use super::Agent;
use super::error::ServiceError;
use authz::Authorized;
use std::sync::Arc;
use std::time::Duration;

/// How long a program may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long `restore` waits for whoever else changes the tables, in seconds.
const LOCK_WAIT: &str = "5";

const SAVE: [&str; 2] = ["/usr/sbin/iptables-save", "/sbin/iptables-save"];
const SAVE_IPV6: [&str; 2] = ["/usr/sbin/ip6tables-save", "/sbin/ip6tables-save"];
const RESTORE: [&str; 2] = ["/usr/sbin/iptables-restore", "/sbin/iptables-restore"];
const RESTORE_IPV6: [&str; 2] = ["/usr/sbin/ip6tables-restore", "/sbin/ip6tables-restore"];

/// A question for the rules.
#[derive(Debug)]
pub(crate) struct GetPacketFilter {
    pub(crate) is_ipv6: bool,
}

/// Rules to have, as `iptables-save` writes them.
#[derive(Debug)]
pub(crate) struct SetPacketFilter {
    pub(crate) is_ipv6: bool,
    pub(crate) rules: Vec<u8>,
}

impl Agent {
    /// The rules there are.
    pub(crate) async fn packet_filter(
        self: &Arc<Self>,
        request: Authorized<GetPacketFilter>,
    ) -> Result<Vec<u8>, ServiceError> {
        self.require_network("read the packet filter")?;
        self.lifecycle.require_running("read the packet filter")?;
        let programs = if request.get().is_ipv6 {
            SAVE_IPV6
        } else {
            SAVE
        };
        let agent = Arc::clone(self);
        let save = async move {
            agent
                .run_program(&programs, Vec::new(), &[], DEADLINE)
                .await
        };
        self.recipes.run(save).await
    }

    /// Puts other rules in their place; what the program says of it.
    pub(crate) async fn set_packet_filter(
        self: &Arc<Self>,
        request: Authorized<SetPacketFilter>,
    ) -> Result<Vec<u8>, ServiceError> {
        self.require_network("change the packet filter")?;
        self.lifecycle.require_running("change the packet filter")?;
        let SetPacketFilter { is_ipv6, rules } = request.into_inner();
        let programs = if is_ipv6 { RESTORE_IPV6 } else { RESTORE };
        let arguments = ["--wait", LOCK_WAIT].map(String::from).into();
        let agent = Arc::clone(self);
        let restore = async move {
            let said = agent.run_program(&programs, arguments, &rules, DEADLINE);
            said.await
        };
        self.recipes.run(restore).await
    }
}
