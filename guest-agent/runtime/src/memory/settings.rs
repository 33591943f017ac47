//! What the two jobs go by, and how some of it is changed while the rest stays.

use std::time::Duration;

/// The largest value of /proc/sys/vm/swappiness.
const SWAPPINESS_MAX: u64 = 200;
/// The largest order of pages that the kernel keeps.
const ORDER_MAX: u64 = 10;
const PERCENT_MAX: u64 = 100;
/// The longest a timer may be set to, in seconds: a year.
const SECONDS_MAX: u64 = 366 * 24 * 60 * 60;

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value}: {reason}")]
pub struct OutOfRange {
    /// By its name on the wire.
    pub field: &'static str,
    /// What it was to be.
    pub value: String,
    /// Why it cannot be.
    pub reason: String,
}

/// How memory is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReclaimSettings {
    /// Whether it is left to the kernel.
    pub disabled: bool,
    /// Whether anonymous memory is swapped out, if there is swap.
    pub swap: bool,
    /// How readily it is: 0 to 200.
    pub swappiness_max: u8,
    /// How long a container is looked at before it is judged.
    pub period: Duration,
    /// A container that waited for memory for more than so many hundredths of
    /// the period is left alone.
    pub period_pressure_limit: u8,
    /// Taking memory ends when a container waits for more than so many
    /// hundredths of the time it takes.
    pub eviction_pressure_limit: u8,
    /// How many calm periods a container has had before memory is taken.
    pub agings_min: u64,
}

impl Default for ReclaimSettings {
    fn default() -> Self {
        Self {
            disabled: false,
            swap: false,
            swappiness_max: 50,
            period: Duration::from_secs(600),
            period_pressure_limit: 1,
            eviction_pressure_limit: 1,
            agings_min: 3,
        }
    }
}

/// Some settings of [`ReclaimSettings`], as the wire has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReclaimChange {
    /// See [`ReclaimSettings::disabled`].
    pub disabled: Option<bool>,
    /// See [`ReclaimSettings::swap`].
    pub swap: Option<bool>,
    /// See [`ReclaimSettings::swappiness_max`].
    pub swappiness_max: Option<u64>,
    /// See [`ReclaimSettings::period`], in seconds.
    pub period_secs: Option<u64>,
    /// See [`ReclaimSettings::period_pressure_limit`].
    pub period_psi_percent_limit: Option<u64>,
    /// See [`ReclaimSettings::eviction_pressure_limit`].
    pub eviction_psi_percent_limit: Option<u64>,
    /// See [`ReclaimSettings::agings_min`].
    pub eviction_run_aging_count_min: Option<u64>,
}

impl ReclaimSettings {
    /// Has those that are named be so; all of them or none.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn change(&mut self, change: &ReclaimChange) -> Result<(), OutOfRange> {
        let swappiness = small("swappiness_max", change.swappiness_max, SWAPPINESS_MAX)?;
        let period = seconds("period_secs", change.period_secs)?;
        let limit = change.period_psi_percent_limit;
        let limit = small("period_psi_percent_limit", limit, PERCENT_MAX)?;
        let eviction = change.eviction_psi_percent_limit;
        let eviction = small("eviction_psi_percent_limit", eviction, PERCENT_MAX)?;
        put(&mut self.disabled, change.disabled);
        put(&mut self.swap, change.swap);
        put(&mut self.swappiness_max, swappiness);
        put(&mut self.period, period);
        put(&mut self.period_pressure_limit, limit);
        put(&mut self.eviction_pressure_limit, eviction);
        put(&mut self.agings_min, change.eviction_run_aging_count_min);
        Ok(())
    }
}

/// How memory is put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactionSettings {
    /// Whether it is left to the kernel.
    pub disabled: bool,
    /// How often it is looked at.
    pub period: Duration,
    /// Nothing is done when the guest waited for memory for more than so many
    /// hundredths of the period.
    pub period_pressure_limit: u8,
    /// A compaction ends when the guest waits for more than so many hundredths
    /// of a second.
    pub pressure_limit: u8,
    /// The longest that one may take.
    pub time_max: Duration,
    /// Pieces that are smaller than two to the power of it, in pages, are too
    /// small.
    pub order: u32,
    /// By how many pages those have to have grown since the last one.
    pub threshold: u64,
    /// After so many periods without one there is one all the same.
    pub force_times: u64,
}

impl Default for CompactionSettings {
    fn default() -> Self {
        Self {
            disabled: false,
            period: Duration::from_secs(600),
            period_pressure_limit: 1,
            pressure_limit: 5,
            time_max: Duration::from_secs(300),
            order: 9,
            threshold: 1024,
            force_times: u64::MAX,
        }
    }
}

/// Some settings of [`CompactionSettings`], as the wire has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompactionChange {
    /// See [`CompactionSettings::disabled`].
    pub disabled: Option<bool>,
    /// See [`CompactionSettings::period`], in seconds.
    pub period_secs: Option<u64>,
    /// See [`CompactionSettings::period_pressure_limit`].
    pub period_psi_percent_limit: Option<u64>,
    /// See [`CompactionSettings::pressure_limit`].
    pub compact_psi_percent_limit: Option<u64>,
    /// See [`CompactionSettings::time_max`], in seconds.
    pub compact_sec_max: Option<i64>,
    /// See [`CompactionSettings::order`].
    pub compact_order: Option<u64>,
    /// See [`CompactionSettings::threshold`].
    pub compact_threshold: Option<u64>,
    /// See [`CompactionSettings::force_times`].
    pub compact_force_times: Option<u64>,
}

