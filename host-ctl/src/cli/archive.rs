//! `template export|import`.

use super::arguments::{TemplateExportArguments, TemplateImportArguments};
use super::text::bytes;
use super::{CliError, Context, runtime};
use crate::config::{TemplateDigest, TemplateName};
use crate::sandbox::driver::{fresh_driver, strictest};
use crate::sandbox::vmm::Vmm;
use crate::store::{ArchiveKey, LEAKS, Protection, Store, Trust};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) fn export(
    context: &Context,
    store: &Store,
    arguments: &TemplateExportArguments,
) -> Result<ExitCode, CliError> {
    #[derive(Serialize)]
    struct Exported {
        digest: TemplateDigest,
        file: PathBuf,
        bytes: u64,
        encrypted: bool,
        signed: bool,
    }
    let key = arguments.key_file.as_deref().map(ArchiveKey::read);
    let protection = match (key.transpose()?, arguments.plaintext) {
        (Some(key), false) => Protection::Encrypted(key),
        (Some(key), true) => Protection::Signed(key),
        (None, true) => Protection::Plain,
        (None, false) => {
            return Err(CliError::Missing {
                what: "no --key-file to encrypt it with".to_owned(),
                hint: "give one (openssl rand -hex 32 makes what is in it), or --plaintext: \
                       whoever reads the file has all that was in the guest's memory",
            });
        }
    };
    let template = store.find(&arguments.template)?;
    let exported = Exported {
        bytes: store.export(&template, &arguments.file, &protection)?,
        digest: template.digest().clone(),
        file: arguments.file.clone(),
        encrypted: matches!(protection, Protection::Encrypted(_)),
        signed: !matches!(protection, Protection::Plain),
    };
    context.print(&exported, |exported| {
        let how = match (exported.encrypted, exported.signed) {
            (true, _) => "encrypted",
            (false, true) => "signed, readable for anybody",
            (false, false) => "not signed, readable for anybody",
        };
        format!(
            "{}: {} in {}, {how}\n",
            exported.digest,
            bytes(exported.bytes),
            exported.file.display()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Whether this host's VMM of a kind opens a template's memory for writing. One
/// that is not here does not: the template is for nothing but a cold boot then.
async fn writes_memory(vmm: Vmm) -> bool {
    let Ok(confinement) = strictest() else {
        return false;
    };
    let found = fresh_driver(vmm, None, confinement).await;
    found.is_ok_and(|driver| !driver.capabilities().private_memory_is_read_only)
}

pub(super) fn import(
    context: &Context,
    store: &Store,
    arguments: &TemplateImportArguments,
) -> Result<ExitCode, CliError> {
    #[derive(Serialize)]
    struct ImportedRow {
        digest: TemplateDigest,
        name: Option<TemplateName>,
        /// Whether it was there already.
        existing: bool,
        /// Who made it, if that was another user.
        shared_with: Option<u32>,
    }
    let trust = match (&arguments.key_file, arguments.trust_unsigned) {
        (Some(path), _) => Trust::Key(ArchiveKey::read(path)?),
        (None, true) => Trust::Anybody,
        (None, false) => {
            return Err(CliError::Missing {
                what: "no --key-file to verify it with".to_owned(),
                hint: "give the one it was made with, or --trust-unsigned: whoever made it may \
                       have put anything into guest and VMM state",
            });
        }
    };
    let limit = u64::from(arguments.limit) << 20;
    let (file, share) = (&arguments.file, arguments.share);
    let runtime = runtime()?;
    let writes_memory = |kind: &str| match kind.parse() {
        Ok(vmm) => runtime.block_on(writes_memory(vmm)),
        Err(_) => false,
    };
    let imported = store.import_template(file, &trust, share, limit, writes_memory)?;
    let digest = imported.template.digest().clone();
    if let Some(name) = &arguments.name {
        store.set_name(name, &digest)?;
    }
    let row = ImportedRow {
        digest,
        name: arguments.name.clone(),
        existing: imported.existing,
        shared_with: imported.shared_with,
    };
    context.print(&row, |row| {
        let mut text = match &row.name {
            Some(name) => format!("template {name} is {}\n", row.digest),
            None => format!("{}\n", row.digest),
        };
        if row.existing {
            text.push_str("it was there already\n");
        }
        if let Some(owner) = row.shared_with {
            text.push_str(&format!(
                "uid {owner}'s clones and ours have in common {LEAKS}\n"
            ));
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}
