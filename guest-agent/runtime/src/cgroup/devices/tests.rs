//! The program, run by a machine of our own, against the rules, read anew.

use super::program::{
    AND, BLOCK, CHARACTER, EXIT, JUMP, JUMP_ANY_BIT, JUMP_NOT_EQUAL, LOAD_WORD, MOVE, SET,
    SHIFT_RIGHT,
};
use super::*;
use guest_kernel::bpf::Instruction;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
struct Use {
    block: bool,
    access: u8,
    major: u32,
    minor: u32,
}

fn run(program: &[Instruction], wanted: Use) -> bool {
    let kind = if wanted.block { BLOCK } else { CHARACTER };
    let context = [
        u32::from(wanted.access) << 16 | kind,
        wanted.major,
        wanted.minor,
    ];
    let mut registers = [0_u64; 11];
    let mut at = 0_usize;
    loop {
        let one = program[at];
        at += 1;
        let to = usize::from(one.registers & 0xf);
        let from = usize::from(one.registers >> 4);
        let lower = u32::try_from(registers[to] & 0xffff_ffff).unwrap();
        let mut jump = || at = at.checked_add_signed(one.offset.into()).unwrap();
        match one.code {
            LOAD_WORD => {
                assert_eq!(from, 1);
                registers[to] = context[usize::try_from(one.offset).unwrap() / 4].into();
            }
            MOVE => registers[to] = registers[from],
            SET => registers[to] = i64::from(one.immediate).cast_unsigned(),
            SHIFT_RIGHT => registers[to] >>= one.immediate,
            AND => registers[to] &= i64::from(one.immediate).cast_unsigned(),
            JUMP => jump(),
            JUMP_NOT_EQUAL if lower != one.immediate.cast_unsigned() => jump(),
            JUMP_ANY_BIT if lower & one.immediate.cast_unsigned() != 0 => jump(),
            JUMP_NOT_EQUAL | JUMP_ANY_BIT => {}
            EXIT => return registers[0] != 0,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn is_about(rule: &DeviceRule, wanted: Use) -> bool {
    let kind = match rule.kind {
        DeviceKind::Any => true,
        DeviceKind::Block => wanted.block,
        DeviceKind::Character => !wanted.block,
    };
    kind && rule.major.is_none_or(|major| major == wanted.major)
        && rule.minor.is_none_or(|minor| minor == wanted.minor)
}

/// Each kind of access by itself: the last rule about it counts.
fn expected(rules: &[DeviceRule], wanted: Use) -> bool {
    [1, 2, 4]
        .into_iter()
        .filter(|bit| wanted.access & bit != 0)
        .all(|bit| {
            let about = |rule: &&DeviceRule| is_about(rule, wanted) && rule.access.0 & bit != 0;
            rules
                .iter()
                .rev()
                .find(about)
                .is_some_and(|rule| rule.allow)
        })
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..12_u32, 1 => any::<u32>()]
}

fn rule() -> impl Strategy<Value = DeviceRule> {
    let kind = prop::sample::select(vec![
        DeviceKind::Any,
        DeviceKind::Block,
        DeviceKind::Character,
    ]);
    let numbers = (prop::option::of(number()), prop::option::of(number()));
    (any::<bool>(), kind, numbers, 1..8_u8).prop_map(|(allow, kind, (major, minor), access)| {
        DeviceRule {
            allow,
            kind,
            major,
            minor,
            access: DeviceAccess(access),
        }
    })
}

fn wanted() -> impl Strategy<Value = Use> {
    (any::<bool>(), 1..8_u8, number(), number()).prop_map(|(block, access, major, minor)| Use {
        block,
        access,
        major,
        minor,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_program_decides_as_the_rules_say(
        rules in prop::collection::vec(rule(), 0..20),
        uses in prop::collection::vec(wanted(), 1..20),
    ) {
        let program = DeviceProgram::assemble(&rules);
        for wanted in uses {
            prop_assert_eq!(run(&program.0, wanted), expected(&rules, wanted), "{:?}", wanted);
        }
    }

    #[test]
    fn no_rule_of_a_spec_gives_memory_or_the_transport_or_takes_the_defaults(
        rules in prop::collection::vec(rule(), 0..20),
        access in 1..8_u8,
    ) {
        let transports = [(10, 121), (248, 1)];
        let program = DeviceProgram::assemble(&with_own(&rules, &transports));
        let can = |(major, minor)| run(&program.0, Use { block: false, access, major, minor });
        for never in NEVER.into_iter().chain(transports) {
            prop_assert!(!can(never));
        }
        for default in DEFAULT.into_iter().chain([(136, 0), (136, 77)]) {
            prop_assert!(can(default));
        }
    }

    #[test]
    fn a_disk_is_only_used_where_a_rule_names_it(
        rules in prop::collection::vec(rule(), 0..20),
        wanted in wanted(),
    ) {
        let program = DeviceProgram::assemble(&with_own(&rules, &[]));
        let disk = Use { block: true, access: wanted.access & 6, ..wanted };
        let named = rules.iter().any(|rule| {
            rule.allow && rule.major == Some(disk.major) && rule.minor == Some(disk.minor)
        });
        prop_assert!(named || disk.access == 0 || !run(&program.0, disk));
    }

    #[test]
    fn no_rule_of_the_wire_makes_the_parse_panic(
        allow: bool,
        kind in "[abcux]?",
        major: i64,
        minor: i64,
        access in "[rwmx]{0,5}",
    ) {
        let _ = DeviceRule::parse(allow, &kind, (major, minor), &access);
    }
}

#[test]
fn what_the_wire_cannot_say_is_every_number_or_the_narrower_meaning() {
    let parse = |allow, major, minor| DeviceRule::parse(allow, "c", (major, minor), "rw").unwrap();
    let numbers = |rule: DeviceRule| (rule.major, rule.minor);
    assert_eq!(numbers(parse(true, 0, 0)), (None, None));
    assert_eq!(numbers(parse(true, 10, 0)), (Some(10), Some(0)));
    assert_eq!(numbers(parse(false, 10, 0)), (Some(10), None));
    assert_eq!(numbers(parse(true, 10, -1)), (Some(10), None));
    assert_eq!(numbers(parse(true, -1, -1)), (None, None));
    for (kind, number, access) in [("x", 1, "r"), ("c", -2, "r"), ("c", 1, ""), ("c", 1, "rx")] {
        let parsed = DeviceRule::parse(true, kind, (number, number), access);
        assert!(parsed.is_err(), "{kind} {number} {access}");
    }
    assert!(DeviceRule::parse(true, "c", (1 << 40, 1), "r").is_err());
}

#[test]
fn more_rules_than_there_is_room_for_are_refused() {
    let rule = DeviceRule::exactly(true, 1, 3);
    assert!(DeviceProgram::of(&vec![rule; 400]).is_ok());
    assert!(DeviceProgram::of(&vec![rule; 401]).is_err());
}
