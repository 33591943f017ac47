//! A message without a line in the table cannot be authorised.
use protocols::wire::agent::CheckRequest;

fn main() {
    let gate = authz::Gate::new(policy::Policy::AllowAll);
    let _ = gate.authorize(CheckRequest::new());
}
