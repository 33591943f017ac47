//! The program host-ctl: a thin command line over the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    host_ctl::cli::run(std::env::args_os())
}
