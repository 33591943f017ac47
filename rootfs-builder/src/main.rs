//! `rootfs-builder`: guest images from files, without root.
//!
//! Exit status: 0, or 1 for an error, an image that is not what its manifest or
//! its reference says, and two images that differ.

mod arguments;

use arguments::{Arguments, Command, Format};
use arguments::{ContentsArguments, IgvmArguments, ImageArguments, InitrdArguments};
use clap::Parser;
use rootfs_builder::contents::{self, Contents, ContentsError};
use rootfs_builder::digest::Digest;
use rootfs_builder::erofs::{self, ErofsError};
use rootfs_builder::igvm::expected::MeasureError;
use rootfs_builder::igvm::{self, IgvmError, reference::ReferenceError};
use rootfs_builder::image::{self, ImageError};
use rootfs_builder::input::{self, InputError};
use rootfs_builder::inspect::{self, InspectError};
use rootfs_builder::manifest::{Kind, Manifest};
use rootfs_builder::output::{self, OutputError};
use rootfs_builder::verify::{self, Trusted, VerifyError};
use rootfs_builder::{diff, initrd, spdx};
use serde::Serialize;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("put the image's contents together")]
    Contents(#[from] ContentsError),
    #[error("compress the archive")]
    Compress(#[source] io::Error),
    #[error("build root disk")]
    Image(#[from] ImageError),
    #[error("build EROFS image")]
    Erofs(#[from] ErofsError),
    #[error("build IGVM file")]
    Igvm(#[from] IgvmError),
    #[error("measure IGVM file")]
    Input(#[from] InputError),
    #[error("measure {path}")]
    Measure { path: PathBuf, source: MeasureError },
    #[error("measure IGVM file")]
    Reference(#[from] ReferenceError),
    #[error("inspect image")]
    Inspect(#[from] InspectError),
    #[error("verify image")]
    Verify(#[from] VerifyError),
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
        Ok(code) => code,
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

fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    match arguments.command {
        Command::Initrd(arguments) => build_initrd(&arguments)?,
        Command::Image(arguments) => build_image(&arguments)?,
        Command::Verify {
            image,
            manifest,
            table,
            root_hash,
            data_blocks,
        } => {
            let known = root_hash.zip(data_blocks);
            let trusted = table.or(known.map(|(hash, blocks)| Trusted::of(hash, blocks)));
            return verify_image(&image, manifest, trusted);
        }
        Command::Diff { first, second } => {
            let (first, second) = (manifest_of(&first)?, manifest_of(&second)?);
            return report(&diff::diff(&first, &second), "");
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
        Command::Igvm(arguments) => build_igvm(&arguments)?,
        Command::Measure {
            image,
            reference,
            output_format,
        } => return measure(&image, reference.as_deref(), output_format),
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
    Ok(ExitCode::SUCCESS)
}

fn build_initrd(arguments: &InitrdArguments) -> Result<(), CommandError> {
    let (contents, list) = assemble(&arguments.contents, Kind::Initrd)?;
    let mut built =
        initrd::pack(contents, arguments.compression).map_err(CommandError::Compress)?;
    output::write_whole(&arguments.output, &built.bytes)?;
    built.manifest.spdx = write_list(&arguments.contents, list)?;
    if let Some(path) = &arguments.manifest {
        output::write_whole(path, &json(&built.manifest)?)?;
    }
    match arguments.output_format {
        Format::Json => io::stdout().write_all(&json(&built.manifest)?)?,
        Format::Text => summarise(&built.manifest, &arguments.output)?,
    }
    Ok(())
}

fn build_image(arguments: &ImageArguments) -> Result<(), CommandError> {
    let request = arguments.to_request();
    let beside = verify::manifest_beside(&arguments.output);
    let (contents, list) = assemble(&arguments.contents, request.file_system.kind())?;
    let mut manifest = image::build(contents, &request)?;
    manifest.spdx = write_list(&arguments.contents, list)?;
    output::write_whole(&beside, &json(&manifest)?)?;
    match arguments.output_format {
        Format::Json => io::stdout().write_all(&json(&manifest)?)?,
        Format::Text => {
            summarise(&manifest, &arguments.output)?;
            if let Some(words) = image::kernel_parameters(&manifest, &arguments.device) {
                writeln!(io::stdout(), "kernel parameters: {words}")?;
            }
        }
    }
    Ok(())
}

fn build_igvm(arguments: &IgvmArguments) -> Result<(), CommandError> {
    let reference = igvm::build(&arguments.to_request())?;
    let beside = verify::manifest_beside(&arguments.output);
    output::write_whole(&beside, &json(&reference)?)?;
    let mut to = io::stdout().lock();
    match arguments.output_format {
        Format::Json => to.write_all(&json(&reference)?)?,
        Format::Text => {
            writeln!(
                to,
                "{}: {} bytes, sha256 {}",
                arguments.output.display(),
                reference.image.size,
                reference.image.sha256
            )?;
            writeln!(to, "kernel command line: {}", reference.command_line)?;
            if let Some(expected) = &reference.expected {
                write!(to, "{expected}")?;
            }
        }
    }
    Ok(())
}

/// What reports will say; success if nothing contradicts it.
fn measure(
    image: &Path,
    reference: Option<&Path>,
    format: Format,
) -> Result<ExitCode, CommandError> {
    let bytes = input::read_regular(image, igvm::MAX_FILE_BYTES)?;
    let expected = igvm::expected::measure(&bytes).map_err(|source| CommandError::Measure {
        path: image.into(),
        source,
    })?;
    let mut findings = Vec::new();
    findings.extend(expected.iter().filter_map(igvm::Expected::finding));
    if let Some(path) = reference {
        let reference = igvm::reference::read(path)?;
        findings.extend(reference.findings(&bytes, &expected));
    }
    match format {
        Format::Json => io::stdout().write_all(&json(&expected)?)?,
        Format::Text => {
            let mut to = io::stdout().lock();
            for expected in &expected {
                write!(to, "{expected}")?;
            }
        }
    }
    for finding in &findings {
        eprintln!("rootfs-builder: {}: {finding}", image.display());
    }
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The contents, and the list of what is inside if one is wanted.
fn assemble(
    arguments: &ContentsArguments,
    kind: Kind,
) -> Result<(Contents, Option<Vec<u8>>), CommandError> {
    let recipe = arguments.to_recipe(source_date_epoch()?);
    let contents = contents::assemble(&recipe, kind)?;
    let list = match arguments.spdx {
        Some(_) => Some(json(&spdx::document(&contents))?),
        None => None,
    };
    Ok((contents, list))
}

/// Once there is an image; returns the list's digest.
fn write_list(
    arguments: &ContentsArguments,
    list: Option<Vec<u8>>,
) -> Result<Option<Digest>, CommandError> {
    let Some((path, list)) = arguments.spdx.as_ref().zip(list) else {
        return Ok(None);
    };
    output::write_whole(path, &list)?;
    Ok(Some(Digest::of(&list)))
}

/// By the manifest, unless something else is trusted; by both if both are given.
fn verify_image(
    image: &Path,
    manifest: Option<PathBuf>,
    trusted: Option<Trusted>,
) -> Result<ExitCode, CommandError> {
    let mut findings = Vec::new();
    if let Some(trusted) = &trusted {
        findings.extend(verify::verify_by(image, trusted)?);
        if findings.is_empty() && manifest.is_none() {
            eprintln!("rootfs-builder: {}: {}", image.display(), verify::NOT_BOUND);
        }
    }
    if manifest.is_some() || trusted.is_none() {
        let manifest = manifest.unwrap_or_else(|| verify::manifest_beside(image));
        findings.extend(verify::verify(image, &manifest)?);
    }
    report(&findings, &format!("{}: ", image.display()))
}

/// A manifest is told from an image by its name.
fn manifest_of(path: &Path) -> Result<Manifest, VerifyError> {
    if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        verify::read_manifest(path)
    } else {
        verify::read_manifest(&verify::manifest_beside(path))
    }
}

/// A line each; success if there are none.
fn report(lines: &[String], before: &str) -> Result<ExitCode, CommandError> {
    let mut to = io::stdout().lock();
    for line in lines {
        writeln!(to, "{before}{line}")?;
    }
    Ok(if lines.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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

fn summarise(manifest: &Manifest, output: &Path) -> io::Result<()> {
    let release = manifest.kernel_release.as_deref().unwrap_or("any kernel");
    let (modules, output) = (manifest.modules.len(), output.display());
    let mut to = io::stdout().lock();
    match &manifest.image {
        Some(image) => writeln!(
            to,
            "{output}: {} bytes, {modules} modules for {release}, sha256 {}",
            image.size, image.sha256
        ),
        None => writeln!(to, "{output}: {modules} modules for {release}"),
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, CommandError> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}
