//! From a profile to the program that the kernel asks about each system call:
//! for each architecture a binary search over ranges of numbers.

use super::instruction::{
    ARCHITECTURE, JUMP, JUMP_EQUAL, JUMP_NOT_LESS, LOAD, NUMBER, RETURN, jump, plain, rule, value,
};
use super::table::{X32_BIT, is_known, number};
use super::{ArgumentTest, SeccompAction, SeccompArchitecture, SeccompProfile, SeccompRule};
use crate::container::error::Refused;
use guest_kernel::seccomp::{INSTRUCTIONS_MAX, Instruction, install};
use std::collections::BTreeMap;
use std::io;

/// A program, ready to be installed.
#[derive(Debug)]
pub(in crate::container) struct Filter {
    pub(super) program: Vec<Instruction>,
    flags: u32,
}

/// What becomes of one system call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Decision {
    /// The first that holds decides;
    tested: Vec<(Vec<ArgumentTest>, SeccompAction)>,
    /// then this; then the profile's default.
    otherwise: Option<SeccompAction>,
}

/// linux/audit.h, `AUDIT_ARCH_*`; x32 has that of x86_64.
fn audit_number(architecture: SeccompArchitecture) -> Option<u32> {
    Some(match architecture {
        SeccompArchitecture::X86_64 | SeccompArchitecture::X32 => 0xc000_003e,
        SeccompArchitecture::X86 => 0x4000_0003,
        SeccompArchitecture::Aarch64 => 0xc000_00b7,
        SeccompArchitecture::Arm => 0x4000_0028,
        SeccompArchitecture::Foreign => return None,
    })
}

/// The machine's own.
const NATIVE: SeccompArchitecture = if cfg!(target_arch = "x86_64") {
    SeccompArchitecture::X86_64
} else if cfg!(target_arch = "aarch64") {
    SeccompArchitecture::Aarch64
} else {
    SeccompArchitecture::Foreign
};

impl Filter {
    /// # Errors
    /// What cannot be filtered.
    pub(in crate::container) fn of(profile: &SeccompProfile) -> Result<Self, Refused> {
        Self::on(NATIVE, profile)
    }

    pub(super) fn on(
        native: SeccompArchitecture,
        profile: &SeccompProfile,
    ) -> Result<Self, Refused> {
        let unknown = |rule: &&SeccompRule| {
            profile.default_action.lets_through() && !rule.action.lets_through()
        };
        // A name that is not known is no call that could be let through; but
        // one that was to be kept back would be.
        for rule in profile.rules.iter().filter(unknown) {
            if let Some(name) = rule.names.iter().find(|name| !is_known(name)) {
                return Err(Refused(format!("seccomp rule for system call {name:?}")));
            }
        }
        let mut named = profile.architectures.clone();
        named.push(native);
        let mut program = vec![plain(LOAD, ARCHITECTURE)];
        for architecture in [
            SeccompArchitecture::X86_64,
            SeccompArchitecture::X86,
            SeccompArchitecture::Aarch64,
            SeccompArchitecture::Arm,
        ] {
            let x32 = architecture == SeccompArchitecture::X86_64
                && named.contains(&SeccompArchitecture::X32);
            if !x32 && !named.contains(&architecture) {
                continue;
            }
            let Some(audited) = audit_number(architecture) else {
                continue;
            };
            let section = section(profile, architecture, x32);
            program.push(jump(JUMP_EQUAL, audited, 1, 0));
            program.push(plain(JUMP, length(&section)?));
            program.extend(section);
        }
        program.push(plain(RETURN, value(SeccompAction::KillProcess)));
        length(&program)?;
        let flags = profile.flags.iter().fold(0, |all, flag| all | flag.bits());
        Ok(Self { program, flags })
    }

    /// Has the kernel ask it from now on.
    ///
    /// # Errors
    /// Those of seccomp(2).
    pub(in crate::container) fn install(&self) -> io::Result<()> {
        install(&self.program, self.flags)
    }
}

