# Allows every request. Unlike the built-in allow-all it can be replaced by an
# edited copy of itself: take out a line and that request is denied.
package agent_policy

# The Kata agent API, grpc.AgentService.
default CreateContainerRequest := true
default StartContainerRequest := true
default RemoveContainerRequest := true
default ExecProcessRequest := true
default SignalProcessRequest := true
default WaitProcessRequest := true
default UpdateContainerRequest := true
default UpdateEphemeralMountsRequest := true
default StatsContainerRequest := true
default PauseContainerRequest := true
default ResumeContainerRequest := true
default RemoveStaleVirtiofsShareMountsRequest := true
default GetDiagnosticDataRequest := true
default WriteStreamRequest := true
default ReadStreamRequest := true
default CloseStdinRequest := true
default TtyWinResizeRequest := true
default UpdateInterfaceRequest := true
default UpdateRoutesRequest := true
default ListInterfacesRequest := true
default ListRoutesRequest := true
default AddARPNeighborsRequest := true
default GetIPTablesRequest := true
default SetIPTablesRequest := true
default GetMetricsRequest := true
default MemAgentMemcgConfig := true
default MemAgentCompactConfig := true
default CreateSandboxRequest := true
default DestroySandboxRequest := true
default OnlineCPUMemRequest := true
default ReseedRandomDevRequest := true
default GuestDetailsRequest := true
default MemHotplugByProbeRequest := true
default SetGuestDateTimeRequest := true
default CopyFileRequest := true
default GetOOMEventRequest := true
default AddSwapRequest := true
default AddSwapPathRequest := true
default VolumeStatsRequest := true
default ResizeVolumeRequest := true
default SetPolicyRequest := true

# tardigrade.v1.Lifecycle.
default QuiesceRequest := true
default ThawRequest := true
default ReleaseRequest := true
default ExecRequest := true
default CopyRequest := true
default ForwardRequest := true
default LogsRequest := true
default EventsRequest := true
