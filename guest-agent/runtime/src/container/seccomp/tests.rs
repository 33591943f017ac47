//! The filter, run by a machine of our own, against the profile, read anew.

use super::instruction::{AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_NOT_LESS, LOAD, RETURN, value};
use super::table::number;
use super::*;
use guest_kernel::seccomp::Instruction;
use proptest::prelude::*;

/// What the kernel shows to a filter.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    audited: u32,
    arguments: [u64; 6],
}

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const ARM: u32 = 0x4000_0028;
const NAMES: [&str; 10] = [
    "read",
    "write",
    "openat",
    "clone",
    "clone3",
    "personality",
    "socket",
    "ioctl",
    "execve",
    "cachestat",
];

impl Call {
    fn word(&self, place: u32) -> u32 {
        let argument = |index: u32| self.arguments[usize::try_from(index).unwrap()];
        match place {
            0 => self.number,
            4 => self.audited,
            place if place % 8 == 0 => {
                u32::try_from(argument(place / 8 - 2) & 0xffff_ffff).unwrap()
            }
            place => u32::try_from(argument((place - 4) / 8 - 2) >> 32).unwrap(),
        }
    }
}

fn run(program: &[Instruction], call: &Call) -> u32 {
    let mut at = 0;
    let mut accumulator = 0;
    loop {
        let one = program[at];
        at += 1;
        let mut branch = |holds: bool| {
            at += usize::from(if holds { one.if_true } else { one.if_false });
        };
        match one.code {
            LOAD => accumulator = call.word(one.operand),
            AND => accumulator &= one.operand,
            JUMP => at += usize::try_from(one.operand).unwrap(),
            JUMP_EQUAL => branch(accumulator == one.operand),
            JUMP_GREATER => branch(accumulator > one.operand),
            JUMP_NOT_LESS => branch(accumulator >= one.operand),
            RETURN => return one.operand,
            code => panic!("instruction {code:#x}"),
        }
    }
}

/// The profile as its words say.
fn expected(native: SeccompArchitecture, profile: &SeccompProfile, call: &Call) -> u32 {
    use SeccompArchitecture as Architecture;
    let x32 = call.audited == X86_64 && (0x4000_0000..u32::MAX).contains(&call.number);
    let architecture = match call.audited {
        X86_64 if x32 => Architecture::X32,
        X86_64 => Architecture::X86_64,
        X86 => Architecture::X86,
        AARCH64 => Architecture::Aarch64,
        _ => Architecture::Arm,
    };
    let named = |one| one == native || profile.architectures.contains(&one);
    // x32 is a kind of x86_64: a profile for it has both.
    let on =
        named(architecture) || (architecture == Architecture::X86_64 && named(Architecture::X32));
    if !on {
        return value(SeccompAction::KillProcess);
    }
    let holds = |test: &ArgumentTest| {
        let wide = matches!(
            architecture,
            Architecture::X86_64 | Architecture::X32 | Architecture::Aarch64
        );
        let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
        let argument = cut(call.arguments[usize::from(test.index)]);
        let wanted = cut(test.value);
        match test.operator {
            ArgumentOperator::NotEqual => argument != wanted,
            ArgumentOperator::Less => argument < wanted,
            ArgumentOperator::LessOrEqual => argument <= wanted,
            ArgumentOperator::Equal => argument == wanted,
            ArgumentOperator::GreaterOrEqual => argument >= wanted,
            ArgumentOperator::Greater => argument > wanted,
            ArgumentOperator::MaskedEqual => argument & wanted == cut(test.masked),
        }
    };
    let of_call = || {
        profile.rules.iter().filter(|rule| {
            let mut names = rule.names.iter();
            names.any(|name| number(architecture, name) == Some(call.number))
        })
    };
    let tested = of_call()
        .filter(|rule| !rule.tests.is_empty())
        .find(|rule| {
            let mut indices: Vec<u8> = rule.tests.iter().map(|test| test.index).collect();
            indices.sort_unstable();
            indices.dedup();
            if indices.len() == rule.tests.len() {
                rule.tests.iter().all(holds)
            } else {
                rule.tests.iter().any(holds)
            }
        });
    let plain = of_call().find(|rule| rule.tests.is_empty());
    let action = tested
        .or(plain)
        .map_or(profile.default_action, |rule| rule.action);
    value(action)
}

