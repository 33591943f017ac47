//! `grpc.AgentService`. A method that is not here is not in the server's table
//! either ([`super::AGENT_METHODS`]).

use super::Handlers;
use super::convert;
use crate::service::container::{CreateContainer, RemoveContainer, StartContainer};
use crate::service::control::{PauseContainer, ResumeContainer, StatsContainer, UpdateContainer};
use crate::service::diagnostics::{GetMetrics, GetTerminationLog, GetVolumeStats};
use crate::service::files::CopyFile;
use crate::service::hotplug::{AddSwap, AddSwapDevice, OnlineResources, ProbeMemory};
use crate::service::machine::{
    CreateSandbox, DestroySandbox, GetGuestDetails, ReseedRandomDevice, SetGuestDateTime,
};
use crate::service::memory_agent::{SetMemoryCompaction, SetMemoryReclaim};
use crate::service::mounts::{RemoveStaleMounts, UpdateEphemeralMounts};
use crate::service::network::{
    AddNeighbors, ListInterfaces, ListRoutes, UpdateInterface, UpdateRoutes,
};
use crate::service::oom::GetOomEvent;
use crate::service::packet_filter::{GetPacketFilter, SetPacketFilter};
use crate::service::process::{
    CloseStdin, ExecProcess, Output, ReadStream, ResizeTerminal, SignalProcess, WaitProcess,
    WriteStdin,
};
use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use protocols::wire::{agent, agent_ttrpc, types};
use ttrpc::r#async::TtrpcContext;

#[async_trait]
impl agent_ttrpc::AgentService for Handlers {
    async fn create_container(
        &self,
        _context: &TtrpcContext,
        request: agent::CreateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<CreateContainer>()?;
        self.agent.create_container(request).await?;
        Ok(Empty::new())
    }

    async fn start_container(
        &self,
        _context: &TtrpcContext,
        request: agent::StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<StartContainer>()?;
        self.agent.start_container(request).await?;
        Ok(Empty::new())
    }

    async fn remove_container(
        &self,
        _context: &TtrpcContext,
        request: agent::RemoveContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<RemoveContainer>()?;
        self.agent.remove_container(request).await?;
        Ok(Empty::new())
    }

    async fn exec_process(
        &self,
        _context: &TtrpcContext,
        request: agent::ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<ExecProcess>()?;
        self.agent.exec_process(request).await?;
        Ok(Empty::new())
    }

    async fn signal_process(
        &self,
        _context: &TtrpcContext,
        request: agent::SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<SignalProcess>()?;
        self.agent.signal_process(request).await?;
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _context: &TtrpcContext,
        request: agent::WaitProcessRequest,
    ) -> ttrpc::Result<agent::WaitProcessResponse> {
        let request = self.gate.authorize(request)?.convert::<WaitProcess>()?;
        let status = self.agent.wait_process(request).await?;
        let mut reply = agent::WaitProcessResponse::new();
        reply.status = status.code();
        Ok(reply)
    }

    async fn update_container(
        &self,
        _context: &TtrpcContext,
        request: agent::UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<UpdateContainer>()?;
        self.agent.update_container(request).await?;
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _context: &TtrpcContext,
        request: agent::StatsContainerRequest,
    ) -> ttrpc::Result<agent::StatsContainerResponse> {
        let request = self.gate.authorize(request)?.convert::<StatsContainer>()?;
        let stats = self.agent.container_stats(request).await?;
        Ok(convert::control::stats_to_wire(stats))
    }

    async fn pause_container(
        &self,
        _context: &TtrpcContext,
        request: agent::PauseContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<PauseContainer>()?;
        self.agent.pause_container(request).await?;
        Ok(Empty::new())
    }

    async fn resume_container(
        &self,
        _context: &TtrpcContext,
        request: agent::ResumeContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<ResumeContainer>()?;
        self.agent.resume_container(request).await?;
        Ok(Empty::new())
    }

    async fn write_stdin(
        &self,
        _context: &TtrpcContext,
        request: agent::WriteStreamRequest,
    ) -> ttrpc::Result<agent::WriteStreamResponse> {
        let request = self.gate.authorize(request)?.convert::<WriteStdin>()?;
        let written = self.agent.write_stdin(request).await?;
        let mut reply = agent::WriteStreamResponse::new();
        reply.len = u32::try_from(written).unwrap_or(u32::MAX);
        Ok(reply)
    }

    async fn read_stdout(
        &self,
        _context: &TtrpcContext,
        request: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        self.read(request, Output::Stdout).await
    }

    async fn read_stderr(
        &self,
        _context: &TtrpcContext,
        request: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        self.read(request, Output::Stderr).await
    }

    async fn close_stdin(
        &self,
        _context: &TtrpcContext,
        request: agent::CloseStdinRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<CloseStdin>()?;
        self.agent.close_stdin(request)?;
        Ok(Empty::new())
    }

