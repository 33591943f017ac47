//! Messages as clients send them, to begin with.

use protobuf::Message;
use protocols::wire::{agent, lifecycle, types};

/// The bytes of real messages of that name; few have any that made ones do not
/// come near to.
#[must_use]
pub fn of(name: &str) -> Vec<Vec<u8>> {
    match name {
        "CreateContainerRequest" => vec![bytes(&create())],
        "ExecProcessRequest" => vec![bytes(&exec_process())],
        "UpdateContainerRequest" => vec![bytes(&update())],
        "CopyFileRequest" => [0o100_644, 0o040_755, 0o120_777].map(copy).into(),
        "UpdateInterfaceRequest" => {
            let mut request = agent::UpdateInterfaceRequest::new();
            request.interface = Some(interface()).into();
            vec![bytes(&request)]
        }
        "UpdateRoutesRequest" => {
            let mut request = agent::UpdateRoutesRequest::new();
            request.routes.mut_or_insert_default().Routes = vec![route()];
            vec![bytes(&request)]
        }
        "AddARPNeighborsRequest" => {
            let mut request = agent::AddARPNeighborsRequest::new();
            request.neighbors.mut_or_insert_default().ARPNeighbors = vec![neighbor()];
            vec![bytes(&request)]
        }
        "CreateSandboxRequest" => vec![bytes(&sandbox())],
        "SetPolicyRequest" => policies(),
        "ThawRequest" => vec![bytes(&thaw())],
        "ExecRequest" => vec![bytes(&exec())],
        _ => Vec::new(),
    }
}

