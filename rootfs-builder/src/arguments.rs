//! The command line, parsed; nothing is done here.

use clap::{Args, Parser, Subcommand, ValueEnum};
use rootfs_builder::base::Base;
use rootfs_builder::compression::Compression;
use rootfs_builder::contents::{AddedFile, Recipe};
use rootfs_builder::digest::Digest;
use rootfs_builder::disk::{DEFAULT_ALIGNMENT, Layout};
use rootfs_builder::erofs::{Packing, Request};
use rootfs_builder::igvm::{self, Platform, Vmm};
use rootfs_builder::image::{self, FileSystem};
use rootfs_builder::verify::Trusted;
use std::path::PathBuf;
use std::time::Duration;

/// Guest images from files, without root; the same bytes from the same input.
///
/// SOURCE_DATE_EPOCH (seconds since 1970, default 0) is the time of every file
/// in an image.
#[derive(Parser)]
#[command(name = "rootfs-builder", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Build the agent's initrd.
    Initrd(Box<InitrdArguments>),
    /// Build a root disk with the agent as /sbin/init, by mkfs.erofs or mke2fs.
    Image(Box<ImageArguments>),
    /// Say what is in an initrd (newc, packed or not) or on a disk, from
    /// whatever source.
    Inspect {
        /// The file.
        image: PathBuf,
        /// How to print the list.
        #[arg(long, value_enum, default_value = "text")]
        output_format: Format,
    },
    /// Hold an image against what is trusted: its manifest, or the words that
    /// the kernel is told; exit 1 and a line for each thing that is not right.
    Verify {
        /// The file.
        image: PathBuf,
        /// Its manifest, which is trusted; IMAGE.json unless given.
        #[arg(long, value_name = "FILE")]
        manifest: Option<PathBuf>,
        /// Trust these words, and no manifest that is not given: a dm-verity
        /// table, or a kernel command line with one.
        #[arg(long, value_name = "WORDS", conflicts_with = "root_hash")]
        table: Option<Trusted>,
        /// Trust this root hash, and no manifest that is not given.
        #[arg(long, value_name = "HEX", requires = "data_blocks")]
        root_hash: Option<Digest>,
        /// How many blocks of 4096 bytes it stands for: a root hash alone does
        /// not bind that.
        #[arg(long, value_name = "COUNT", requires = "root_hash")]
        data_blocks: Option<u64>,
    },
    /// Say what two images differ in, by their manifests; exit 1 if they do.
    Diff {
        /// A manifest; or an image, whose manifest is IMAGE.json.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// Make an IGVM file of a kernel, a command line and an initrd: the memory
    /// of a confidential guest (AMD SEV-SNP), with what its reports will say.
    Igvm(Box<IgvmArguments>),
    /// Say what reports of an IGVM file's guests will say (AMD SEV-SNP, Intel
    /// TDX); exit 1 if they will be other than the file or a reference has it.
    Measure {
        /// The file, from whatever source.
        image: PathBuf,
        /// Reference measurements to hold it against.
        #[arg(long, value_name = "FILE")]
        reference: Option<PathBuf>,
        /// How to print it.
        #[arg(long, value_enum, default_value = "text")]
        output_format: Format,
    },
    /// Make an EROFS image of a directory tree, by mkfs.erofs.
    TreeToErofs(ErofsArguments),
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

/// What lies in an image, whatever its format.
#[derive(Args)]
pub(crate) struct ContentsArguments {
    /// The static program that becomes PID 1.
    #[arg(long, value_name = "PROGRAM")]
    agent: PathBuf,
    /// Its version, for the manifest.
    #[arg(long, value_name = "TEXT")]
    agent_version: Option<String>,
    /// What it lies on: none, busybox, a DIRECTORY, oci:LAYOUT[:REF], or
    /// debian:SUITE (by mmdebstrap).
    #[arg(long, value_name = "BASE", default_value = "none")]
    base: Base,
    /// A further package, of a base that can install some; may be repeated.
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// The kernel's modules: a directory laid out as /lib/modules/RELEASE.
    #[arg(long, value_name = "DIRECTORY")]
    modules: Option<PathBuf>,
    /// A further module, with what it depends on; may be repeated.
    #[arg(long = "module", value_name = "NAME", requires = "modules")]
    extra_modules: Vec<String>,
    /// The kernel, for its digest in the manifest.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's configuration: refuse a kernel that lacks something.
    #[arg(long, value_name = "FILE")]
    kernel_config: Option<PathBuf>,
    /// A Rego policy, checked and put where the agent looks for it.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A further file; MODE is octal, 644 unless given; may be repeated.
    #[arg(long = "file", value_name = "SOURCE:DESTINATION[:MODE]", value_parser = parse_file)]
    files: Vec<AddedFile>,
    /// Where a list of what is inside (SPDX 2.3, JSON) goes.
    #[arg(long, value_name = "FILE")]
    pub(crate) spdx: Option<PathBuf>,
}

impl ContentsArguments {
    pub(crate) fn to_recipe(&self, source_date_epoch: u32) -> Recipe {
        Recipe {
            agent: self.agent.clone(),
            agent_version: self.agent_version.clone(),
            base: self.base.clone(),
            packages: self.packages.clone(),
            modules: self.modules.clone(),
            extra_modules: self.extra_modules.clone(),
            kernel: self.kernel.clone(),
            kernel_config: self.kernel_config.clone(),
            policy: self.policy.clone(),
            files: self.files.clone(),
            source_date_epoch,
        }
    }
}

#[derive(Args)]
pub(crate) struct InitrdArguments {
    #[command(flatten)]
    pub(crate) contents: ContentsArguments,
    /// How the archive is packed; plain boots quickest.
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) compression: Compression,
    /// The initrd.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Where the manifest (JSON) goes.
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// How to print what was built: a line, or the manifest.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output_format: Format,
}

