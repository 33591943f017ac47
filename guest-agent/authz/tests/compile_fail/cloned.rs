//! One permission is one effect.
fn twice(request: authz::Authorized<u32>) -> [authz::Authorized<u32>; 2] {
    [request.clone(), request]
}

fn main() {
    let _ = twice;
}