fn action() -> impl Strategy<Value = SeccompAction> {
    prop_oneof![
        Just(SeccompAction::KillThread),
        Just(SeccompAction::KillProcess),
        Just(SeccompAction::Trap),
        (1..4096_u16).prop_map(SeccompAction::Errno),
        Just(SeccompAction::Log),
        Just(SeccompAction::Allow),
    ]
}

/// Numbers around which comparisons turn.
fn number_of_interest() -> impl Strategy<Value = u64> {
    prop_oneof![
        prop::sample::select(vec![
            0,
            1,
            0x7e02_0000,
            0xffff_ffff,
            0x1_0000_0000,
            0x1_0000_0001,
            u64::MAX,
        ]),
        any::<u64>(),
    ]
}

fn operator() -> impl Strategy<Value = ArgumentOperator> {
    prop::sample::select(vec![
        ArgumentOperator::NotEqual,
        ArgumentOperator::Less,
        ArgumentOperator::LessOrEqual,
        ArgumentOperator::Equal,
        ArgumentOperator::GreaterOrEqual,
        ArgumentOperator::Greater,
        ArgumentOperator::MaskedEqual,
    ])
}

fn argument_test() -> impl Strategy<Value = ArgumentTest> {
    let values = (number_of_interest(), number_of_interest());
    (0..6_u64, operator(), values).prop_map(|(index, operator, (one, two))| {
        ArgumentTest::new(index, operator, one, two).unwrap()
    })
}

fn rule() -> impl Strategy<Value = SeccompRule> {
    let names = prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4);
    (
        names,
        action(),
        prop::collection::vec(argument_test(), 0..4),
    )
        .prop_map(|(names, action, tests)| SeccompRule {
            names: names.into_iter().map(Into::into).collect(),
            action,
            tests,
        })
}

fn architecture() -> impl Strategy<Value = SeccompArchitecture> {
    prop::sample::select(vec![
        SeccompArchitecture::X86_64,
        SeccompArchitecture::X86,
        SeccompArchitecture::X32,
        SeccompArchitecture::Aarch64,
        SeccompArchitecture::Arm,
        SeccompArchitecture::Foreign,
    ])
}

fn profile() -> impl Strategy<Value = SeccompProfile> {
    (
        action(),
        prop::collection::vec(architecture(), 0..4),
        prop::collection::vec(rule(), 0..12),
    )
        .prop_map(|(default_action, architectures, rules)| SeccompProfile {
            default_action,
            architectures,
            flags: Vec::new(),
            rules,
        })
}

