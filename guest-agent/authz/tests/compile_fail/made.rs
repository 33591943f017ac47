//! Its maker is not public.
use protocols::wire::agent::SetPolicyRequest;

fn main() {
    let _ = authz::Authorized::new(SetPolicyRequest::new(), None);
}
