//! Lets a test kill this process at a named step.
//!
//! In builds with debug assertions the variable `TARDIGRADE_KILL_AT` names the
//! step at which the process sends itself SIGKILL: no destructor runs, as when
//! a machine's memory runs out. Release builds contain none of this.

/// Marks a step of a recipe, before its effect.
pub fn step(name: &str) {
    #[cfg(debug_assertions)]
    if std::env::var_os("TARDIGRADE_KILL_AT").is_some_and(|wanted| wanted == *name) {
        kill_self();
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
fn kill_self() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    loop {
        // The signal cannot be caught; the loop is for the moment until it is
        // delivered, should another thread be the one that receives it.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}
