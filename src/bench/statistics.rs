//! Percentiles within a round, medians over rounds.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The median; the mean of the two middle ones of an even number. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 0.5)
}

/// The value below which `share` (0 to 1) of the values lie, interpolated between neighbours. `None` of
/// nothing.
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = share * sorted.len().checked_sub(1)? as f64;
    let below = sorted[place.floor() as usize];
    let above = sorted[place.ceil() as usize];
    Some(below + (above - below) * place.fract())
}

/// Named numbers of a round or of a median over rounds. A name with a dot is a group in JSON.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(BTreeMap<&'static str, f64>);

/// The names of one quantity's distribution.
#[derive(Debug, Clone, Copy)]
pub struct Distribution {
    pub p50: &'static str,
    pub p95: &'static str,
    pub p99: &'static str,
    pub max: &'static str,
}

macro_rules! distribution {
    ($name:literal) => {
        Distribution {
            p50: concat!($name, ".p50"),
            p95: concat!($name, ".p95"),
            p99: concat!($name, ".p99"),
            max: concat!($name, ".max"),
        }
    };
}

/// Seconds to the first token.
pub const TTFT: Distribution = distribution!("ttft_s");
/// Seconds between two pieces of text.
pub const ITL: Distribution = distribution!("itl_s");
/// Seconds for each token after the first.
pub const TPOT: Distribution = distribution!("tpot_s");
/// Seconds from request to end.
pub const E2E: Distribution = distribution!("e2e_s");

impl Metrics {
    pub fn insert(&mut self, name: &'static str, value: f64) {
        self.0.insert(name, value);
    }

    /// Adds the distribution of `values`; nothing if there are none.
    pub fn insert_distribution(&mut self, names: Distribution, values: &[f64]) {
        for (name, share) in [
            (names.p50, 0.5),
            (names.p95, 0.95),
            (names.p99, 0.99),
            (names.max, 1.0),
        ] {
            if let Some(value) = percentile(values, share) {
                self.insert(name, value);
            }
        }
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// For each name the median over the rounds that have it.
    pub fn median_of(rounds: &[Metrics]) -> Metrics {
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for (name, value) in rounds.iter().flat_map(|round| &round.0) {
            values.entry(name).or_default().push(*value);
        }
        let medians = values.into_iter();
        Metrics(
            medians
                .filter_map(|(name, values)| Some((name, median(&values)?)))
                .collect(),
        )
    }

    /// For each name that both have, this over the other; not where the other is zero.
    pub fn over(&self, other: &Metrics) -> Metrics {
        let both = self.0.iter().filter_map(|(&name, &value)| {
            let other = other.get(name).filter(|other| *other != 0.0)?;
            Some((name, value / other))
        });
        Metrics(both.collect())
    }

    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        for (name, &value) in &self.0 {
            let value = number(value);
            match name.split_once('.') {
                None => {
                    object.insert((*name).to_owned(), value);
                }
                Some((group, name)) => {
                    let group = object.entry(group).or_insert_with(|| json!({}));
                    group[name] = value;
                }
            }
        }
        Value::Object(object)
    }
}

/// Whole numbers as such, so that counts look like counts.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), Some(2.5));
        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&values, 1.0), Some(4.0));
        assert_eq!(percentile(&values, 0.75), Some(3.25));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn medians_and_ratios_by_name() {
        let round = |wall: f64, more: Option<f64>| {
            let mut metrics = Metrics::default();
            metrics.insert("wall_s", wall);
            if let Some(more) = more {
                metrics.insert_distribution(TTFT, &[more]);
            }
            metrics
        };
        let median =
            Metrics::median_of(&[round(1.0, None), round(9.0, Some(0.5)), round(2.0, None)]);
        assert_eq!(median.get("wall_s"), Some(2.0));
        assert_eq!(median.get("ttft_s.p99"), Some(0.5));
        let ratio = median.over(&round(4.0, None));
        assert_eq!(ratio.get("wall_s"), Some(0.5));
        assert_eq!(ratio.get("ttft_s.p99"), None);
        assert_eq!(
            median.to_json(),
            json!({"ttft_s": {"max": 0.5, "p50": 0.5, "p95": 0.5, "p99": 0.5}, "wall_s": 2})
        );
    }
}
