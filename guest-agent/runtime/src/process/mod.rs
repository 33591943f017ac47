//! A process that was started here: its end, its signals, its streams.

mod exit;
mod stdio;

pub(crate) use exit::reap_now;
pub use exit::{ExitStatus, Process};
pub use stdio::{OutputReader, StdinWriter, Stdio, Terminal, WindowSize};

pub(crate) use stdio::{ChildStdio, pipes};
