//! The arguments of `template`.

use super::{ContainerArguments, MachineArguments, Words, parse_words};
use crate::config::TemplateName;
use clap::{Args, Subcommand};
use std::path::PathBuf;

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
