//! The command line, parsed and nothing more: no file is opened and no
//! variable is read here. [`super`] resolves and acts.

mod template;
mod words;

pub use template::{
    TemplateArgument, TemplateBuildArguments, TemplateCommand, TemplateExportArguments,
    TemplateImportArguments, TemplateSaveArguments,
};
pub use words::{DirectoryArgument, Words};

use crate::config::SandboxId;
use crate::sandbox::vmm::Vmm;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hypervisor::MemoryMode;
use std::path::PathBuf;
use words::{
    parse_container_id, parse_directory, parse_guest_directory, parse_variable, parse_words,
};

/// Boots, freezes and clones microVMs.
#[derive(Debug, Parser)]
#[command(name = "host-ctl", version, disable_help_subcommand = true)]
pub struct Arguments {
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables for people.
    Text,
    /// One JSON document.
    Json,
}

/// What carries the link to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AgentLink {
    /// A virtio-serial port.
    Serial,
    /// Vsock: of the host's kernel with qemu, of the VMM's own with the others.
    Vsock,
}

/// How memory gets into a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CloneMemory {
    /// Shared with the template until it is written.
    Cow,
    /// Read in full first.
    Copy,
    /// Read page by page, when it is touched.
    OnDemand,
}

impl CloneMemory {
    /// The mode it names.
    #[must_use]
    pub fn mode(self) -> MemoryMode {
        match self {
            Self::Cow => MemoryMode::CopyOnWrite,
            Self::Copy => MemoryMode::Copy,
            Self::OnDemand => MemoryMode::OnDemand,
        }
    }
}

/// What a guest's interface is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// It has none.
    None,
    /// A tap device.
    Tap,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Templates: frozen sandboxes that clones are made from.
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Wakes unique copies of a template.
    Clone(CloneArguments),
    /// Boots a sandbox and starts one container in it.
    Run(RunArguments),
    /// Runs a command in a sandbox; its exit code becomes ours.
    Exec(ExecArguments),
    /// Lists sandboxes.
    List(ListArguments),
    /// Shows everything known about a sandbox.
    Inspect(SandboxArgument),
    /// Prints what a sandbox has written.
    Logs(LogsArguments),
    /// Ends sandboxes; their logs stay until `rm`.
    Stop(StopArguments),
    /// Ends sandboxes and removes what is left of them.
    Rm(RmArguments),
    /// Finishes what killed processes began: removes what belongs to nobody.
    /// Stopped sandboxes belong to whoever made them, until `rm`.
    Gc,
    /// Says what this machine has and what it lacks.
    Doctor(DoctorArguments),
    /// Owns one sandbox; started by the other commands.
    #[command(hide = true)]
    Supervise(SuperviseArguments),
}

/// The guest's kernel and initrd.
#[derive(Debug, Clone, Args)]
pub struct GuestImage {
    /// The guest's kernel; default $TARDIGRADE_KERNEL.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The guest's initrd, with the agent in it; default $TARDIGRADE_INITRD.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
}

/// What is looked at.
#[derive(Debug, Clone, Args)]
pub struct DoctorArguments {
    /// The guest's kernel and initrd.
    #[command(flatten)]
    pub image: GuestImage,
    /// Boots them, and says what the guest's kernel lacks for what.
    #[arg(long)]
    pub guest: bool,
    /// The kernel's configuration, where the guest does not tell it; `config`
    /// beside the kernel unless given.
    #[arg(long, value_name = "FILE", requires = "guest")]
    pub kernel_config: Option<PathBuf>,
    /// Boots them in a VMM without namespaces and a user of its own.
    #[arg(long, requires = "guest")]
    pub insecure: bool,
}

/// The machine that `run` and `template build` make.
#[derive(Debug, Clone, Args)]
pub struct MachineArguments {
    /// The guest's kernel and initrd.
    #[command(flatten)]
    pub guest: GuestImage,
    /// The VMM: qemu, cloud-hypervisor or firecracker; default $TARDIGRADE_VMM,
    /// else qemu.
    #[arg(long, value_name = "VMM")]
    pub vmm: Option<Vmm>,
    /// The device between host and agent; default serial with qemu, vsock with
    /// the others.
    #[arg(long, value_name = "DEVICE", value_enum)]
    pub agent_link: Option<AgentLink>,
    /// The guest's network: none, or an interface whose other end is a tap device
    /// of this host, with addresses of its own out of $TARDIGRADE_SUBNET
    /// (100.64.0.0/10). A template's clones have one each.
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Network::None)]
    pub network: Network,
    /// Starts the VMM without namespaces and a user of its own, also where they
    /// could be had.
    #[arg(long)]
    pub insecure: bool,
    /// The guest's memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=1 << 20))]
    pub memory: u32,
    /// The guest's CPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub cpus: u8,
}