fn call() -> impl Strategy<Value = Call> {
    let named = (prop::sample::select(NAMES.to_vec()), architecture()).prop_map(|(name, on)| {
        let audited = match on {
            SeccompArchitecture::X86 => X86,
            SeccompArchitecture::Aarch64 => AARCH64,
            SeccompArchitecture::Arm => ARM,
            _ => X86_64,
        };
        (number(on, name).unwrap_or(u32::MAX), audited)
    });
    let audited = prop::sample::select(vec![X86_64, X86, AARCH64, ARM]);
    let anything = (prop_oneof![0..700_u32, any::<u32>()], audited);
    let arguments = prop::array::uniform6(number_of_interest());
    (prop_oneof![4 => named, 1 => anything], arguments).prop_map(
        |((number, audited), arguments)| Call {
            number,
            audited,
            arguments,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_program_decides_as_the_profile_says(
        profile in profile(),
        native in prop::sample::select(vec![
            SeccompArchitecture::X86_64,
            SeccompArchitecture::Aarch64,
        ]),
        calls in prop::collection::vec(call(), 1..20),
    ) {
        let filter = Filter::on(native, &profile).unwrap();
        for call in calls {
            prop_assert_eq!(run(&filter.program, &call), expected(native, &profile, &call), "{:?}", call);
        }
    }
}

#[test]
fn a_profile_of_every_call_is_short_enough_and_one_of_ten_thousand_tests_is_refused() {
    let every: Vec<String> = syscalls::x86_64::Sysno::iter()
        .map(|one| one.name().into())
        .collect();
    let rules = |step: usize| -> Vec<SeccompRule> {
        let names = every.iter().step_by(step).cloned();
        names
            .enumerate()
            .map(|(index, name)| SeccompRule {
                names: vec![name],
                action: SeccompAction::Errno(u16::try_from(index + 1).unwrap()),
                tests: Vec::new(),
            })
            .collect()
    };
    let profile = |rules| SeccompProfile {
        default_action: SeccompAction::Allow,
        architectures: vec![SeccompArchitecture::X86, SeccompArchitecture::X32],
        flags: Vec::new(),
        rules,
    };
    // As unlike each other as can be: every call is a range of its own.
    let filter = Filter::on(SeccompArchitecture::X86_64, &profile(rules(1))).unwrap();
    assert!(filter.program.len() < 2800, "{}", filter.program.len());
    let tests = (0..10_000)
        .map(|value| ArgumentTest::new(0, ArgumentOperator::Equal, value, 0).unwrap())
        .collect();
    let many = SeccompRule {
        names: vec!["read".into()],
        action: SeccompAction::KillThread,
        tests,
    };
    let refused = Filter::on(SeccompArchitecture::X86_64, &profile(vec![many])).unwrap_err();
    assert!(refused.to_string().contains("instructions"), "{refused}");
}

#[test]
fn an_unknown_call_may_be_let_through_but_not_kept_back() {
    let profile = |default_action, action| SeccompProfile {
        default_action,
        architectures: Vec::new(),
        flags: Vec::new(),
        rules: vec![SeccompRule {
            names: vec!["no_such_call".into()],
            action,
            tests: Vec::new(),
        }],
    };
    let (deny, allow) = (SeccompAction::Errno(1), SeccompAction::Allow);
    assert!(profile(deny, allow).validate().is_ok());
    let refused = profile(allow, deny).validate().unwrap_err();
    assert!(refused.to_string().contains("no_such_call"), "{refused}");
}

#[test]
fn words_are_those_of_the_specification_and_no_other() {
    let errno = |number| SeccompAction::parse("SCMP_ACT_ERRNO", number);
    assert_eq!(errno(0), Ok(SeccompAction::Errno(1)));
    assert_eq!(errno(38), Ok(SeccompAction::Errno(38)));
    assert!(errno(4096).is_err());
    assert!(SeccompAction::parse("SCMP_ACT_ALLOW", 1).is_err());
    for word in ["SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "", "ALLOW"] {
        assert!(SeccompAction::parse(word, 0).is_err(), "{word}");
    }
    assert_eq!("SCMP_ARCH_S390X".parse(), Ok(SeccompArchitecture::Foreign));
    assert!("SCMP_ARCH_VAX".parse::<SeccompArchitecture>().is_err());
    assert!(
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
            .parse::<SeccompFlag>()
            .is_err()
    );
    assert!("SCMP_CMP_XOR".parse::<ArgumentOperator>().is_err());
    assert!(ArgumentTest::new(6, ArgumentOperator::Equal, 0, 0).is_err());
    assert!(ArgumentTest::new(u64::MAX, ArgumentOperator::Equal, 0, 0).is_err());
}

/// socket(2), socketcall(2), io_uring_setup(2), each of the architecture.
#[test]
fn no_architecture_of_the_machine_leads_to_a_socket_of_the_transport() {
    use SeccompArchitecture as Architecture;
    let profile = super::vsock::refuse_vsock();
    let refused = |errno| value(SeccompAction::Errno(errno));
    let allowed = value(SeccompAction::Allow);
    for (native, machine) in [
        (
            Architecture::X86_64,
            [
                (Architecture::X86_64, X86_64),
                (Architecture::X32, X86_64),
                (Architecture::X86, X86),
            ]
            .as_slice(),
        ),
        (
            Architecture::Aarch64,
            &[(Architecture::Aarch64, AARCH64), (Architecture::Arm, ARM)],
        ),
    ] {
        let program = Filter::on(native, &profile).unwrap().program;
        for (architecture, audited) in machine {
            let answer = |name: &str, first: u64| {
                let call = Call {
                    number: number(*architecture, name)?,
                    audited: *audited,
                    arguments: [first, 1, 0, 0, 0, 0],
                };
                Some(run(&program, &call))
            };
            for family in [40, 40 | 1 << 32, 40 | 7 << 60] {
                assert_eq!(answer("socket", family), Some(refused(97)));
            }
            for family in [1, 2, 10, 16, 41] {
                assert_eq!(answer("socket", family), Some(allowed));
            }
            if let Some(made) = answer("socketcall", 1) {
                assert_eq!(made, refused(38));
                assert_eq!(answer("socketcall", 3), Some(allowed));
            }
            assert_eq!(answer("io_uring_setup", 8), Some(refused(38)));
            assert_eq!(answer("read", 40), Some(allowed));
        }
    }
    assert!(number(Architecture::X86, "socketcall").is_some());
}
