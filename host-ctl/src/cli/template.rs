//! `template build|save|list|inspect|verify|rm`; see `archive` for the others.

use super::arguments::{
    TemplateArgument, TemplateBuildArguments, TemplateCommand, TemplateSaveArguments,
};
use super::text::{Table, bytes, escape, since};
use super::{CliError, Context, archive, interrupted, runtime};
use crate::config::{SandboxId, TemplateDigest, TemplateName};
use crate::sandbox::driver::{GuestKernel, driver};
use crate::store::{CloneRefusal, ColdBoots, Manifest, SavedWarmUp, Store, Summary};
use crate::supervisor::control::SavedSandbox;
use crate::template::{Recipe, Workplace, build};
use crate::timeline::{Report, Timeline};
use serde::Serialize;
use std::fmt::Write as _;
use std::pin::pin;
use std::process::ExitCode;

pub(super) fn template(context: &Context, command: TemplateCommand) -> Result<ExitCode, CliError> {
    let store = Store::open(context.paths())?;
    match command {
        TemplateCommand::Build(arguments) => build_template(context, &store, *arguments),
        TemplateCommand::Save(arguments) => save(context, &arguments),
        TemplateCommand::List => list(context, &store),
        TemplateCommand::Inspect(argument) => inspect(context, &store, &argument),
        TemplateCommand::Verify(argument) => verify(context, &store, &argument),
        TemplateCommand::Export(arguments) => archive::export(context, &store, &arguments),
        TemplateCommand::Import(arguments) => archive::import(context, &store, &arguments),
        TemplateCommand::Rm(argument) => remove(context, &store, &argument),
    }
}

#[derive(Serialize)]
struct BuiltRow {
    name: TemplateName,
    digest: TemplateDigest,
    /// Whether it was there already.
    existing: bool,
    accelerator: String,
    accelerator_reason: String,
    save_ms: Option<f64>,
    state_bytes: Option<u64>,
    publish_ms: Option<f64>,
    touched_bytes: Option<u64>,
    timeline: Report,
}

fn build_template(
    context: &Context,
    store: &Store,
    arguments: TemplateBuildArguments,
) -> Result<ExitCode, CliError> {
    let insecure = arguments.machine.insecure;
    let recipe = Recipe {
        name: arguments.name,
        spec: arguments.machine.spec(arguments.container.as_ref())?,
        warm_up: SavedWarmUp {
            ready: arguments.ready.map(|words| words.0),
            warm: arguments.warm.into_iter().map(|words| words.0).collect(),
        },
    };
    let timeline = Timeline::new();
    let kernel = store.import(&recipe.spec.kernel)?;
    let (built, driver) = runtime()?.block_on(async {
        let kernel = GuestKernel {
            path: kernel.path(),
            digest: kernel.sha256(),
        };
        let driver = driver(context.paths(), recipe.spec.vmm, kernel, insecure).await?;
        let place = Workplace {
            paths: context.paths(),
            store,
            driver: &driver,
        };
        let built = build(&recipe, place, &timeline, pin!(interrupted())).await?;
        Ok::<_, CliError>((built, driver))
    })?;
    let capabilities = driver.capabilities();
    let cost = built.cost;
    let row = BuiltRow {
        name: recipe.name,
        digest: built.template.digest().clone(),
        existing: cost.is_none(),
        accelerator: capabilities.accelerator.to_string(),
        accelerator_reason: capabilities.accelerator_reason.clone(),
        save_ms: cost.map(|cost| cost.save.as_secs_f64() * 1e3),
        state_bytes: cost.map(|cost| cost.state_bytes),
        publish_ms: cost.map(|cost| cost.publish.as_secs_f64() * 1e3),
        touched_bytes: cost.map(|cost| cost.touched_bytes),
        timeline: timeline.report(),
    };
    context.print(&row, describe_built)?;
    Ok(ExitCode::SUCCESS)
}

fn describe_built(row: &BuiltRow) -> String {
    let mut text = format!("template {} is {}\n", row.name, row.digest);
    if row.existing {
        text.push_str("it was there already\n");
    }
    let (accelerator, reason) = (&row.accelerator, escape(&row.accelerator_reason));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "accelerator: {accelerator}, because {reason}");
    if let (Some(save), Some(state)) = (row.save_ms, row.state_bytes) {
        let _ = writeln!(text, "save: {save:.1} ms, {} of device state", bytes(state));
    }
    if let (Some(publish), Some(touched)) = (row.publish_ms, row.touched_bytes) {
        let _ = writeln!(
            text,
            "publish: {publish:.1} ms, {} of memory touched",
            bytes(touched)
        );
    }
    text
}

