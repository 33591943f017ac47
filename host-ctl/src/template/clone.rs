//! Whether a stored template can be cloned here and now.

use hypervisor::VmSpec;

use super::requirements::{Images, Platform, any_vm, requirements, sandbox_spec};
use crate::config::{TemplateDigest, hexadecimal_bytes};
use crate::sandbox::driver::Driver;
use crate::sandbox::spec::SandboxSpec;
use crate::store::{CloneRefusal, SavedWarmUp, Store, StoreError, Template, compare};

/// All that a restore needs. The files were found as published a moment ago.
#[derive(Debug, Clone)]
pub struct ClonePlan {
    /// The template: its directory holds the state, its memory the RAM.
    pub template: Template,
    /// The sandbox it was made from.
    pub spec: SandboxSpec,
    /// The VM it was saved from, device for device. Its sockets, its name, its
    /// log and its RAM are placeholders that the restore must rebind.
    pub vm: VmSpec,
    /// Names the freeze that the clone's thaw ends.
    pub quiesce_id: [u8; 16],
}

/// Reads a template, compares it with what this program, driver and VMM would
/// make of the same sandbox for this user, and looks at every file: inode, size
/// and times, and the content of those that do not match.
///
/// # Errors
/// Why no clone can be made of it: boot [`cold_spec`] instead.
pub fn plan_clone(
    store: &Store,
    digest: &TemplateDigest,
    driver: &Driver,
) -> Result<ClonePlan, CloneRefusal> {
    let template = store.load(digest)?;
    let have = &template.manifest().requirements;
    let spec = sandbox_spec(have, store)?;
    let images = Images::of(have);
    let platform = Platform::of(store, driver)?;
    let capabilities = driver.capabilities();
    // Whose it is, is no question of what fits.
    let origin = have.origin.clone();
    let mut wanted = requirements(
        &spec,
        &images,
        &have.warm_up,
        origin,
        capabilities,
        &platform,
    );
    // Whose it may be, the store has decided.
    wanted.owner = have.owner;
    if let Some(difference) = compare(&wanted, have).map_err(Box::new)? {
        return Err(difference.into());
    }
    store.check(&template)?;
    let quiesce_id = hexadecimal_bytes(&template.manifest().quiesce_id)
        // Sealed by us, so that only a defect of ours could have written it.
        .ok_or(CloneRefusal::Forged)?;
    Ok(ClonePlan {
        vm: any_vm(&spec),
        spec,
        quiesce_id,
        template,
    })
}

/// The template that holds the machine of a sandbox with nothing in it, if one
/// was built here: of the same size, devices, files and VMM. One that an archive
/// has brought is not taken unasked. `spec` is made of kept files.
///
/// # Errors
/// When files or CPU cannot be told.
pub fn emptied_template(
    store: &Store,
    spec: &SandboxSpec,
    driver: &Driver,
) -> Result<Option<TemplateDigest>, StoreError> {
    let images = Images {
        kernel: store.digest_of(&spec.kernel)?,
        initrd: store.digest_of(&spec.initrd)?,
        disks: vec![None; spec.disks.len()],
    };
    let platform = Platform::of(store, driver)?;
    let wanted = requirements(
        &spec.emptied(),
        &images,
        &SavedWarmUp::default(),
        None,
        driver.capabilities(),
        &platform,
    );
    let digest = wanted.digest()?;
    let imported = store
        .load(&digest)
        .is_ok_and(|template| template.manifest().imported.is_some());
    Ok((store.has(&digest) && !imported).then_some(digest))
}

/// What to boot when a template cannot be cloned: only its manifest is read. A
/// template that was saved from a sandbox in use is no more than its machine
/// then: the caller must not take it for the template.
///
/// # Errors
/// When there is no manifest of ours to read either.
pub fn cold_spec(store: &Store, digest: &TemplateDigest) -> Result<SandboxSpec, CloneRefusal> {
    let template = store.load(digest)?;
    sandbox_spec(&template.manifest().requirements, store)
}
