//! The few instructions of a filter, and the code of a rule. The machine is
//! that of bpf(4); what it looks at is `struct seccomp_data`.

use super::{ArgumentOperator, ArgumentTest, SeccompAction};
use guest_kernel::seccomp::Instruction;

/// Where the number of the call lies, and the architecture.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
/// Where the first argument lies, and how far the next is: 64 bits each.
const ARGUMENT: u32 = 16;
const ARGUMENT_SIZE: u32 = 8;
const WORD: u32 = 4;

/// linux/bpf_common.h: class, size or operation, and source of the operand.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_NOT_LESS: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

/// Where a jump leads within the code of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    /// The next instruction.
    Next,
    /// Behind the test: it holds.
    Holds,
    /// Behind the rule: it does not apply.
    Fails,
}

pub(super) fn plain(code: u16, operand: u32) -> Instruction {
    jump(code, operand, 0, 0)
}

pub(super) fn jump(code: u16, operand: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction {
        code,
        if_true,
        if_false,
        operand,
    }
}

/// linux/seccomp.h, `SECCOMP_RET_*`.
pub(super) fn value(action: SeccompAction) -> u32 {
    match action {
        SeccompAction::KillThread => 0,
        SeccompAction::KillProcess => 0x8000_0000,
        SeccompAction::Trap => 0x0003_0000,
        SeccompAction::Errno(errno) => 0x0005_0000 | u32::from(errno),
        SeccompAction::Log => 0x7ffc_0000,
        SeccompAction::Allow => 0x7fff_0000,
    }
}

/// Ends with `returned` if all `tests` hold, and goes on behind it otherwise.
/// At most six tests: no jump is longer than its instruction can say.
pub(super) fn rule(tests: &[ArgumentTest], wide: bool, returned: u32) -> Vec<Instruction> {
    let mut code: Vec<(u16, u32, To, To)> = Vec::new();
    let mut ends = Vec::new();
    for test in tests {
        code.extend(test_code(test, wide));
        ends.push(code.len());
    }
    let end = code.len() + 1;
    let mut resolved: Vec<Instruction> = code
        .iter()
        .enumerate()
        .map(|(index, (operation, operand, if_true, if_false))| {
            let held = ends.iter().find(|end| **end > index);
            let held = held.copied().unwrap_or(end);
            let distance = |to: &To| {
                let target = match to {
                    To::Next => index + 1,
                    To::Holds => held,
                    To::Fails => end,
                };
                u8::try_from(target - index - 1).unwrap_or(u8::MAX)
            };
            jump(*operation, *operand, distance(if_true), distance(if_false))
        })
        .collect();
    resolved.push(plain(RETURN, returned));
    resolved
}

fn test_code(test: &ArgumentTest, wide: bool) -> Vec<(u16, u32, To, To)> {
    use ArgumentOperator as Operator;
    let place = ARGUMENT + u32::from(test.index) * ARGUMENT_SIZE;
    // Both architectures of these machines are little-endian.
    let load = |place| (LOAD, place, To::Next, To::Next);
    let compared = match test.operator {
        Operator::MaskedEqual => test.masked,
        _ => test.value,
    };
    let (high, low) = (upper(compared), lower(compared));
    // What is decided by the upper half alone: true, equal, false.
    let mut code = match (wide, test.operator) {
        // A register of 32 bits has no other half.
        (false, _) => Vec::new(),
        (true, Operator::Equal) => {
            vec![load(place + WORD), (JUMP_EQUAL, high, To::Next, To::Fails)]
        }
        (true, Operator::NotEqual) => {
            vec![load(place + WORD), (JUMP_EQUAL, high, To::Next, To::Holds)]
        }
        (true, Operator::Greater | Operator::GreaterOrEqual) => vec![
            load(place + WORD),
            (JUMP_GREATER, high, To::Holds, To::Next),
            (JUMP_EQUAL, high, To::Next, To::Fails),
        ],
        (true, Operator::Less | Operator::LessOrEqual) => vec![
            load(place + WORD),
            (JUMP_GREATER, high, To::Fails, To::Next),
            (JUMP_EQUAL, high, To::Next, To::Holds),
        ],
        (true, Operator::MaskedEqual) => vec![
            load(place + WORD),
            (AND, upper(test.value), To::Next, To::Next),
            (JUMP_EQUAL, high, To::Next, To::Fails),
        ],
    };
    code.push(load(place));
    if test.operator == Operator::MaskedEqual {
        code.push((AND, lower(test.value), To::Next, To::Next));
    }
    code.push(match test.operator {
        Operator::Equal | Operator::MaskedEqual => (JUMP_EQUAL, low, To::Holds, To::Fails),
        Operator::NotEqual => (JUMP_EQUAL, low, To::Fails, To::Holds),
        Operator::Greater => (JUMP_GREATER, low, To::Holds, To::Fails),
        Operator::GreaterOrEqual => (JUMP_NOT_LESS, low, To::Holds, To::Fails),
        Operator::Less => (JUMP_NOT_LESS, low, To::Fails, To::Holds),
        Operator::LessOrEqual => (JUMP_GREATER, low, To::Fails, To::Holds),
    });
    code
}

fn upper(value: u64) -> u32 {
    u32::try_from(value >> u32::BITS).unwrap_or(u32::MAX)
}

fn lower(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}