/// The sandbox's supervisor does it: what happens to us meanwhile does not matter.
fn save(context: &Context, arguments: &TemplateSaveArguments) -> Result<ExitCode, CliError> {
    #[derive(Serialize)]
    struct SavedRow {
        name: TemplateName,
        sandbox: SandboxId,
        #[serde(flatten)]
        saved: SavedSandbox,
    }
    let sandbox = context.sandbox(&arguments.sandbox)?;
    let name = arguments.name.clone();
    let saved = runtime()?.block_on(context.supervisors.save(&sandbox, &name))?;
    let row = SavedRow {
        name,
        sandbox,
        saved,
    };
    context.print(&row, |row| {
        let saved = &row.saved;
        let parent = saved
            .parent
            .as_ref()
            .map_or("nothing", |digest| digest.short());
        format!(
            "template {} is {}\nsandbox {} is no more; generation {}, after {parent}\n\
             save: {:.1} ms, {}\npublish: {:.1} ms, {} of memory touched\n\
             it holds all that was in the sandbox's memory, secrets too: every clone has them\n",
            row.name,
            saved.digest,
            row.sandbox,
            saved.generation,
            milliseconds(saved.save_micros),
            bytes(saved.saved_bytes),
            milliseconds(saved.publish_micros),
            bytes(saved.touched_bytes),
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn milliseconds(micros: u64) -> f64 {
    std::time::Duration::from_micros(micros).as_secs_f64() * 1e3
}

fn list(context: &Context, store: &Store) -> Result<ExitCode, CliError> {
    #[derive(Serialize)]
    struct Listed {
        templates: Vec<Summary>,
    }
    let listed = Listed {
        templates: store.list()?,
    };
    context.print(&listed, |Listed { templates }| {
        let mut table = Table::new(&["NAME", "DIGEST", "CREATED", "MEMORY", "ON DISK", "USABLE"]);
        for template in templates {
            let names: Vec<_> = template.names.iter().map(TemplateName::as_str).collect();
            let memory = |mib| format!("{mib} MiB");
            table.row([
                names.join(","),
                template.digest.short().to_owned(),
                template.created.map_or_else(|| "-".to_owned(), since),
                template.memory_mib.map_or_else(|| "-".to_owned(), memory),
                bytes(template.disk_bytes),
                template.refusal.clone().unwrap_or_else(|| "yes".to_owned()),
            ]);
        }
        table.to_string()
    })?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(
    context: &Context,
    store: &Store,
    argument: &TemplateArgument,
) -> Result<ExitCode, CliError> {
    #[derive(Serialize)]
    struct Inspected<'a> {
        digest: &'a TemplateDigest,
        /// How often something was booted in place of a clone.
        cold_boots: ColdBoots,
        #[serde(flatten)]
        manifest: &'a Manifest,
    }
    let template = store.find(&argument.template)?;
    let inspected = Inspected {
        digest: template.digest(),
        cold_boots: store.cold_boots(template.digest())?,
        manifest: template.manifest(),
    };
    // A manifest is for programs; people get the same, which is readable.
    super::print(super::Output::Json, &inspected, |_| String::new())?;
    let _ = context;
    Ok(ExitCode::SUCCESS)
}

fn verify(
    context: &Context,
    store: &Store,
    argument: &TemplateArgument,
) -> Result<ExitCode, CliError> {
    #[derive(Serialize)]
    struct Verified {
        digest: TemplateDigest,
        whole: bool,
        hashed: Vec<String>,
        refusal: Option<String>,
    }
    let digest = store.resolve(&argument.template)?;
    let checked: Result<_, CloneRefusal> = store
        .load(&digest)
        .and_then(|template| store.verify(&template));
    let (hashed, refusal) = match checked {
        Ok(checked) => (checked.hashed, None),
        Err(refusal) => (Vec::new(), Some(refusal.reason())),
    };
    let verified = Verified {
        digest,
        whole: refusal.is_none(),
        hashed,
        refusal,
    };
    context.print(&verified, |verified| match &verified.refusal {
        None => format!(
            "{}: whole, {} files\n",
            verified.digest,
            verified.hashed.len()
        ),
        Some(reason) => format!("{}: {}\n", verified.digest, escape(reason)),
    })?;
    Ok(if verified.whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn remove(
    context: &Context,
    store: &Store,
    argument: &TemplateArgument,
) -> Result<ExitCode, CliError> {
    let digest = store.resolve(&argument.template)?;
    store.remove(&digest)?;
    context.print(&serde_json::json!({ "removed": digest }), |_| {
        format!("{digest}: removed\n")
    })?;
    Ok(ExitCode::SUCCESS)
}
