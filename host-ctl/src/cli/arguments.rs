//! The command line, parsed and nothing more: no file is opened and no
//! variable is read here. [`super`] resolves and acts.

use crate::config::{SandboxId, TemplateName};
use crate::sandbox::vmm::Vmm;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hypervisor::MemoryMode;
use std::path::PathBuf;

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

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Boots a sandbox, warms it, freezes it and keeps it.
    Build(Box<TemplateBuildArguments>),
    /// Makes a template of a sandbox, with all that was done in it. The sandbox
    /// ends in it; its clones take its place.
    Save(TemplateSaveArguments),
    /// Lists templates.
    List,
    /// Shows a template's manifest.
    Inspect(TemplateArgument),
    /// Hashes every file of a template against its manifest.
    Verify(TemplateArgument),
    /// Writes a template to one file, encrypted.
    Export(TemplateExportArguments),
    /// Makes a template of such a file.
    Import(TemplateImportArguments),
    /// Removes a template; its clones live on.
    Rm(TemplateArgument),
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

/// `template build`.
#[derive(Debug, Args)]
// A container is whole, or there is none.
#[command(
    mut_arg("rootfs", |rootfs| rootfs.required(false).requires("command")),
    mut_arg("command", |command| command.required(false).requires("rootfs")),
    mut_arg("env", |env| env.requires("rootfs")),
    mut_arg("cwd", |cwd| cwd.requires("rootfs")),
    mut_arg("container", |container| container.requires("rootfs"))
)]
pub struct TemplateBuildArguments {
    /// The template's name.
    pub name: TemplateName,
    /// A command run in the container until it succeeds: the workload is ready.
    #[arg(long, value_name = "COMMAND", value_parser = parse_words, requires = "rootfs")]
    pub ready: Option<Words>,
    /// A command run in the container once it is ready, before the freeze; in
    /// order when given more than once.
    #[arg(long, value_name = "COMMAND", value_parser = parse_words, requires = "rootfs")]
    pub warm: Vec<Words>,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArguments,
    /// The container that is frozen in it. Without one the template is a machine
    /// that `run` wakes copies of, for sandboxes of its size.
    #[command(flatten)]
    pub container: Option<ContainerArguments>,
}

/// `template save`.
#[derive(Debug, Args)]
pub struct TemplateSaveArguments {
    /// The template's name.
    pub name: TemplateName,
    /// The sandbox.
    pub sandbox: String,
}

/// `template export`.
#[derive(Debug, Args)]
pub struct TemplateExportArguments {
    /// The template's name, or its digest or the beginning of it.
    pub template: String,
    /// The file, which must not be there yet.
    #[arg(short = 'o', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// A secret that whoever is to import it has too: 64 hexadecimal digits, in a
    /// file that nobody else may read.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Does not encrypt it: whoever reads the file has all that was in the
    /// guest's memory. With --key-file it is signed.
    #[arg(long)]
    pub plaintext: bool,
}

/// `template import`.
#[derive(Debug, Args)]
pub struct TemplateImportArguments {
    /// The file.
    pub file: PathBuf,
    /// By which name the template is to be found.
    #[arg(long)]
    pub name: Option<TemplateName>,
    /// The secret that it was made with; what was made without is refused.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Takes a file that nothing shows the maker of.
    #[arg(long, conflicts_with = "key_file")]
    pub trust_unsigned: bool,
    /// Takes another user's template: clones of both then have in common how fast
    /// pages of it are read (the host's cache), kernel and program addresses,
    /// stack canaries, TCP sequence secrets and what else lay in memory.
    #[arg(long)]
    pub share: bool,
    /// The most that its files may take of the disk, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64 << 10)]
    pub limit: u32,
}

/// A template by name or digest.
#[derive(Debug, Args)]
pub struct TemplateArgument {
    /// The template's name, or its digest or the beginning of it.
    pub template: String,
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

/// A command as words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

/// Splits a command at white space; single and double quotes keep words
/// together, and nothing else is special: there is no shell here.
fn parse_words(text: &str) -> Result<Words, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    if words.first().is_none_or(String::is_empty) {
        return Err("an empty command".into());
    }
    Ok(Words(words))
}

/// As the agent takes them: 2 to 128 letters, digits, `.`, `-` and `_`, a letter
/// or digit first.
fn parse_container_id(text: &str) -> Result<String, String> {
    let fits = (2..=128).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if fits {
        Ok(text.into())
    } else {
        Err("expected 2 to 128 letters, digits, '.', '-' and '_', a letter or digit first".into())
    }
}

fn parse_variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.into()),
        _ => Err("expected NAME=VALUE".into()),
    }
}

