//! From the modules that are wanted to those that are loaded, in order.

use super::{MAX_MODULE_BYTES, Module, ModuleDirectory, ModuleError};
use crate::elf;
use crate::input;
use kernel_config::requirement::forbidden_module;
use std::collections::BTreeMap;

/// How far the walk is with a module.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// What it depends on is being looked at.
    Open,
    /// It is in the list.
    Done,
}

impl ModuleDirectory {
    /// The wanted modules and all they depend on, each after what it needs;
    /// what is built in is left out.
    ///
    /// # Errors
    /// See [`ModuleError`]; a forbidden module is refused even as a dependency.
    pub fn resolve<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Module>, ModuleError> {
        let mut walk = Walk {
            directory: self,
            progress: BTreeMap::new(),
            loaded: Vec::new(),
        };
        for name in wanted {
            walk.visit(&name.replace('-', "_"), "the guest")?;
        }
        Ok(walk.loaded)
    }
}

struct Walk<'a> {
    directory: &'a ModuleDirectory,
    progress: BTreeMap<String, Progress>,
    loaded: Vec<Module>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str, wanted_by: &str) -> Result<(), ModuleError> {
        match self.progress.get(name) {
            Some(Progress::Done) => return Ok(()),
            Some(Progress::Open) => return Err(ModuleError::Circle(name.into())),
            None => {}
        }
        if let Some(forbidden) = forbidden_module(name) {
            return Err(ModuleError::Forbidden(*forbidden));
        }
        let Some(path) = self.directory.files.get(name) else {
            return self.absent(name, wanted_by);
        };
        let bytes = input::read_regular(path, MAX_MODULE_BYTES)?;
        let info = elf::module_info(&bytes).map_err(|source| ModuleError::Elf {
            path: path.clone(),
            source,
        })?;
        if info.name != name {
            return Err(ModuleError::Name {
                path: path.clone(),
                name: info.name,
            });
        }
        if let Some(first) = self.loaded.first()
            && first.release != info.release
        {
            return Err(ModuleError::Release {
                name: name.into(),
                found: info.release,
                expected: first.release.clone(),
            });
        }
        self.progress.insert(name.into(), Progress::Open);
        for dependency in &info.depends {
            self.visit(dependency, name)?;
        }
        self.progress.insert(name.into(), Progress::Done);
        self.loaded.push(Module {
            name: name.into(),
            bytes,
            release: info.release,
            machine: info.machine,
        });
        Ok(())
    }

    fn absent(&self, name: &str, wanted_by: &str) -> Result<(), ModuleError> {
        if self.directory.built_in.contains(name) {
            return Ok(());
        }
        let name = name.to_owned();
        Err(match self.directory.packed.get(&name) {
            Some(path) => ModuleError::Packed {
                name,
                path: path.clone(),
            },
            None => ModuleError::Missing {
                name,
                wanted_by: wanted_by.into(),
                directory: self.directory.directory.clone(),
            },
        })
    }
}
