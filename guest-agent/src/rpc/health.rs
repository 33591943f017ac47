//! `grpc.Health`: the one service that no policy is asked about.

use super::Handlers;
use async_trait::async_trait;
use protocols::wire::agent::health_check_response::ServingStatus;
use protocols::wire::{agent, agent_ttrpc};
use ttrpc::r#async::TtrpcContext;

/// The version of the Kata agent API that is spoken.
const API_VERSION: &str = "0.0.1";

#[async_trait]
impl agent_ttrpc::Health for Handlers {
    async fn check(
        &self,
        _context: &TtrpcContext,
        _request: agent::CheckRequest,
    ) -> ttrpc::Result<agent::HealthCheckResponse> {
        let mut reply = agent::HealthCheckResponse::new();
        // A copy that nobody has thawed answers, and its workload does not run.
        let status = match self.agent.lifecycle.is_stray() {
            true => ServingStatus::NOT_SERVING,
            false => ServingStatus::SERVING,
        };
        reply.status = status.into();
        Ok(reply)
    }

    async fn version(
        &self,
        _context: &TtrpcContext,
        _request: agent::CheckRequest,
    ) -> ttrpc::Result<agent::VersionCheckResponse> {
        let mut reply = agent::VersionCheckResponse::new();
        reply.grpc_version = API_VERSION.into();
        reply.agent_version = env!("CARGO_PKG_VERSION").into();
        Ok(reply)
    }
}
