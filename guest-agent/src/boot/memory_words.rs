//! The words of the command line about the memory agent. Their order does not
//! count.

use super::configuration::ConfigurationError;
use guest_runtime::memory::{
    CompactionChange, CompactionSettings, OutOfRange, ReclaimChange, ReclaimSettings,
};
use std::fmt::Display;
use std::str::FromStr;

const ENABLE: &str = "agent.mem_agent_enable";
const RECLAIM: [&str; 7] = [
    "agent.mem_agent_memcg_disable",
    "agent.mem_agent_memcg_swap",
    "agent.mem_agent_memcg_swappiness_max",
    "agent.mem_agent_memcg_period_secs",
    "agent.mem_agent_memcg_period_psi_percent_limit",
    "agent.mem_agent_memcg_eviction_psi_percent_limit",
    "agent.mem_agent_memcg_eviction_run_aging_count_min",
];
const COMPACTION: [&str; 8] = [
    "agent.mem_agent_compact_disable",
    "agent.mem_agent_compact_period_secs",
    "agent.mem_agent_compact_period_psi_percent_limit",
    "agent.mem_agent_compact_psi_percent_limit",
    "agent.mem_agent_compact_sec_max",
    "agent.mem_agent_compact_order",
    "agent.mem_agent_compact_threshold",
    "agent.mem_agent_compact_force_times",
];

/// What the words say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MemoryWords {
    pub(crate) enabled: bool,
    pub(crate) reclaim: ReclaimSettings,
    pub(crate) compaction: CompactionSettings,
}

impl MemoryWords {
    /// Takes a word, if it is one of these.
    pub(super) fn take(&mut self, key: &str, value: &str) -> Result<(), ConfigurationError> {
        if key == ENABLE {
            self.enabled = switch(value).map_err(malformed(ENABLE, value))?;
        }
        if let Some(place) = RECLAIM.iter().position(|word| *word == key) {
            let failed = |reason: String| malformed(RECLAIM[place], value)(reason);
            let change = reclaim_change(place, value).map_err(failed)?;
            self.reclaim
                .change(&change)
                .map_err(|error| failed(why(error)))?;
        }
        if let Some(place) = COMPACTION.iter().position(|word| *word == key) {
            let failed = |reason: String| malformed(COMPACTION[place], value)(reason);
            let change = compaction_change(place, value).map_err(failed)?;
            self.compaction
                .change(&change)
                .map_err(|error| failed(why(error)))?;
        }
        Ok(())
    }
}

/// By the place of the word in [`RECLAIM`].
fn reclaim_change(place: usize, value: &str) -> Result<ReclaimChange, String> {
    let mut change = ReclaimChange::default();
    match place {
        0 => change.disabled = parse(value)?,
        1 => change.swap = parse(value)?,
        2 => change.swappiness_max = parse(value)?,
        3 => change.period_secs = parse(value)?,
        4 => change.period_psi_percent_limit = parse(value)?,
        5 => change.eviction_psi_percent_limit = parse(value)?,
        _ => change.eviction_run_aging_count_min = parse(value)?,
    }
    Ok(change)
}

/// By the place of the word in [`COMPACTION`].
fn compaction_change(place: usize, value: &str) -> Result<CompactionChange, String> {
    let mut change = CompactionChange::default();
    match place {
        0 => change.disabled = parse(value)?,
        1 => change.period_secs = parse(value)?,
        2 => change.period_psi_percent_limit = parse(value)?,
        3 => change.compact_psi_percent_limit = parse(value)?,
        4 => change.compact_sec_max = parse(value)?,
        5 => change.compact_order = parse(value)?,
        6 => change.compact_threshold = parse(value)?,
        _ => change.compact_force_times = parse(value)?,
    }
    Ok(change)
}

fn parse<T: FromStr>(value: &str) -> Result<Option<T>, String>
where
    T::Err: Display,
{
    value
        .parse()
        .map(Some)
        .map_err(|error: T::Err| error.to_string())
}

/// The one switch that may be a number as well.
fn switch(value: &str) -> Result<bool, &'static str> {
    match (value, value.parse::<i64>()) {
        ("true", _) => Ok(true),
        ("false", _) => Ok(false),
        (_, Ok(number)) => Ok(number != 0),
        _ => Err("neither true nor false"),
    }
}

fn why(error: OutOfRange) -> String {
    error.reason
}

fn malformed<E: Display>(key: &'static str, value: &str) -> impl FnOnce(E) -> ConfigurationError {
    let value = value.into();
    move |reason| ConfigurationError::Value {
        key,
        value,
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::configuration::Configuration;
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn words(line: &str) -> Result<MemoryWords, ConfigurationError> {
        Configuration::from_command_line(line).map(|configuration| configuration.memory)
    }

    #[test]
    fn there_is_no_memory_agent_unless_one_is_asked_for() {
        assert_eq!(words("quiet").unwrap(), MemoryWords::default());
        assert!(!words("agent.mem_agent_enable=false").unwrap().enabled);
        assert!(!words("agent.mem_agent_enable=0").unwrap().enabled);
        assert!(words("agent.mem_agent_enable=1").unwrap().enabled);
        assert!(words("agent.mem_agent_enable=true").unwrap().enabled);
    }

    #[test]
    fn every_word_has_its_setting() {
        let values = |words: &[&str], values: &[&str]| {
            let words = words.iter().zip(values);
            words
                .map(|(word, value)| format!("{word}={value} "))
                .collect::<String>()
        };
        let reclaim = values(&RECLAIM, &["true", "true", "200", "2", "3", "4", "5"]);
        let second = Duration::from_secs(1);
        assert_eq!(
            words(&reclaim).unwrap().reclaim,
            ReclaimSettings {
                disabled: true,
                swap: true,
                swappiness_max: 200,
                period: 2 * second,
                period_pressure_limit: 3,
                eviction_pressure_limit: 4,
                agings_min: 5,
            }
        );
        let compaction = values(&COMPACTION, &["true", "1", "2", "3", "4", "5", "6", "7"]);
        assert_eq!(
            words(&compaction).unwrap().compaction,
            CompactionSettings {
                disabled: true,
                period: second,
                period_pressure_limit: 2,
                pressure_limit: 3,
                time_max: 4 * second,
                order: 5,
                threshold: 6,
                force_times: 7,
            }
        );
    }

    #[test]
    fn a_value_that_cannot_be_names_its_word() {
        for (word, value) in [
            (ENABLE, "yes"),
            (RECLAIM[0], "1"),
            (RECLAIM[2], "201"),
            (RECLAIM[3], "0"),
            (RECLAIM[4], "-1"),
            (COMPACTION[4], "0"),
            (COMPACTION[5], "11"),
        ] {
            let refused = words(&format!("{word}={value}")).unwrap_err();
            let text = refused.to_string();
            assert!(text.starts_with(&format!("{word}={value}: ")), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_order_of_words_does_not_count(
            shuffled in Just((0..16).collect::<Vec<usize>>()).prop_shuffle(),
        ) {
            let all: Vec<_> = [ENABLE].into_iter().chain(RECLAIM).chain(COMPACTION).map(|word| {
                let value = if word.ends_with("able") || word.ends_with("swap") { "true" } else { "7" };
                format!("{word}={value}")
            }).collect();
            let line: Vec<_> = shuffled.iter().map(|place| all[*place].as_str()).collect();
            prop_assert_eq!(words(&line.join(" ")).unwrap(), words(&all.join(" ")).unwrap());
        }
    }
}
