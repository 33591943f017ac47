//! The containers by name. The lock is held for a look-up and never longer:
//! what a look-up gives is a cheap handle.

use super::container::Container;
use super::error::ServiceError;
use guest_runtime::ContainerId;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
enum Slot {
    /// A recipe is creating it; the name is taken.
    Reserved,
    Ready(Arc<Container>),
}

/// Name -> container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    slots: Arc<Mutex<HashMap<ContainerId, Slot>>>,
}

/// A name that is taken for a container being created; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    registry: Registry,
    id: ContainerId,
    committed: bool,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Slot>> {
        // The map is whole even if a holder panicked: no step under the lock
        // can fail half way.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the name, or says that it is taken: a duplicate never reaches the
    /// container that has it.
    pub(crate) fn reserve(&self, id: &ContainerId) -> Result<Reservation, ServiceError> {
        match self.lock().entry(id.clone()) {
            Entry::Occupied(_) => Err(ServiceError::AlreadyExists(format!("container {id}"))),
            Entry::Vacant(entry) => {
                entry.insert(Slot::Reserved);
                Ok(Reservation {
                    registry: self.clone(),
                    id: id.clone(),
                    committed: false,
                })
            }
        }
    }

    /// The container of that name.
    pub(crate) fn get(&self, id: &ContainerId) -> Result<Arc<Container>, ServiceError> {
        match self.lock().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            _ => Err(ServiceError::UnknownContainer(id.clone())),
        }
    }

    /// All containers that are ready.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.lock()
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready(container) => Some(container.clone()),
                Slot::Reserved => None,
            })
            .collect()
    }

    /// Forgets a container that was removed.
    pub(crate) fn forget(&self, id: &ContainerId) {
        self.lock().remove(id);
    }
}

impl Reservation {
    /// The recipe succeeded: the name now leads to `container`.
    pub(crate) fn commit(mut self, container: Arc<Container>) {
        self.committed = true;
        self.registry
            .lock()
            .insert(self.id.clone(), Slot::Ready(container));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.committed {
            self.registry.forget(&self.id);
        }
    }
}
