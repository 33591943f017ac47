//! An authorised request cannot be written down.
use protocols::wire::agent::SetPolicyRequest;

fn main() {
    let _ = authz::Authorized {
        request: SetPolicyRequest::new(),
        overridden: None,
    };
}
