//! Only the gate starts the phase, and only for an authorised Quiesce.
use protocols::wire::lifecycle::QuiesceRequest;

fn main() {
    let gate = authz::Gate::new(policy::Policy::AllowAll);
    let _ = gate.quiesce(&QuiesceRequest::new());
}