fn bytes(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().unwrap_or_default()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn process() -> agent::Process {
    let mut process = agent::Process::new();
    process.Args = words(&["/bin/sh", "-c", "true"]);
    process.Env = words(&["PATH=/bin", "HOME=/"]);
    process.Cwd = "/".into();
    process.NoNewPrivileges = true;
    let user = process.User.mut_or_insert_default();
    (user.UID, user.GID, user.AdditionalGids) = (1000, 1000, vec![10]);
    let capabilities = process.Capabilities.mut_or_insert_default();
    capabilities.Bounding = words(&["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
    let mut limit = agent::POSIXRlimit::new();
    limit.Type = "RLIMIT_NOFILE".into();
    (limit.Soft, limit.Hard) = (1024, 4096);
    process.Rlimits = vec![limit];
    process
}

/// A profile with a rule that looks at an argument.
#[must_use]
pub fn profile() -> agent::LinuxSeccomp {
    let mut test = agent::LinuxSeccompArg::new();
    (test.Index, test.Value, test.ValueTwo) = (0, 0x7e02_0000, 0);
    test.Op = "SCMP_CMP_MASKED_EQ".into();
    let mut rule = agent::LinuxSyscall::new();
    rule.Names = words(&["clone", "openat", "read"]);
    rule.Action = "SCMP_ACT_ALLOW".into();
    rule.Args = vec![test];
    let mut profile = agent::LinuxSeccomp::new();
    profile.DefaultAction = "SCMP_ACT_ERRNO".into();
    profile.Architectures = words(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    profile.Flags = words(&["SECCOMP_FILTER_FLAG_LOG"]);
    profile.Syscalls = vec![rule];
    profile
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> agent::Mount {
    let mut mount = agent::Mount::new();
    mount.destination = destination.into();
    mount.type_ = kind.into();
    mount.source = source.into();
    mount.options = words(options);
    mount
}

/// A container as a runtime asks for it.
#[must_use]
pub fn create() -> agent::CreateContainerRequest {
    let mut linux = agent::Linux::new();
    linux.Namespaces = ["pid", "mount", "ipc", "uts", "network", "cgroup"]
        .map(|kind| {
            let mut namespace = agent::LinuxNamespace::new();
            namespace.Type = kind.into();
            namespace
        })
        .into();
    linux.MaskedPaths = words(&["/proc/kcore"]);
    linux.ReadonlyPaths = words(&["/proc/sys"]);
    linux.Sysctl = [("net.ipv4.ip_forward".into(), "1".into())].into();
    linux.Resources = Some(resources()).into();
    linux.Seccomp = Some(profile()).into();
    let mut device = agent::LinuxDevice::new();
    (device.Path, device.Type) = ("/dev/fuse".into(), "c".into());
    (device.Major, device.Minor, device.FileMode) = (10, 229, 0o666);
    linux.Devices = vec![device];
    let mut hook = agent::Hook::new();
    (hook.Path, hook.Timeout) = ("/bin/true".into(), 5);
    let mut spec = agent::Spec::new();
    spec.Version = "1.0.2".into();
    spec.Process = Some(process()).into();
    spec.Root.mut_or_insert_default().Path = "/run/kata-containers/c/rootfs".into();
    spec.Hostname = "name".into();
    spec.Mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["mode=755", "size=65536k"]),
        mount("/data", "bind", "/run/data", &["rbind", "rprivate", "ro"]),
    ];
    spec.Hooks.mut_or_insert_default().Prestart = vec![hook];
    spec.Linux = Some(linux).into();
    let additions = "{\"process\":{\"user\":{\"umask\":18},\"scheduler\":{\"policy\":\"SCHED_BATCH\"},\
         \"ioPriority\":{\"class\":\"IOPRIO_CLASS_IDLE\"}},\"linux\":{\"resources\":\
         {\"cpu\":{\"burst\":1},\"rdma\":{\"m\":{\"hcaHandles\":2}},\"unified\":{\"memory.high\":\"1\"}}}}";
    let annotations = [
        ("dev.tardigrade.oci", additions),
        ("dev.tardigrade.after-thaw", "[[\"true\"]]"),
        (
            "io.kubernetes.container.terminationMessagePath",
            "/dev/termination-log",
        ),
    ];
    spec.Annotations = annotations
        .map(|(name, text)| (name.into(), text.into()))
        .into();
    let mut storage = agent::Storage::new();
    storage.driver = "overlayfs".into();
    storage.fstype = "overlay".into();
    storage.mount_point = "/run/kata-containers/c/rootfs".into();
    storage.options = words(&["lowerdir=/a:/b", "upperdir=/c", "workdir=/d"]);
    let mut request = agent::CreateContainerRequest::new();
    request.container_id = "container".into();
    request.storages = vec![storage];
    request.OCI = Some(spec).into();
    request
}

fn resources() -> agent::LinuxResources {
    let mut resources = agent::LinuxResources::new();
    let memory = resources.Memory.mut_or_insert_default();
    (memory.Limit, memory.Swap) = (64 << 20, 128 << 20);
    let cpu = resources.CPU.mut_or_insert_default();
    (cpu.Shares, cpu.Quota, cpu.Period) = (1024, 50_000, 100_000);
    cpu.Cpus = "0-1".into();
    resources.Pids.mut_or_insert_default().Limit = 100;
    let mut throttle = agent::LinuxThrottleDevice::new();
    (throttle.Major, throttle.Minor, throttle.Rate) = (8, 0, 1 << 20);
    let io = resources.BlockIO.mut_or_insert_default();
    io.Weight = 100;
    io.ThrottleReadBpsDevice = vec![throttle];
    let mut page = agent::LinuxHugepageLimit::new();
    (page.Pagesize, page.Limit) = ("2MB".into(), 1 << 21);
    resources.HugepageLimits = vec![page];
    let mut rule = agent::LinuxDeviceCgroup::new();
    (rule.Type, rule.Access, rule.Allow) = ("c".into(), "rwm".into(), true);
    (rule.Major, rule.Minor) = (10, 229);
    resources.Devices = vec![rule];
    resources
}

fn update() -> agent::UpdateContainerRequest {
    let mut request = agent::UpdateContainerRequest::new();
    request.container_id = "container".into();
    request.resources = Some(resources()).into();
    request
}

fn exec_process() -> agent::ExecProcessRequest {
    let mut request = agent::ExecProcessRequest::new();
    request.container_id = "container".into();
    request.exec_id = "exec".into();
    request.process = Some(process()).into();
    request
}

fn copy(mode: u32) -> Vec<u8> {
    let mut request = agent::CopyFileRequest::new();
    request.path = "/run/kata-containers/shared/containers/c/file".into();
    request.file_mode = mode;
    request.data = b"content".into();
    request.file_size = 7;
    request.dir_mode = 0o750;
    bytes(&request)
}

fn interface() -> types::Interface {
    let mut address = types::IPAddress::new();
    (address.address, address.mask) = ("100.64.0.2".into(), "30".into());
    let mut interface = types::Interface::new();
    interface.name = "eth0".into();
    interface.hwAddr = "02:00:00:00:00:01".into();
    interface.mtu = 1500;
    interface.devicePath = "02/01".into();
    interface.IPAddresses = vec![address];
    interface
}

fn route() -> types::Route {
    let mut route = types::Route::new();
    route.dest = "0.0.0.0/0".into();
    route.gateway = "100.64.0.1".into();
    route.device = "eth0".into();
    route
}

fn neighbor() -> types::ARPNeighbor {
    let mut neighbor = types::ARPNeighbor::new();
    neighbor.toIPAddress.mut_or_insert_default().address = "100.64.0.1".into();
    neighbor.device = "eth0".into();
    neighbor.lladdr = "02:00:00:00:00:02".into();
    neighbor.state = 0x80;
    neighbor
}

fn sandbox() -> agent::CreateSandboxRequest {
    let mut module = agent::KernelModule::new();
    module.name = "dummy".into();
    let mut request = agent::CreateSandboxRequest::new();
    request.hostname = "name".into();
    request.dns = words(&["nameserver 100.64.0.1"]);
    request.kernel_modules = vec![module];
    request.sandbox_id = "sandbox".into();
    request
}

fn policies() -> Vec<Vec<u8>> {
    [
        "package agent_policy\ndefault AllowRequestsFailingPolicy := false\n",
        "package agent_policy\nimport future.keywords.in\ndefault ExecProcessRequest := false\n\
         ExecProcessRequest if { input.process.Args[0] in [\"a\", \"b\"] }\n",
        "package agent_policy\nallowed := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \
         \"path\": \"/pstate/n\", \"value\": 1}]}\n",
    ]
    .map(|source| {
        let mut request = agent::SetPolicyRequest::new();
        request.policy = source.into();
        bytes(&request)
    })
    .into()
}

fn thaw() -> lifecycle::ThawRequest {
    let mut request = lifecycle::ThawRequest::new();
    request.quiesce_id = vec![1; 16];
    request.generation = vec![2; 16];
    request.entropy = vec![3; 64];
    request.host_realtime_nanos = 1 << 60;
    let identity = request.identity.mut_or_insert_default();
    identity.hostname = "clone".into();
    identity.machine_id = "0123456789abcdef0123456789abcdef".into();
    identity.boot_id = "01234567-89ab-4def-8123-456789abcdef".into();
    let network = request.network.mut_or_insert_default();
    network.interfaces = vec![interface()];
    network.routes = vec![route()];
    network.neighbors = vec![neighbor()];
    request.dns = words(&["nameserver 100.64.0.1"]);
    request
}

fn exec() -> lifecycle::ExecRequest {
    let mut request = lifecycle::ExecRequest::new();
    request.container_id = "container".into();
    request.args = words(&["/bin/sh"]);
    request.terminal = true;
    (request.rows, request.columns) = (24, 80);
    request.user.mut_or_insert_default().uid = 7;
    request
}