    async fn tty_win_resize(
        &self,
        _context: &TtrpcContext,
        request: agent::TtyWinResizeRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<ResizeTerminal>()?;
        self.agent.resize_terminal(request)?;
        Ok(Empty::new())
    }

    async fn update_interface(
        &self,
        _context: &TtrpcContext,
        request: agent::UpdateInterfaceRequest,
    ) -> ttrpc::Result<types::Interface> {
        // The reply echoes the request, as clients expect.
        let echo = request.interface.clone();
        let request = self.gate.authorize(request)?.convert::<UpdateInterface>()?;
        self.agent.update_interface(request).await?;
        Ok(echo.unwrap_or_default())
    }

    async fn update_routes(
        &self,
        _context: &TtrpcContext,
        request: agent::UpdateRoutesRequest,
    ) -> ttrpc::Result<agent::Routes> {
        let request = self.gate.authorize(request)?.convert::<UpdateRoutes>()?;
        let routes = self.agent.update_routes(request).await?;
        Ok(convert::network::routes_to_wire(routes))
    }

    async fn list_interfaces(
        &self,
        _context: &TtrpcContext,
        request: agent::ListInterfacesRequest,
    ) -> ttrpc::Result<agent::Interfaces> {
        let request = self.gate.authorize(request)?.convert::<ListInterfaces>()?;
        let interfaces = self.agent.list_interfaces(request).await?;
        Ok(convert::network::interfaces_to_wire(interfaces))
    }

    async fn list_routes(
        &self,
        _context: &TtrpcContext,
        request: agent::ListRoutesRequest,
    ) -> ttrpc::Result<agent::Routes> {
        let request = self.gate.authorize(request)?.convert::<ListRoutes>()?;
        let routes = self.agent.list_routes(request).await?;
        Ok(convert::network::routes_to_wire(routes))
    }

    async fn add_arp_neighbors(
        &self,
        _context: &TtrpcContext,
        request: agent::AddARPNeighborsRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<AddNeighbors>()?;
        self.agent.add_neighbors(request).await?;
        Ok(Empty::new())
    }

    async fn create_sandbox(
        &self,
        _context: &TtrpcContext,
        request: agent::CreateSandboxRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<CreateSandbox>()?;
        self.agent.create_sandbox(request).await?;
        Ok(Empty::new())
    }

    async fn destroy_sandbox(
        &self,
        _context: &TtrpcContext,
        request: agent::DestroySandboxRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<DestroySandbox>()?;
        self.agent.destroy_sandbox(request).await?;
        Ok(Empty::new())
    }

    async fn reseed_random_dev(
        &self,
        _context: &TtrpcContext,
        request: agent::ReseedRandomDevRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self
            .gate
            .authorize(request)?
            .convert::<ReseedRandomDevice>()?;
        self.agent.reseed_random_device(request)?;
        Ok(Empty::new())
    }

    async fn get_guest_details(
        &self,
        _context: &TtrpcContext,
        request: agent::GuestDetailsRequest,
    ) -> ttrpc::Result<agent::GuestDetailsResponse> {
        let request = self.gate.authorize(request)?.convert::<GetGuestDetails>()?;
        let details = self.agent.guest_details(request)?;
        Ok(convert::machine::details_to_wire(details))
    }

    async fn set_guest_date_time(
        &self,
        _context: &TtrpcContext,
        request: agent::SetGuestDateTimeRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self
            .gate
            .authorize(request)?
            .convert::<SetGuestDateTime>()?;
        self.agent.set_guest_date_time(request)?;
        Ok(Empty::new())
    }

    async fn copy_file(
        &self,
        _context: &TtrpcContext,
        request: agent::CopyFileRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<CopyFile>()?;
        self.agent.copy_file(request).await?;
        Ok(Empty::new())
    }

    async fn update_ephemeral_mounts(
        &self,
        _context: &TtrpcContext,
        request: agent::UpdateEphemeralMountsRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self
            .gate
            .authorize(request)?
            .convert::<UpdateEphemeralMounts>()?;
        self.agent.update_ephemeral_mounts(request).await?;
        Ok(Empty::new())
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _context: &TtrpcContext,
        request: agent::RemoveStaleVirtiofsShareMountsRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self
            .gate
            .authorize(request)?
            .convert::<RemoveStaleMounts>()?;
        self.agent.remove_stale_mounts(request).await?;
        Ok(Empty::new())
    }

    async fn get_diagnostic_data(
        &self,
        _context: &TtrpcContext,
        request: agent::GetDiagnosticDataRequest,
    ) -> ttrpc::Result<agent::GetDiagnosticDataResponse> {
        let request = self
            .gate
            .authorize(request)?
            .convert::<GetTerminationLog>()?;
        let mut reply = agent::GetDiagnosticDataResponse::new();
        reply.data = self.agent.termination_log(request).await?;
        Ok(reply)
    }