/// The file system of a root disk.
#[derive(Clone, Copy, ValueEnum)]
enum DiskFormat {
    Erofs,
    Ext4,
}

#[derive(Args)]
pub(crate) struct ImageArguments {
    #[command(flatten)]
    pub(crate) contents: ContentsArguments,
    /// The file system.
    #[arg(long, value_enum, default_value = "erofs")]
    format: DiskFormat,
    /// How an EROFS file system packs its files; plain reads quickest.
    #[arg(long, value_enum, default_value = "none")]
    compression: Packing,
    /// How the disk is laid out.
    #[arg(long, value_enum, default_value = "plain")]
    layout: Layout,
    /// What sizes and partitions' starts are multiples of.
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_ALIGNMENT)]
    align: u64,
    /// The disk as the guest will see it, for the kernel parameters that are
    /// printed.
    #[arg(long, value_name = "DEVICE", default_value = "/dev/vda")]
    pub(crate) device: String,
    /// The disk's file; the manifest (JSON) goes to FILE.json.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// How long the program that makes the file system may take.
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    deadline: u64,
    /// How to print what was built: lines, or the manifest.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output_format: Format,
}

impl ImageArguments {
    pub(crate) fn to_request(&self) -> image::Request {
        image::Request {
            file_system: match self.format {
                DiskFormat::Erofs => FileSystem::Erofs(self.compression),
                DiskFormat::Ext4 => FileSystem::Ext4,
            },
            layout: self.layout,
            alignment: self.align,
            output: self.output.clone(),
            deadline: Duration::from_secs(self.deadline),
        }
    }
}

#[derive(Args)]
pub(crate) struct ErofsArguments {
    /// The directory that becomes the image's root.
    #[arg(long, value_name = "DIRECTORY")]
    tree: PathBuf,
    /// The image.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// How file data is stored; plain reads quickest.
    #[arg(long, value_enum, default_value = "none")]
    compression: Packing,
    /// How long mkfs.erofs may take.
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    deadline: u64,
    /// How to print what was built.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output_format: Format,
}

impl ErofsArguments {
    pub(crate) fn to_request(&self, source_date_epoch: u32) -> Request {
        Request {
            tree: self.tree.clone(),
            output: self.output.clone(),
            packing: self.compression,
            source_date_epoch,
            deadline: Duration::from_secs(self.deadline),
        }
    }
}

/// What an IGVM file's guests are isolated by.
#[derive(Clone, Copy, ValueEnum)]
enum IgvmPlatform {
    SevSnp,
    Native,
}

