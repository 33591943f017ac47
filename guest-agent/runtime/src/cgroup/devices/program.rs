//! From rules to the program the kernel asks (`BPF_PROG_TYPE_CGROUP_DEVICE`).
//!
//! It goes through the rules from the last to the first and keeps the kinds of
//! access that nothing has been said about yet.

use super::{DeviceKind, DeviceRule, transports, with_own};
use crate::cgroup::CgroupError;
use guest_kernel::bpf::{Instruction, attach_device_program, load_device_program};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The most rules of a spec: what it takes is well below what any kernel has
/// room for.
const RULES_MAX: usize = 400;

/// linux/bpf_common.h and linux/bpf.h: class, operation, source.
pub(super) const LOAD_WORD: u8 = 0x61;
pub(super) const MOVE: u8 = 0xbf;
pub(super) const SET: u8 = 0xb7;
pub(super) const SHIFT_RIGHT: u8 = 0x77;
pub(super) const AND: u8 = 0x57;
pub(super) const JUMP: u8 = 0x05;
/// Of the lower 32 bits, as the rest.
pub(super) const JUMP_NOT_EQUAL: u8 = 0x56;
pub(super) const JUMP_ANY_BIT: u8 = 0x46;
pub(super) const EXIT: u8 = 0x95;

/// What the program is given: the address of `struct bpf_cgroup_dev_ctx`.
const CONTEXT: u8 = 1;
/// What it makes of it.
const RESULT: u8 = 0;
const KIND: u8 = 2;
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
/// `BPF_DEVCG_DEV_*`.
pub(super) const BLOCK: u32 = 1;
pub(super) const CHARACTER: u32 = 2;
/// The kind is in the lower half of a word, the access in the upper.
const HALF: i32 = 16;
const LOWER_HALF: i32 = 0xffff;

/// A program, ready to be attached.
#[derive(Debug)]
pub(in crate::cgroup) struct DeviceProgram(pub(super) Vec<Instruction>);

impl DeviceProgram {
    /// The program of `rules` and of the agent's own.
    pub(in crate::cgroup) fn of(rules: &[DeviceRule]) -> Result<Self, CgroupError> {
        if rules.len() > RULES_MAX {
            return Err(CgroupError::DeviceRules(rules.len()));
        }
        Ok(Self::assemble(&with_own(rules, &transports())))
    }

    pub(super) fn assemble(rules: &[DeviceRule]) -> Self {
        let mut code = vec![
            load(KIND, 0),
            register(MOVE, OPEN, KIND),
            constant(SHIFT_RIGHT, OPEN, HALF),
            constant(AND, KIND, LOWER_HALF),
            load(MAJOR, 4),
            load(MINOR, 8),
        ];
        for rule in rules.iter().rev() {
            code.extend(rule_code(rule));
        }
        code.extend(says(false));
        Self(code)
    }

    /// Has it asked from now on in `cgroup`.
    pub(in crate::cgroup) fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<()> {
        let program = load_device_program(&self.0)?;
        attach_device_program(program.as_fd(), cgroup)
    }
}

fn rule_code(rule: &DeviceRule) -> Vec<Instruction> {
    let kind = match rule.kind {
        DeviceKind::Any => None,
        DeviceKind::Block => Some(BLOCK),
        DeviceKind::Character => Some(CHARACTER),
    };
    let access = i32::from(rule.access.0);
    let decision: Vec<Instruction> = if rule.allow {
        let mut code = vec![
            constant(AND, OPEN, !access),
            jump(JUMP_NOT_EQUAL, OPEN, 0, 2),
        ];
        code.extend(says(true));
        code
    } else {
        let mut code = vec![jump(JUMP_ANY_BIT, OPEN, access, 1), jump(JUMP, 0, 0, 2)];
        code.extend(says(false));
        code
    };
    let tests: Vec<(u8, u32)> = [(KIND, kind), (MAJOR, rule.major), (MINOR, rule.minor)]
        .into_iter()
        .filter_map(|(register, value)| Some((register, value?)))
        .collect();
    let mut code = Vec::with_capacity(tests.len() + decision.len());
    for (index, (register, value)) in tests.iter().enumerate() {
        // Over the other tests and the decision.
        let skipped = tests.len() - index - 1 + decision.len();
        let skipped = i16::try_from(skipped).unwrap_or(i16::MAX);
        code.push(jump(
            JUMP_NOT_EQUAL,
            *register,
            value.cast_signed(),
            skipped,
        ));
    }
    code.extend(decision);
    code
}

fn says(allowed: bool) -> [Instruction; 2] {
    [
        constant(SET, RESULT, i32::from(allowed)),
        constant(EXIT, RESULT, 0),
    ]
}

fn load(to: u8, offset: i16) -> Instruction {
    Instruction {
        code: LOAD_WORD,
        registers: to | CONTEXT << 4,
        offset,
        immediate: 0,
    }
}

fn register(code: u8, to: u8, from: u8) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset: 0,
        immediate: 0,
    }
}

fn constant(code: u8, to: u8, immediate: i32) -> Instruction {
    jump(code, to, immediate, 0)
}

fn jump(code: u8, register: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction {
        code,
        registers: register,
        offset,
        immediate,
    }
}
