//! Holds the configuration that the kernel's build settled on against what was
//! asked for: dependencies drop options without a word, and select others.

use crate::config::{KernelConfig, Setting};
use crate::fragment::{Asked, Composition, Waivers};
use std::fmt;

/// An option that is not as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was asked.
    pub asked: Asked,
    /// What it is.
    pub found: String,
}

/// What became of what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Asked for, and otherwise.
    pub otherwise: Vec<Finding>,
    /// The same, with a waiver: the reason.
    pub waived: Vec<(Finding, String)>,
    /// Waivers of options that are as they were asked for.
    pub needless: Vec<String>,
}

impl Settlement {
    /// Whether all that is not as it was asked for has a waiver, and each waiver
    /// a use.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.otherwise.is_empty() && self.needless.is_empty()
    }
}

/// Compares.
#[must_use]
pub fn settle(composition: &Composition, config: &KernelConfig, waivers: &Waivers) -> Settlement {
    let mut settlement = Settlement::default();
    for asked in composition.asked() {
        let found = match config.get(&asked.option) {
            Some(Setting::BuiltIn) => "y",
            Some(Setting::Module) => "m",
            Some(Setting::Value(value)) => value,
            None => "n",
        };
        match (found == asked.value, waivers.get(&asked.option)) {
            (true, None) => {}
            (true, Some(_)) => settlement.needless.push(asked.option.clone()),
            (false, waiver) => {
                let finding = Finding {
                    asked: asked.clone(),
                    found: found.to_owned(),
                };
                match waiver {
                    Some(reason) => settlement.waived.push((finding, reason.clone())),
                    None => settlement.otherwise.push(finding),
                }
            }
        }
    }
    settlement
}

impl fmt::Display for Finding {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Asked {
            option,
            value,
            why,
            fragment,
        } = &self.asked;
        let found = &self.found;
        write!(
            to,
            "CONFIG_{option}={found}, asked {value} by {fragment}: {why}"
        )
    }
}

/// A line each.
impl fmt::Display for Settlement {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.otherwise {
            writeln!(to, "otherwise {finding}")?;
        }
        for option in &self.needless {
            writeln!(
                to,
                "needless waiver of CONFIG_{option}: it is as it was asked for"
            )?;
        }
        for (finding, reason) in &self.waived {
            writeln!(to, "waived {finding}; {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(fragment: &'static str, config: &str, waived: &[&str]) -> Settlement {
        let composition = Composition::from_fragments([("x", fragment)]).unwrap();
        let waivers = waived
            .iter()
            .map(|option| ((*option).into(), "reason".into()));
        settle(&composition, &config.parse().unwrap(), &waivers.collect())
    }

    const ASKED: &str = "CONFIG_A=y # a\nCONFIG_B=n # b\nCONFIG_C=3 # c\n";

    #[test]
    fn what_is_as_it_was_asked_for_is_not_spoken_of() {
        let settlement = settled(ASKED, "CONFIG_A=y\nCONFIG_C=3\nCONFIG_D=y\n", &[]);
        assert!(settlement.passes());
        assert_eq!(settlement.to_string(), "");
    }

    #[test]
    fn what_is_missing_and_what_was_selected_are_named_with_the_reason() {
        let settlement = settled(ASKED, "CONFIG_B=y\nCONFIG_C=4\n", &[]);
        assert!(!settlement.passes());
        let expected = "otherwise CONFIG_A=n, asked y by x: a\n\
                        otherwise CONFIG_B=y, asked n by x: b\n\
                        otherwise CONFIG_C=4, asked 3 by x: c\n";
        assert_eq!(settlement.to_string(), expected);
    }

    #[test]
    fn a_waiver_counts_where_it_is_needed_and_only_there() {
        let settlement = settled(ASKED, "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=3\n", &["B"]);
        assert!(settlement.passes());
        assert_eq!(
            settlement.to_string(),
            "waived CONFIG_B=y, asked n by x: b; reason\n"
        );
        let settlement = settled(ASKED, "CONFIG_A=y\nCONFIG_C=3\n", &["B"]);
        assert!(!settlement.passes());
        assert!(
            settlement
                .to_string()
                .starts_with("needless waiver of CONFIG_B")
        );
    }
}
