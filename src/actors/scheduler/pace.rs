//! How fast requests finish, to tell a refused client when to come back.

use std::time::{Duration, Instant};

/// The weight of the newest interval.
const NEWEST: f64 = 0.2;
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);

/// The mean interval between completions while there is work.
#[derive(Debug, Default)]
pub struct Pace {
    last: Option<Instant>,
    seconds: Option<f64>,
}

impl Pace {
    /// A request has finished.
    pub fn completed(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let interval = now.saturating_duration_since(last).as_secs_f64();
            self.seconds = Some(
                self.seconds
                    .map_or(interval, |mean| mean + NEWEST * (interval - mean)),
            );
        }
    }

    /// There is no work: the time until the next completion says nothing.
    pub fn pause(&mut self) {
        self.last = None;
    }

    /// When half of a queue of `waiting` requests will have gone, from 1 to 60 seconds in whole seconds.
    pub fn retry_after(&self, waiting: usize) -> Duration {
        let seconds = self.seconds.unwrap_or(0.0) * waiting as f64 / 2.0;
        let seconds = seconds.ceil().min(MOST.as_secs_f64());
        Duration::from_secs(seconds as u64).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_completions() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.retry_after(100), LEAST);
        for second in 0..20 {
            pace.completed(start + Duration::from_secs(second));
        }
        assert_eq!(pace.retry_after(20), Duration::from_secs(10));
        assert_eq!(pace.retry_after(1000), MOST);
        pace.pause();
        pace.completed(start + Duration::from_secs(5000));
        assert_eq!(
            pace.retry_after(20),
            Duration::from_secs(10),
            "an idle hour is no interval"
        );
    }
}
