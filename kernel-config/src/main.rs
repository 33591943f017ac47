//! `kernel-config`: checks a kernel's configuration for the guest, lists the
//! modules the guest loads, puts our own kernel's configuration together, and
//! unpacks a kernel's image.
//!
//! Exit status: 0 passes, 1 does not pass, 2 could not be checked.

use clap::{Parser, Subcommand, ValueEnum};
use kernel_config::config::MAX_CONFIG_BYTES;
use kernel_config::image::MAX_IMAGE_BYTES;
use kernel_config::{
    Architecture, Composition, ConfigError, FragmentError, ImageError, KernelConfig, check,
    check_nested_host, fragment, modules_in_load_order, settled, vmlinux,
};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the guest needs of a kernel, and a check of a kernel's configuration.
#[derive(Parser)]
#[command(name = "kernel-config", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check a kernel's configuration file; exit 1 and name what is missing.
    Check {
        /// For example /boot/config-RELEASE.
        config: PathBuf,
        /// How to print the findings.
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
        /// Check for the nested host of the tests instead.
        #[arg(long)]
        nested_host: bool,
    },
    /// Print the modules the guest loads, one a line, in load order.
    Modules {
        /// Leave out what this configuration has built in.
        #[arg(long, value_name = "CONFIG")]
        config: Option<PathBuf>,
    },
    /// Print what our own kernel is asked to have, for KCONFIG_ALLCONFIG.
    Compose {
        /// The machine.
        #[arg(long, value_enum, default_value = "x86_64")]
        architecture: Architecture,
        /// A fragment to leave out, to see what it costs.
        #[arg(long, value_name = "FRAGMENT")]
        without: Option<String>,
    },
    /// Print the names of the fragments that is put together from, one a line.
    Fragments {
        /// The machine.
        #[arg(long, value_enum, default_value = "x86_64")]
        architecture: Architecture,
    },
    /// Check what the kernel's build made of that; exit 1 and name what is
    /// otherwise and has no waiver, and waivers that are not needed.
    Settled {
        /// The build's .config.
        config: PathBuf,
        /// The machine.
        #[arg(long, value_enum, default_value = "x86_64")]
        architecture: Architecture,
    },
    /// Unpack a kernel to the ELF image in it, which some VMMs boot only.
    Vmlinux {
        /// A bzImage, for example /boot/vmlinuz-RELEASE.
        image: PathBuf,
        /// Where to put it; what is there is replaced at once.
        #[arg(long, short)]
        output: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Parse { path: PathBuf, source: ConfigError },
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    #[error("{path}: {source}")]
    Image { path: PathBuf, source: ImageError },
    #[error("{call} {path}: {source}")]
    Output {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("write to standard output: {0}")]
    Write(#[from] io::Error),
    #[error("write report as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Check {
            config,
            output,
            nested_host,
        } => run_check(&config, output, nested_host),
        Command::Modules { config } => list_modules(config.as_deref()),
        Command::Compose {
            architecture,
            without,
        } => compose(architecture, without.as_deref()),
        Command::Fragments { architecture } => list_fragments(architecture),
        Command::Settled {
            config,
            architecture,
        } => check_settled(&config, architecture),
        Command::Vmlinux { image, output } => unpack(&image, &output),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("kernel-config: {error}");
        ExitCode::from(2)
    })
}

fn run_check(path: &Path, output: Output, nested_host: bool) -> Result<ExitCode, CommandError> {
    let config = read(path)?;
    let report = if nested_host {
        check_nested_host(&config)
    } else {
        check(&config)
    };
    let mut to = io::stdout().lock();
    match output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut to, &report)?;
            writeln!(to)?;
        }
        Output::Text => {
            write!(to, "{report}")?;
            let verdict = if report.passes() {
                "passes"
            } else {
                "does not pass"
            };
            writeln!(to, "{}: {verdict}", path.display())?;
        }
    }
    Ok(if report.passes() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn list_modules(config: Option<&Path>) -> Result<ExitCode, CommandError> {
    let config = config.map(read).transpose()?;
    let mut to = io::stdout().lock();
    for module in modules_in_load_order(config.as_ref()) {
        writeln!(to, "{module}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn compose(architecture: Architecture, without: Option<&str>) -> Result<ExitCode, CommandError> {
    let composition = match without {
        Some(fragment) => Composition::without(architecture, fragment)?,
        None => Composition::of(architecture)?,
    };
    write!(io::stdout(), "{composition}")?;
    Ok(ExitCode::SUCCESS)
}

fn list_fragments(architecture: Architecture) -> Result<ExitCode, CommandError> {
    let mut to = io::stdout().lock();
    for (name, _) in architecture.fragments() {
        writeln!(to, "{name}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check_settled(path: &Path, architecture: Architecture) -> Result<ExitCode, CommandError> {
    let composition = Composition::of(architecture)?;
    let settlement = settled::settle(&composition, &read(path)?, &fragment::waivers()?);
    write!(io::stdout(), "{settlement}")?;
    Ok(if settlement.passes() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn unpack(image: &Path, output: &Path) -> Result<ExitCode, CommandError> {
    let mut bytes = Vec::new();
    // One byte more than allowed, so that an excess is seen and not cut off.
    let limit = MAX_IMAGE_BYTES as u64 + 1;
    File::open(image)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|source| CommandError::Read {
            path: image.into(),
            source,
        })?;
    let unpacked = vmlinux(&bytes).map_err(|source| CommandError::Image {
        path: image.into(),
        source,
    })?;
    // Whole or not at all: a make that was stopped finds no half of it.
    let mut part = output.as_os_str().to_owned();
    part.push(".part");
    let failed = |call, path: &Path| {
        let path = path.to_owned();
        move |source| CommandError::Output { call, path, source }
    };
    let written = std::fs::write(&part, &unpacked).map_err(failed("write", part.as_ref()));
    let put =
        written.and_then(|()| std::fs::rename(&part, output).map_err(failed("rename to", output)));
    if put.is_err() {
        // It may never have been made; the error that is told is the first.
        let _ = std::fs::remove_file(&part);
    }
    put.map(|()| ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<KernelConfig, CommandError> {
    let mut text = String::new();
    // One byte more than allowed, so that the parser sees an excess.
    File::open(path)
        .and_then(|file| {
            file.take(MAX_CONFIG_BYTES as u64 + 1)
                .read_to_string(&mut text)
        })
        .map_err(|source| CommandError::Read {
            path: path.into(),
            source,
        })?;
    text.parse().map_err(|source| CommandError::Parse {
        path: path.into(),
        source,
    })
}
