//! `tardigrade.v1.Lifecycle`, and with it the phases of the gate: between
//! Quiesce and the end of Thaw it lets nothing pass but Health,
//! GetGuestDetails and Thaw.

use super::Handlers;
use super::convert;
use crate::service::lifecycle::{Quiesce, Release, Thaw};
use crate::service::streams::ExecStream;
use async_trait::async_trait;
use protocols::wire::{lifecycle, lifecycle_ttrpc};
use ttrpc::r#async::TtrpcContext;

#[async_trait]
impl lifecycle_ttrpc::Lifecycle for Handlers {
    async fn quiesce(
        &self,
        _context: &TtrpcContext,
        request: lifecycle::QuiesceRequest,
    ) -> ttrpc::Result<lifecycle::QuiesceResponse> {
        let request = self.gate.authorize(request)?;
        // The gate is shut before the freeze begins, and opened by whoever
        // drops the guard: a failed freeze, or the thaw.
        let seal = self.gate.quiesce(&request)?;
        let request = request.convert::<Quiesce>()?;
        let quiesced = self.agent.quiesce(request, Box::new(seal)).await?;
        Ok(convert::lifecycle::quiesced_to_wire(&quiesced))
    }

    async fn thaw(
        &self,
        _context: &TtrpcContext,
        request: lifecycle::ThawRequest,
    ) -> ttrpc::Result<lifecycle::ThawResponse> {
        let request = self.gate.authorize(request)?.convert::<Thaw>()?;
        let receipt = self.agent.thaw(request).await?;
        Ok(convert::lifecycle::receipt_to_wire(&receipt))
    }

    async fn release(
        &self,
        _context: &TtrpcContext,
        request: lifecycle::ReleaseRequest,
    ) -> ttrpc::Result<lifecycle::ReleaseResponse> {
        let request = self.gate.authorize(request)?.convert::<Release>()?;
        let released = self.agent.release(request).await?;
        Ok(convert::lifecycle::released_to_wire(&released))
    }

    async fn exec(
        &self,
        _context: &TtrpcContext,
        request: lifecycle::ExecRequest,
    ) -> ttrpc::Result<lifecycle::StreamToken> {
        let request = self.gate.authorize(request)?.convert::<ExecStream>()?;
        let (token, exec) = self.agent.exec_stream(request).await?;
        let mut reply = lifecycle::StreamToken::new();
        reply.token = token.to_vec();
        reply.exec_id = exec.to_string();
        Ok(reply)
    }
}