/// What loads an IGVM file.
#[derive(Clone, Copy, ValueEnum)]
enum IgvmVmm {
    Qemu,
    CloudHypervisor,
}

#[derive(Args)]
pub(crate) struct IgvmArguments {
    /// The kernel: a bzImage, which is entered directly.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initrd.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Words of the kernel's command line.
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// The manifest of a root disk with a hash tree: the words that the kernel
    /// needs for it, root hash included, go before the others.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// The disk as the guest will see it.
    #[arg(long, value_name = "DEVICE", default_value = "/dev/vda")]
    device: String,
    /// The guest's memory: all of it is in the measurement.
    #[arg(long, value_name = "MIB", default_value = "256")]
    memory: u32,
    /// What isolates the guest.
    #[arg(long, value_enum, default_value = "sev-snp")]
    platform: IgvmPlatform,
    /// What will load the file.
    #[arg(long, value_enum, default_value = "qemu")]
    vmm: IgvmVmm,
    /// The security version number; reports show it if there is an --id-key.
    #[arg(long, value_name = "N", default_value = "0")]
    svn: u32,
    /// What the host may do, as SEV-SNP's ABI has it.
    #[arg(long, value_name = "HEX", default_value = "0x30000", value_parser = parse_policy)]
    guest_policy: u64,
    /// A private key on P-384 (PEM), which signs measurement and security
    /// version number: with another measurement the guest does not start.
    #[arg(long, value_name = "FILE")]
    id_key: Option<PathBuf>,
    /// The file; the reference measurements (JSON) go to FILE.json.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// How to print what was built: lines, or the reference measurements.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output_format: Format,
}

impl IgvmArguments {
    pub(crate) fn to_request(&self) -> igvm::Request {
        igvm::Request {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            command_line: self.cmdline.clone(),
            root_disk: self.manifest.clone(),
            device: self.device.clone(),
            memory: u64::from(self.memory) << 20,
            platform: match self.platform {
                IgvmPlatform::SevSnp => Platform::SevSnp,
                IgvmPlatform::Native => Platform::Native,
            },
            vmm: match self.vmm {
                IgvmVmm::Qemu => Vmm::Qemu,
                IgvmVmm::CloudHypervisor => Vmm::CloudHypervisor,
            },
            svn: self.svn,
            policy: self.guest_policy,
            id_key: self.id_key.clone(),
            output: self.output.clone(),
        }
    }
}

fn parse_policy(text: &str) -> Result<u64, String> {
    igvm::expected::Policy::try_from(String::from(text)).map(|policy| policy.0)
}

/// Read from its end, since a source may have colons in its name.
fn parse_file(text: &str) -> Result<AddedFile, String> {
    let (paths, permissions) = match text.rsplit_once(':') {
        Some((paths, mode)) if !mode.starts_with('/') => {
            let permissions = u32::from_str_radix(mode, 8)
                .ok()
                .filter(|&permissions| permissions <= 0o7777)
                .ok_or_else(|| format!("{mode:?} is not an octal mode"))?;
            (paths, permissions)
        }
        _ => (text, 0o644),
    };
    let (source, destination) = paths
        .rsplit_once(':')
        .filter(|(source, destination)| !source.is_empty() && destination.starts_with('/'))
        .ok_or("not SOURCE:/DESTINATION[:MODE]")?;
    Ok(AddedFile {
        source: source.into(),
        destination: destination
            .parse()
            .map_err(|error: rootfs_builder::archive::PathError| error.to_string())?,
        permissions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_source_destination_and_perhaps_a_mode() {
        let file = parse_file("a:b/c:/etc/x:755").unwrap();
        assert_eq!(file.source, PathBuf::from("a:b/c"));
        assert_eq!(file.destination.as_str(), "etc/x");
        assert_eq!(file.permissions, 0o755);
        assert_eq!(parse_file("a:/b").unwrap().permissions, 0o644);
    }

    #[test]
    fn a_malformed_file_is_refused() {
        for text in [
            "",
            "a",
            "a:b",
            ":/b",
            "a:/b:9",
            "a:/b:77777",
            "a:/../b",
            "a:/b/",
            "a:/",
        ] {
            assert!(parse_file(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
