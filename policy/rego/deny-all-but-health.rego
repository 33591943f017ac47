# Denies every request. What is still answered is Health, which no policy is
# asked about. To open a sandbox by hand: start here, allow line by line.
package agent_policy

# The Kata agent API, grpc.AgentService.
default CreateContainerRequest := false
default StartContainerRequest := false
default RemoveContainerRequest := false
default ExecProcessRequest := false
default SignalProcessRequest := false
default WaitProcessRequest := false
default UpdateContainerRequest := false
default UpdateEphemeralMountsRequest := false
default StatsContainerRequest := false
default PauseContainerRequest := false
default ResumeContainerRequest := false
default RemoveStaleVirtiofsShareMountsRequest := false
default GetDiagnosticDataRequest := false
default WriteStreamRequest := false
default ReadStreamRequest := false
default CloseStdinRequest := false
default TtyWinResizeRequest := false
default UpdateInterfaceRequest := false
default UpdateRoutesRequest := false
default ListInterfacesRequest := false
default ListRoutesRequest := false
default AddARPNeighborsRequest := false
default GetIPTablesRequest := false
default SetIPTablesRequest := false
default GetMetricsRequest := false
default MemAgentMemcgConfig := false
default MemAgentCompactConfig := false
default CreateSandboxRequest := false
default DestroySandboxRequest := false
default OnlineCPUMemRequest := false
default ReseedRandomDevRequest := false
default GuestDetailsRequest := false
default MemHotplugByProbeRequest := false
default SetGuestDateTimeRequest := false
default CopyFileRequest := false
default GetOOMEventRequest := false
default AddSwapRequest := false
default AddSwapPathRequest := false
default VolumeStatsRequest := false
default ResizeVolumeRequest := false
default SetPolicyRequest := false

# tardigrade.v1.Lifecycle.
default QuiesceRequest := false
default ThawRequest := false
default ReleaseRequest := false
default ExecRequest := false
default CopyRequest := false
default ForwardRequest := false
default LogsRequest := false
default EventsRequest := false
