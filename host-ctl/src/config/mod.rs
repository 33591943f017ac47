//! Where the host side keeps its state, and the names of things in it.
//!
//! The state root holds the store (templates and their blobs) and one run
//! directory a sandbox. Everything below the root is private to one user:
//! whoever can write there can replace the memory that a clone wakes up with.

mod name;
mod paths;
mod random;
mod root;
mod users;

pub use name::{NameError, SandboxId, TemplateDigest, TemplateName};
pub use paths::{Paths, SandboxPaths};
pub use random::{hexadecimal, hexadecimal_bytes, random_bytes};
pub use root::ConfigError;
pub(crate) use root::private_directory;
pub use users::first_vmm_user;