impl CompactionSettings {
    /// As [`ReclaimSettings::change`].
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn change(&mut self, change: &CompactionChange) -> Result<(), OutOfRange> {
        let period = seconds("period_secs", change.period_secs)?;
        let limit = change.period_psi_percent_limit;
        let limit = small("period_psi_percent_limit", limit, PERCENT_MAX)?;
        let compact = change.compact_psi_percent_limit;
        let compact = small("compact_psi_percent_limit", compact, PERCENT_MAX)?;
        let time = change.compact_sec_max.map(|time| {
            u64::try_from(time).map_err(|_| out_of_range("compact_sec_max", time, "no time"))
        });
        let time = seconds("compact_sec_max", time.transpose()?)?;
        let order = small("compact_order", change.compact_order, ORDER_MAX)?;
        put(&mut self.disabled, change.disabled);
        put(&mut self.period, period);
        put(&mut self.period_pressure_limit, limit);
        put(&mut self.pressure_limit, compact);
        put(&mut self.time_max, time);
        put(&mut self.order, order.map(u32::from));
        put(&mut self.threshold, change.compact_threshold);
        put(&mut self.force_times, change.compact_force_times);
        Ok(())
    }
}

fn put<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn small(field: &'static str, value: Option<u64>, limit: u64) -> Result<Option<u8>, OutOfRange> {
    let small = |value: u64| {
        let small = u8::try_from(value).ok().filter(|_| value <= limit);
        small.ok_or_else(|| out_of_range(field, value, format!("more than {limit}")))
    };
    value.map(small).transpose()
}

fn seconds(field: &'static str, value: Option<u64>) -> Result<Option<Duration>, OutOfRange> {
    match value {
        Some(0) => Err(out_of_range(field, 0, "no time")),
        Some(more) if more > SECONDS_MAX => {
            let reason = format!("more than {SECONDS_MAX}");
            Err(out_of_range(field, more, reason))
        }
        other => Ok(other.map(Duration::from_secs)),
    }
}

fn out_of_range(
    field: &'static str,
    value: impl ToString,
    reason: impl Into<String>,
) -> OutOfRange {
    OutOfRange {
        field,
        value: value.to_string(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each setting by itself, in the wire's order, and `None` for the rest.
    fn alone(values: &[u64; 8], one: usize) -> CompactionChange {
        let value = |place: usize| (place == one).then(|| values[place]);
        CompactionChange {
            disabled: value(0).map(|value| value % 2 == 1),
            period_secs: value(1),
            period_psi_percent_limit: value(2),
            compact_psi_percent_limit: value(3),
            compact_sec_max: value(4).map(|value| i64::try_from(value).unwrap()),
            compact_order: value(5),
            compact_threshold: value(6),
            compact_force_times: value(7),
        }
    }

    proptest! {
        #[test]
        fn what_is_not_named_stays_and_what_is_named_counts_in_any_order(
            disabled in 0..2_u64, period in 1..1000_u64, limit in 0..=100_u64, compact in 0..=100_u64,
            time in 1..1000_u64, order in 0..=10_u64, threshold in any::<u64>(), force in any::<u64>(),
            order_of_changes in Just((0..8).collect::<Vec<usize>>()).prop_shuffle(),
        ) {
            let values = [disabled, period, limit, compact, time, order, threshold, force];
            let mut settings = CompactionSettings::default();
            for one in order_of_changes {
                settings.change(&alone(&values, one)).unwrap();
            }
            prop_assert_eq!(settings, CompactionSettings {
                disabled: disabled == 1,
                period: Duration::from_secs(period),
                period_pressure_limit: u8::try_from(limit).unwrap(),
                pressure_limit: u8::try_from(compact).unwrap(),
                time_max: Duration::from_secs(time),
                order: u32::try_from(order).unwrap(),
                threshold,
                force_times: force,
            });
        }

        #[test]
        fn a_change_with_one_setting_that_cannot_be_changes_nothing(
            swap: bool, swappiness in any::<u64>(), period in any::<u64>(),
            limit in any::<u64>(), eviction in any::<u64>(),
        ) {
            let change = ReclaimChange {
                swap: Some(swap),
                swappiness_max: Some(swappiness),
                period_secs: Some(period),
                period_psi_percent_limit: Some(limit),
                eviction_psi_percent_limit: Some(eviction),
                ..ReclaimChange::default()
            };
            let mut settings = ReclaimSettings::default();
            let can_be = swappiness <= 200 && (1..=SECONDS_MAX).contains(&period)
                && limit <= 100 && eviction <= 100;
            let changed = settings.change(&change);
            prop_assert_eq!(changed.is_ok(), can_be);
            if !can_be {
                prop_assert_eq!(settings, ReclaimSettings::default());
            }
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let mut settings = CompactionSettings::default();
        let change = CompactionChange {
            compact_sec_max: Some(-1),
            ..CompactionChange::default()
        };
        let refused = settings.change(&change).unwrap_err();
        assert_eq!(refused.to_string(), "compact_sec_max: -1: no time");
    }
}
