//! What was judged is what runs.
use protocols::wire::agent::SetPolicyRequest;

fn alter(request: &mut authz::Authorized<SetPolicyRequest>) {
    request.get().policy.clear();
}

fn main() {
    let _ = alter;
}
