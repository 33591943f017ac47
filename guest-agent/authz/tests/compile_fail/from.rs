//! No message turns into an authorised one by itself.
use protocols::wire::agent::SetPolicyRequest;

fn main() {
    let _: authz::Authorized<SetPolicyRequest> = SetPolicyRequest::new().into();
}
