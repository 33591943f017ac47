//! Guest images from files, without root, the same bytes from the same input.
//!
//! - [`contents`] is the recipe: a [`base`], agent, kernel modules, policy and
//!   files as entries of an [`archive`];
//! - [`initrd`] packs them; [`image`] makes a disk of them: a file system by
//!   [`ext4`] or [`erofs`], and by [`disk`] a partition table and the hash tree
//!   of [`verity`];
//! - [`crate::igvm`] makes the memory of a confidential guest of a kernel, its
//!   command line and its initrd, and knows what will be measured of it;
//! - [`spdx`] lists what lies in an image, for tools of others;
//! - [`inspect`] says what is in an image, which may come from anywhere;
//!   [`verify`](mod@verify) holds one against its [`manifest`], [`diff`](mod@diff)
//!   one against another.
//!
//! Nothing is written but through [`output`]: whole, or not at all.

pub mod contents;
pub mod image;
pub mod initrd;

pub mod archive;
pub mod base;
pub mod compression;
pub mod diff;
pub mod digest;
pub mod disk;
pub mod elf;
pub mod erofs;
pub mod ext4;
pub mod igvm;
pub mod input;
pub mod inspect;
pub mod manifest;
pub mod modules;
pub mod output;
pub mod packages;
pub mod spdx;
pub mod staging;
pub mod tool;
pub mod tree;
pub mod uuid;
pub mod verify;
pub mod verity;

#[cfg(test)]
mod sample;