fn length(code: &[Instruction]) -> Result<u32, Refused> {
    u32::try_from(code.len())
        .ok()
        .filter(|_| code.len() <= INSTRUCTIONS_MAX)
        .ok_or_else(|| Refused(format!("a seccomp profile of {} instructions", code.len())))
}

/// For one architecture.
fn section(
    profile: &SeccompProfile,
    architecture: SeccompArchitecture,
    x32: bool,
) -> Vec<Instruction> {
    let mut decisions = BTreeMap::new();
    decide(profile, architecture, &mut decisions);
    let is_64_bit_x86 = architecture == SeccompArchitecture::X86_64;
    if x32 {
        decide(profile, SeccompArchitecture::X32, &mut decisions);
    }
    let default = Decision::default();
    let other = Decision {
        otherwise: Some(SeccompAction::KillProcess),
        ..Decision::default()
    };
    // Ranges by their first number; what a range has not comes after it.
    let mut ranges: Vec<(u32, Decision)> = vec![(0, default.clone())];
    let mut add = |first: u32, decision: Decision| match ranges.last_mut() {
        Some((last, present)) if *last == first => *present = decision,
        Some((_, present)) if *present == decision => {}
        _ => ranges.push((first, decision)),
    };
    let mut next = 0;
    for (number, decision) in decisions {
        if number > next {
            add(next, default.clone());
        }
        add(number, decision);
        next = number.saturating_add(1);
    }
    add(next, default.clone());
    if is_64_bit_x86 && !x32 {
        add(X32_BIT, other);
        // What a tracer makes of a call that is to be skipped, ptrace(2).
        add(u32::MAX, default);
    }
    let wide = matches!(
        architecture,
        SeccompArchitecture::X86_64 | SeccompArchitecture::Aarch64
    );
    let mut code = vec![plain(LOAD, NUMBER)];
    code.extend(search(&ranges, wide, profile.default_action));
    code
}

fn decide(
    profile: &SeccompProfile,
    architecture: SeccompArchitecture,
    decisions: &mut BTreeMap<u32, Decision>,
) {
    for rule in &profile.rules {
        let numbers = rule.names.iter();
        for number in numbers.filter_map(|name| number(architecture, name)) {
            let decision = decisions.entry(number).or_default();
            if rule.tests.is_empty() {
                decision.otherwise.get_or_insert(rule.action);
                continue;
            }
            let alternatives = alternatives(&rule.tests).into_iter();
            decision
                .tested
                .extend(alternatives.map(|tests| (tests, rule.action)));
        }
    }
}

/// One rule, or one for each test if two are of the same argument.
fn alternatives(tests: &[ArgumentTest]) -> Vec<Vec<ArgumentTest>> {
    let again = |index: usize, test: &ArgumentTest| {
        let mut earlier = tests.iter().take(index);
        earlier.any(|other| other.index == test.index)
    };
    let twice = tests
        .iter()
        .enumerate()
        .any(|(index, test)| again(index, test));
    if twice {
        tests.iter().map(|test| vec![*test]).collect()
    } else {
        vec![tests.to_vec()]
    }
}

fn search(
    ranges: &[(u32, Decision)],
    wide: bool,
    default_action: SeccompAction,
) -> Vec<Instruction> {
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let Some((middle, decision)) = right.first() else {
        return Vec::new();
    };
    if left.is_empty() {
        return leaf(decision, wide, default_action);
    }
    let left = search(left, wide, default_action);
    let mut code = Vec::new();
    match u8::try_from(left.len()) {
        Ok(distance) => code.push(jump(JUMP_NOT_LESS, *middle, distance, 0)),
        Err(_) => {
            code.push(jump(JUMP_NOT_LESS, *middle, 0, 1));
            let distance = u32::try_from(left.len()).unwrap_or(u32::MAX);
            code.push(plain(JUMP, distance));
        }
    }
    code.extend(left);
    code.extend(search(right, wide, default_action));
    code
}

fn leaf(decision: &Decision, wide: bool, default_action: SeccompAction) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (tests, action) in &decision.tested {
        code.extend(rule(tests, wide, value(*action)));
    }
    let otherwise = decision.otherwise.unwrap_or(default_action);
    code.push(plain(RETURN, value(otherwise)));
    code
}