    async fn get_metrics(
        &self,
        _context: &TtrpcContext,
        request: agent::GetMetricsRequest,
    ) -> ttrpc::Result<agent::Metrics> {
        let request = self.gate.authorize(request)?.convert::<GetMetrics>()?;
        let mut reply = agent::Metrics::new();
        reply.metrics = self.agent.metrics(request).await?;
        Ok(reply)
    }

    async fn get_oom_event(
        &self,
        _context: &TtrpcContext,
        request: agent::GetOOMEventRequest,
    ) -> ttrpc::Result<agent::OOMEvent> {
        let request = self.gate.authorize(request)?.convert::<GetOomEvent>()?;
        let mut reply = agent::OOMEvent::new();
        reply.container_id = self.agent.oom_event(request).await?.into();
        Ok(reply)
    }

    async fn get_volume_stats(
        &self,
        _context: &TtrpcContext,
        request: agent::VolumeStatsRequest,
    ) -> ttrpc::Result<agent::VolumeStatsResponse> {
        let request = self.gate.authorize(request)?.convert::<GetVolumeStats>()?;
        let room = self.agent.volume_stats(request).await?;
        Ok(convert::diagnostics::room_to_wire(room))
    }

    async fn online_cpu_mem(
        &self,
        _context: &TtrpcContext,
        request: agent::OnlineCPUMemRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<OnlineResources>()?;
        self.agent.online_resources(request).await?;
        Ok(Empty::new())
    }

    async fn mem_hotplug_by_probe(
        &self,
        _context: &TtrpcContext,
        request: agent::MemHotplugByProbeRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<ProbeMemory>()?;
        self.agent.probe_memory(request).await?;
        Ok(Empty::new())
    }

    async fn add_swap(
        &self,
        _context: &TtrpcContext,
        request: agent::AddSwapRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<AddSwapDevice>()?;
        self.agent.add_swap_device(request).await?;
        Ok(Empty::new())
    }

    async fn add_swap_path(
        &self,
        _context: &TtrpcContext,
        request: agent::AddSwapPathRequest,
    ) -> ttrpc::Result<Empty> {
        let request = self.gate.authorize(request)?.convert::<AddSwap>()?;
        self.agent.add_swap(request).await?;
        Ok(Empty::new())
    }

    async fn get_ip_tables(
        &self,
        _context: &TtrpcContext,
        request: agent::GetIPTablesRequest,
    ) -> ttrpc::Result<agent::GetIPTablesResponse> {
        let request = self.gate.authorize(request)?.convert::<GetPacketFilter>()?;
        let mut reply = agent::GetIPTablesResponse::new();
        reply.data = self.agent.packet_filter(request).await?;
        Ok(reply)
    }

    async fn set_ip_tables(
        &self,
        _context: &TtrpcContext,
        request: agent::SetIPTablesRequest,
    ) -> ttrpc::Result<agent::SetIPTablesResponse> {
        let request = self.gate.authorize(request)?.convert::<SetPacketFilter>()?;
        let mut reply = agent::SetIPTablesResponse::new();
        reply.data = self.agent.set_packet_filter(request).await?;
        Ok(reply)
    }

    async fn mem_agent_memcg_set(
        &self,
        _context: &TtrpcContext,
        request: agent::MemAgentMemcgConfig,
    ) -> ttrpc::Result<Empty> {
        let request = self
            .gate
            .authorize(request)?
            .convert::<SetMemoryReclaim>()?;
        self.agent.set_memory_reclaim(request)?;
        Ok(Empty::new())
    }

    async fn mem_agent_compact_set(
        &self,
        _context: &TtrpcContext,
        request: agent::MemAgentCompactConfig,
    ) -> ttrpc::Result<Empty> {
        let request = self
            .gate
            .authorize(request)?
            .convert::<SetMemoryCompaction>()?;
        self.agent.set_memory_compaction(request)?;
        Ok(Empty::new())
    }

    async fn set_policy(
        &self,
        _context: &TtrpcContext,
        request: agent::SetPolicyRequest,
    ) -> ttrpc::Result<Empty> {
        // The gate judges it and keeps it: there is nothing to convert to.
        self.gate.set_policy(&request)?;
        Ok(Empty::new())
    }
}

impl Handlers {
    async fn read(
        &self,
        request: agent::ReadStreamRequest,
        output: Output,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        let request = self.gate.authorize(request)?.convert::<ReadStream>()?;
        let mut reply = agent::ReadStreamResponse::new();
        reply.data = self.agent.read_stream(request, output).await?;
        Ok(reply)
    }
}
