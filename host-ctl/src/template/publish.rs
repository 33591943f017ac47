//! How a build and a save end: what was saved becomes a template, and has a
//! name.

use super::freeze::Frozen;
use super::kept::Kept;
use super::{BuildError, Built, Cost};
use crate::config::TemplateName;
use crate::store::{BuildLock, Draft, Staging, Store, Template};
use crate::timeline::Timeline;

/// What a template is published with.
#[derive(Clone, Copy)]
pub(super) struct Publication<'a> {
    pub(super) store: &'a Store,
    pub(super) lock: &'a BuildLock,
    pub(super) kept: &'a Kept,
    /// See [`Draft::memory_opened_for_writing`].
    pub(super) memory_opened_for_writing: bool,
    pub(super) naming: Naming<'a>,
}

/// How a template gets its name.
#[derive(Clone, Copy)]
pub(super) struct Naming<'a> {
    pub(super) name: &'a TemplateName,
    /// What the step is called, see [`crate::timeline::step`].
    pub(super) step: &'static str,
}

impl Publication<'_> {
    /// Puts the template in its place, and names it. Its VM must be dead.
    ///
    /// # Errors
    /// When the store does not take it, of which nothing is left then; or when
    /// only its name could not be set ([`BuildError::Unnamed`]).
    pub(super) fn publish(
        self,
        staging: Staging,
        frozen: Frozen,
        timeline: &Timeline,
    ) -> Result<Built, BuildError> {
        let draft = Draft {
            imported: None,
            agent_version: frozen.agent_version,
            quiesce_id: *frozen.quiesce_id.as_bytes(),
            blobs: self.kept.blobs(),
            memory_opened_for_writing: self.memory_opened_for_writing,
        };
        let published = self.store.publish(staging, self.lock, &draft, timeline)?;
        self.naming.set(self.store, &published.template, timeline)?;
        Ok(Built {
            template: published.template,
            cost: Some(Cost {
                state_bytes: frozen.state_bytes,
                save: frozen.save,
                touched_bytes: published.touched_bytes,
                publish: published.took,
            }),
        })
    }
}

impl Naming<'_> {
    /// Lets the name stand for a template that is there.
    ///
    /// # Errors
    /// [`BuildError::Unnamed`].
    pub(super) fn set(
        self,
        store: &Store,
        template: &Template,
        timeline: &Timeline,
    ) -> Result<(), BuildError> {
        let _span = timeline.step(self.step);
        let digest = template.digest();
        store
            .set_name(self.name, digest)
            .map_err(|source| BuildError::Unnamed {
                digest: digest.clone(),
                source,
            })
    }
}
