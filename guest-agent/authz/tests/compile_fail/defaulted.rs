//! There is no authorised request of nothing.
fn main() {
    let _ = authz::Authorized::<u32>::default();
}
