//! `rootfs-builder`: guest images from files, without root.

mod arguments;

use arguments::{Arguments, Command, Format};
use clap::Parser;
use rootfs_builder::erofs::{self, ErofsError};
use rootfs_builder::initrd::{self, InitrdError};
use rootfs_builder::inspect::{self, InspectError};
use rootfs_builder::manifest::Manifest;
use rootfs_builder::output::{self, OutputError};
use serde::Serialize;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("build initrd")]
    Initrd(#[from] InitrdError),
    #[error("build EROFS image")]
    Erofs(#[from] ErofsError),
    #[error("inspect image")]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("SOURCE_DATE_EPOCH={0:?}: not a count of seconds that fits into 32 bits")]
    Epoch(OsString),
    #[error("write JSON")]
    Json(#[from] serde_json::Error),
    #[error("write to standard output")]
    Print(#[from] io::Error),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(": ");
                text.push_str(&error.to_string());
                cause = error.source();
            }
            eprintln!("rootfs-builder: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), CommandError> {
    match arguments.command {
        Command::Initrd(arguments) => {
            let built = initrd::build(&arguments.to_recipe(source_date_epoch()?))?;
            output::write_whole(&arguments.output, &built.bytes)?;
            if let Some(path) = &arguments.manifest {
                output::write_whole(path, &json(&built.manifest)?)?;
            }
            match arguments.output_format {
                Format::Json => io::stdout().write_all(&json(&built.manifest)?)?,
                Format::Text => {
                    summarise(&built.manifest, &arguments.output.display().to_string())?;
                }
            }
        }
        Command::Inspect {
            image,
            output_format,
        } => {
            let listing = inspect::inspect(&image)?;
            match output_format {
                Format::Json => io::stdout().write_all(&json(&listing)?)?,
                Format::Text => write!(io::stdout(), "{listing}")?,
            }
        }
        Command::TreeToErofs(arguments) => {
            let image = erofs::build(&arguments.to_request(source_date_epoch()?))?;
            match arguments.output_format {
                Format::Json => io::stdout().write_all(&json(&image)?)?,
                Format::Text => writeln!(
                    io::stdout(),
                    "{}: {} bytes, {} entries, sha256 {}",
                    arguments.output.display(),
                    image.size,
                    image.entries,
                    image.sha256
                )?,
            }
        }
    }
    Ok(())
}

/// The time of every file in an image, by the convention of
/// reproducible-builds.org; newc has 32 bits for it.
fn source_date_epoch() -> Result<u32, CommandError> {
    match std::env::var_os("SOURCE_DATE_EPOCH") {
        None => Ok(0),
        Some(text) => text
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or(CommandError::Epoch(text)),
    }
}

fn summarise(manifest: &Manifest, output: &str) -> io::Result<()> {
    let release = manifest.kernel_release.as_deref().unwrap_or("any kernel");
    let mut to = io::stdout().lock();
    writeln!(
        to,
        "{output}: {} bytes, {} modules for {release}, sha256 {}",
        manifest.image.size,
        manifest.modules.len(),
        manifest.image.sha256
    )
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, CommandError> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}
