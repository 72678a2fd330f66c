//! The types of configuration values, and how each is written.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// `auto`, or a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto<T> {
    Auto,
    Set(T),
}

impl<T> Auto<T> {
    /// The value, if one was given.
    pub fn set(self) -> Option<T> {
        match self {
            Auto::Auto => None,
            Auto::Set(value) => Some(value),
        }
    }

    /// A parser of `auto` or whatever `parse` takes.
    pub fn parse_with<E: fmt::Display>(
        parse: impl Fn(&str) -> Result<T, E> + Clone,
    ) -> impl Fn(&str) -> Result<Self, String> + Clone {
        move |text| match text {
            "auto" => Ok(Auto::Auto),
            _ => match parse(text) {
                Ok(value) => Ok(Auto::Set(value)),
                Err(error) => Err(format!("{error} (or auto)")),
            },
        }
    }
}

impl<T: FromStr<Err: fmt::Display>> FromStr for Auto<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse_with(T::from_str)(text)
    }
}

/// An amount of memory, written `512MiB`, `2GiB`, `1.5GB` or as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// As a length in this process's memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text);
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1024.0 * 1024.0,
            "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
            _ => return Err("expected a size such as 512MiB or 2GiB".to_owned()),
        };
        match number.parse::<f64>() {
            Ok(number) if number > 0.0 && (number * factor) < u64::MAX as f64 => {
                Ok(ByteSize((number * factor) as u64))
            }
            _ => Err("expected a size above zero, such as 512MiB or 2GiB".to_owned()),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        for unit in ["B", "KiB", "MiB"] {
            if value < 1024.0 {
                return write!(f, "{}{unit}", (value * 10.0).round() / 10.0);
            }
            value /= 1024.0;
        }
        write!(f, "{}GiB", (value * 10.0).round() / 10.0)
    }
}

/// `NAME=VALUE`: an entry of a table in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedValue {
    pub name: String,
    pub value: String,
}

impl FromStr for NamedValue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok(NamedValue {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("expected NAME=VALUE".to_owned()),
        }
    }
}

/// A secret that clients send. It never shows in logs or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key itself, to compare with what a client sent.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

impl FromStr for ApiKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "a key is one or more printable ASCII characters without spaces".to_owned(),
            );
        }
        Ok(ApiKey(text.to_owned()))
    }
}

/// A browser origin (`https://app.example`), or any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Any,
    Exactly(String),
}

impl Origin {
    /// As it stands in the `Origin` header and in the configuration.
    pub fn as_str(&self) -> &str {
        match self {
            Origin::Any => "*",
            Origin::Exactly(origin) => origin,
        }
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Origin::Any);
        }
        match text.split_once("://") {
            Some((_, host)) if !host.is_empty() && !host.contains('/') && text.is_ascii() => {
                Ok(Origin::Exactly(text.to_owned()))
            }
            _ => Err("expected * or an origin such as https://app.example (no path)".to_owned()),
        }
    }
}

/// A whole number of at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// A number from 1 to 100.
pub fn parse_factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (1.0..=100.0).contains(&factor) => Ok(factor),
        _ => Err("expected a number from 1 to 100, such as 1.5".to_owned()),
    }
}

/// A power of two from 1 to 256.
pub fn parse_block_size(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(size) if size.is_power_of_two() && size <= 256 => Ok(size),
        _ => Err("expected a power of two from 1 to 256".to_owned()),
    }
}

/// `500ms`, `30s`, `10m`, `2h`, or seconds without a unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a duration such as 500ms, 30s, 10m or 2h".to_owned();
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    // Longer than a year is a slip, and would overflow the clock.
    let duration = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
    if duration > Duration::from_secs(366 * 24 * 3600) {
        return Err("a duration is at most a year".to_owned());
    }
    Ok(duration)
}

/// Anything but nothing.
pub fn parse_non_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("expected something".to_owned());
    }
    Ok(text.to_owned())
}

/// A path; empty means none.
pub fn parse_path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

/// A log filter, kept as it is written.
pub fn parse_log_filter(text: &str) -> Result<String, String> {
    crate::telemetry::parse_log_filter(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// `12.5GiB` into `12.5` and `GiB`.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for wrong in ["", "s", "-1s", "1 week", "1e3s", "9999999999h", "NaN"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!("2GiB".parse(), Ok(ByteSize(2 << 30)));
        assert_eq!("1.5MB".parse(), Ok(ByteSize(1_500_000)));
        assert_eq!("4096".parse(), Ok(ByteSize(4096)));
        for wrong in ["", "0", "-1GiB", "2 gigs", "99999999999GiB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
        assert_eq!(ByteSize(8 << 20).to_string(), "8MiB");
        assert_eq!(ByteSize(1_500_000).to_string(), "1.4MiB");
    }

    #[test]
    fn factors() {
        assert_eq!(parse_factor("1"), Ok(1.0));
        assert_eq!(parse_factor("2.5"), Ok(2.5));
        for wrong in ["", "0.9", "-2", "101", "inf", "NaN", "2x"] {
            assert!(parse_factor(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn origins() {
        assert_eq!("*".parse(), Ok(Origin::Any));
        assert!("https://app.example:8443".parse::<Origin>().is_ok());
        for wrong in ["app.example", "https://app.example/path", "https://"] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let key: ApiKey = "sk-secret".parse().unwrap();
        assert!(!format!("{key:?}").contains("secret"));
        assert!("two words".parse::<ApiKey>().is_err());
    }
}
