//! The wire's seccomp profile to the runtime's.

use super::{ConvertError, invalid, unsupported};
use guest_runtime::container::{
    ArgumentTest, SeccompAction, SeccompProfile, SeccompRule, UnknownSeccomp,
};
use protocols::wire::agent;
use std::str::FromStr;

pub(super) fn seccomp_profile(
    profile: agent::LinuxSeccomp,
) -> Result<SeccompProfile, ConvertError> {
    Ok(SeccompProfile {
        default_action: SeccompAction::parse(&profile.DefaultAction, 0).map_err(unknown)?,
        architectures: words(&profile.Architectures)?,
        flags: words(&profile.Flags)?,
        rules: profile
            .Syscalls
            .into_iter()
            .map(rule)
            .collect::<Result<_, _>>()?,
    })
}

fn rule(rule: agent::LinuxSyscall) -> Result<SeccompRule, ConvertError> {
    if rule.Names.is_empty() {
        return Err(invalid("seccomp rule", "")("it names no system call"));
    }
    Ok(SeccompRule {
        action: SeccompAction::parse(&rule.Action, rule.errnoret).map_err(unknown)?,
        tests: rule
            .Args
            .iter()
            .map(argument)
            .collect::<Result<_, _>>()
            .map_err(unknown)?,
        names: rule.Names,
    })
}

fn argument(test: &agent::LinuxSeccompArg) -> Result<ArgumentTest, UnknownSeccomp> {
    ArgumentTest::new(test.Index, test.Op.parse()?, test.Value, test.ValueTwo)
}

fn words<T: FromStr<Err = UnknownSeccomp>>(words: &[String]) -> Result<Vec<T>, ConvertError> {
    words
        .iter()
        .map(|word| word.parse().map_err(unknown))
        .collect()
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "for `map_err`, which gives the error away"
)]
fn unknown(error: UnknownSeccomp) -> ConvertError {
    unsupported(error.to_string())
}
