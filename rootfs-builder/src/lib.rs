//! Guest images from files, without root, the same bytes from the same input.
//!
//! - [`initrd`] is the recipe of the agent's initrd: agent, kernel modules,
//!   policy and files into an [`archive`];
//! - [`erofs`] turns a directory tree into an EROFS image, through `mkfs.erofs`,
//!   after [`tree`] has looked at every entry;
//! - [`inspect`] lists an archive, which may come from anywhere.
//!
//! Nothing is written but through [`output`]: whole, or not at all.

pub mod initrd;

pub mod archive;
pub mod compression;
pub mod digest;
pub mod elf;
pub mod erofs;
pub mod input;
pub mod inspect;
pub mod manifest;
pub mod modules;
pub mod output;
pub mod tree;

#[cfg(test)]
mod sample;
