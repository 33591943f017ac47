//! The command line, parsed; nothing is done here.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Runs a command on an emulated machine that has KVM, vhost-vsock and taps.
#[derive(Parser)]
#[command(name = "lab", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a command in the nested host.
    Run(RunArguments),
    /// Say what the lab would run with, or what it lacks.
    Check(CheckArguments),
    /// Die with the lab; see the code.
    #[command(hide = true)]
    Child(ChildArguments),
}

#[derive(Args)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    pub(crate) kernel: KernelArguments,
}

#[derive(Args)]
pub(crate) struct KernelArguments {
    /// The directory with vmlinuz, config and modules/, as
    /// kernel-config/fetch-distro-kernel.sh leaves it.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) kernel: PathBuf,
    /// A directory to look for virtiofsd in, before the usual places.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) tools: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) kernel: KernelArguments,
    /// A directory the command may write to for good, at the same path; may be
    /// repeated.
    #[arg(long = "share", value_name = "DIRECTORY")]
    pub(crate) shares: Vec<PathBuf>,
    /// A further variable of the environment, with a value or with the one it
    /// has here; may be repeated.
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) environment: Vec<String>,
    /// How long boot and command may take together.
    #[arg(long, value_name = "SECONDS", default_value = "1200", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) deadline: u64,
    /// How long the nested host may give no sign of life.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) silence: u64,
    /// The memory, at most; less on a machine that has not got it.
    #[arg(long, value_name = "MIB", default_value = "4096", value_parser = clap::value_parser!(u64).range(512..=65_536))]
    pub(crate) memory: u64,
    /// How many processors are emulated.
    #[arg(long, value_name = "COUNT", default_value = "2", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) cpus: u8,
    /// Say nothing but what went wrong.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// The program and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct ChildArguments {
    /// Bind all of / there first, for this process only, read-only.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) root_view: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(required = true, last = true)]
    pub(crate) command: Vec<String>,
}