/// The one container that `run` makes, and `template build` if it is asked to.
#[derive(Debug, Clone, Args)]
#[group(id = "one-container")]
pub struct ContainerArguments {
    /// The container's root file system, an EROFS image; never written.
    #[arg(long, value_name = "FILE")]
    pub rootfs: PathBuf,
    /// The container's id.
    #[arg(long = "container", id = "container", value_name = "ID", default_value = "main", value_parser = parse_container_id)]
    pub id: String,
    /// A variable of the container's environment.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<String>,
    /// The container's working directory.
    #[arg(long, value_name = "DIRECTORY", default_value = "/", value_parser = parse_guest_directory)]
    pub cwd: PathBuf,
    /// The container's command.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `clone`.
#[derive(Debug, Args)]
pub struct CloneArguments {
    /// The template's name, or its digest or the beginning of it.
    pub template: String,
    /// How many clones to wake, all at once.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub count: u16,
    /// How the template's memory gets into each; default what the VMM does best.
    /// What the VMM cannot do is refused.
    #[arg(long, value_name = "MODE", value_enum)]
    pub memory: Option<CloneMemory>,
    /// Takes another user's template: clones of both then have in common how fast
    /// pages of it are read (the host's cache), kernel and program addresses,
    /// stack canaries, TCP sequence secrets and what else lay in memory.
    #[arg(long)]
    pub share: bool,
    /// Starts the VMM without namespaces and a user of its own, also where they
    /// could be had.
    #[arg(long)]
    pub insecure: bool,
    /// Runs the template's readiness command in each clone until it succeeds;
    /// that moment is T_APP.
    #[arg(long)]
    pub ready: bool,
    /// Prints where the time went.
    #[arg(long)]
    pub timings: bool,
}

/// `list`.
#[derive(Debug, Args)]
pub struct ListArguments {
    /// Only the ids, one a line.
    #[arg(short = 'q', long)]
    pub quiet: bool,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// A command run in the container until it succeeds: the workload is ready,
    /// and that moment is T_APP.
    #[arg(long, value_name = "COMMAND", value_parser = parse_words)]
    pub ready: Option<Words>,
    /// Prints where the time went.
    #[arg(long)]
    pub timings: bool,
    /// A directory of this host, and where the container sees it; with `:ro` it
    /// can only be read there. What the guest's users make in it belongs to the
    /// directory's owner. It takes virtiofsd, a VMM that has virtio-fs and a guest
    /// kernel that has it; such a sandbox becomes no template.
    #[arg(long = "directory", value_name = "HOST:GUEST[:ro]", value_parser = parse_directory)]
    pub directories: Vec<DirectoryArgument>,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArguments,
    /// The container.
    #[command(flatten)]
    pub container: ContainerArguments,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArguments {
    /// The sandbox.
    pub sandbox: String,
    /// The container; default the sandbox's first.
    #[arg(long, value_name = "ID", conflicts_with = "guest")]
    pub container: Option<String>,
    /// In the guest itself, outside every container.
    #[arg(long)]
    pub guest: bool,
    /// With a terminal.
    #[arg(short = 't', long)]
    pub terminal: bool,
    /// A variable of the command's environment.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<String>,
    /// The command's working directory; default the container's own.
    #[arg(long, value_name = "DIRECTORY", value_parser = parse_guest_directory)]
    pub cwd: Option<PathBuf>,
    /// The command.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// A sandbox by its id.
#[derive(Debug, Args)]
pub struct SandboxArgument {
    /// The sandbox.
    pub sandbox: String,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArguments {
    /// The sandbox.
    pub sandbox: String,
    /// The guest kernel's console instead of the containers' output.
    #[arg(long)]
    pub console: bool,
}

/// `stop`.
#[derive(Debug, Args)]
pub struct StopArguments {
    /// The sandboxes.
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
    /// Seconds the guest has to power off by itself; 0 kills at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub grace: u32,
}

/// `rm`.
#[derive(Debug, Args)]
pub struct RmArguments {
    /// The sandboxes.
    #[arg(required_unless_present = "all", value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
    /// Every sandbox there is.
    #[arg(long, conflicts_with = "sandboxes")]
    pub all: bool,
}

/// `supervise`; the order comes on standard input.
#[derive(Debug, Args)]
pub struct SuperviseArguments {
    /// Takes over the running VM of this sandbox instead of reading an order.
    #[arg(long, value_name = "SANDBOX")]
    pub adopt: Option<SandboxId>,
}

#[cfg(test)]
mod tests;
