//! What must not compile outside this package: making an [`authz::Authorized`]
//! in any way but by the gate, or asking the gate about a message it has no
//! rule for.

#[test]
fn an_authorised_request_cannot_be_made_outside_the_gate() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