fn parse_guest_directory(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') {
        Ok(text.into())
    } else {
        Err("expected an absolute path".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::vmm::memory_mode_name;
    use clap::CommandFactory;
    use clap::error::ErrorKind;
    use proptest::prelude::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("host-ctl").chain(line.split(' ')))
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_template_is_built_with_nothing_in_it_or_with_a_whole_container() {
        let parsed = parse("template build small --memory 128").unwrap();
        let Command::Template(TemplateCommand::Build(build)) = parsed.command else {
            panic!("another command");
        };
        assert!(build.container.is_none());
        for half in [
            "template build x --rootfs i",
            "template build x -- true",
            "template build x --env A=b",
            "template build x --cwd /srv",
            "template build x --container other",
            "template build x --ready true",
            "template build x --warm true",
            "run --rootfs i",
            "run -- true",
            "run",
        ] {
            let error = parse(half).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MissingRequiredArgument, "{half}");
        }
    }

    #[test]
    fn a_template_is_built_with_ready_and_warm_commands() {
        let arguments = Arguments::try_parse_from([
            "host-ctl",
            "template",
            "build",
            "redis",
            "--rootfs",
            "redis.erofs",
            "--memory",
            "512",
            "--ready",
            "redis-cli ping",
            "--warm",
            "redis-cli set a 'b c'",
            "--warm",
            "redis-cli get a",
            "--env",
            "A=b=c",
            "--",
            "redis-server",
            "--save",
            "",
        ])
        .unwrap();
        let Command::Template(TemplateCommand::Build(build)) = arguments.command else {
            panic!("{:?}", arguments.command);
        };
        assert_eq!(build.machine.memory, 512);
        assert_eq!(build.machine.cpus, 1);
        let container = build.container.as_ref().unwrap();
        assert_eq!(container.id, "main");
        assert_eq!(container.command, ["redis-server", "--save", ""]);
        assert_eq!(build.ready.unwrap().0, ["redis-cli", "ping"]);
        assert_eq!(build.warm[0].0, ["redis-cli", "set", "a", "b c"]);
        assert_eq!(build.warm.len(), 2);
        assert_eq!(container.env, ["A=b=c"]);
    }

    #[test]
    fn a_clone_counts_and_prints_as_asked() {
        let arguments = parse("clone redis -n 8 --timings --output json").unwrap();
        assert_eq!(arguments.output, Output::Json);
        let Command::Clone(clone) = arguments.command else {
            panic!("{:?}", arguments.command);
        };
        assert_eq!((clone.count, clone.timings), (8, true));
    }

    #[test]
    fn the_words_for_memory_are_those_of_refusals() {
        for mode in CloneMemory::value_variants() {
            let word = mode.to_possible_value().unwrap();
            assert_eq!(word.get_name(), memory_mode_name(mode.mode()));
        }
    }

    #[test]
    fn everything_after_the_dashes_belongs_to_the_command() {
        let arguments = parse("exec one --container web -t -- ls --output json -n").unwrap();
        assert_eq!(arguments.output, Output::Text);
        let Command::Exec(exec) = arguments.command else {
            panic!("{:?}", arguments.command);
        };
        assert!(exec.terminal);
        assert_eq!(exec.command, ["ls", "--output", "json", "-n"]);
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "",
            "explode",
            "clone",
            "clone redis -n 0",
            "clone redis -n many",
            "clone redis --memory shared",
            "exec one",
            "exec one ls",
            "exec one --guest --container web -- ls",
            "exec one --cwd relative -- ls",
            "run --rootfs r.erofs",
            "run --rootfs r.erofs --memory 1 -- ls",
            "run --rootfs r.erofs --vmm xen -- ls",
            "run --rootfs r.erofs --agent-link tcp -- ls",
            "run --rootfs r.erofs --network bridge -- ls",
            "run --rootfs r.erofs --env =x -- ls",
            "run --rootfs r.erofs --container ../x -- ls",
            "template build ../x --rootfs r.erofs -- ls",
            "supervise --adopt ../x",
            "rm",
            "rm --all one",
            "list --output xml",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
            assert_ne!(error.kind(), ErrorKind::DisplayHelp, "{line}");
        }
    }

    #[test]
    fn the_supervisor_is_hidden_but_there() {
        let help = Arguments::command().render_long_help().to_string();
        assert!(!help.contains("supervise"), "{help}");
        assert!(parse("supervise").is_ok());
        assert!(parse("supervise --adopt 0123456789ab").is_ok());
    }

    #[test]
    fn quotes_keep_words_together() {
        assert_eq!(
            parse_words("a  'b c' d\"e f\"").unwrap().0,
            ["a", "b c", "de f"]
        );
        assert_eq!(parse_words("a ''").unwrap().0, ["a", ""]);
        assert!(parse_words("a 'b").is_err());
        assert!(parse_words("  ").is_err());
        assert!(parse_words("''").is_err());
    }

    proptest! {
        #[test]
        fn quoted_words_come_back_as_they_were(
            words in prop::collection::vec("[^'\"]{0,10}", 0..5)
        ) {
            let line: String = words.iter().map(|word| format!(" '{word}'")).collect();
            let line = format!("run{line}");
            let parsed = parse_words(&line).unwrap();
            prop_assert_eq!(&parsed.0[1..], &words[..]);
        }
    }
}
