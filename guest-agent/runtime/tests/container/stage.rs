//! A program that can be a container's stage, as the agent is, for the tests.

fn main() {
    if std::env::args().nth(1).as_deref() == Some(guest_runtime::container::STAGE_WORD) {
        guest_runtime::container::stage_main();
    }
    eprintln!("this program is only for the tests of guest-runtime");
}
