//! Typed access to a JSON object from a model's folder, with errors that name file and field.

use serde_json::{Map, Value};

use super::error::LoadError;

/// A JSON object and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct JsonObject {
    file: String,
    prefix: String,
    values: Map<String, Value>,
}

impl JsonObject {
    /// Parses the whole of a file.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        let invalid = |message: String| LoadError::Json {
            file: file.to_owned(),
            message,
        };
        match serde_json::from_slice(bytes).map_err(|cause| invalid(cause.to_string()))? {
            Value::Object(values) => Ok(Self {
                file: file.to_owned(),
                prefix: String::new(),
                values,
            }),
            _ => Err(invalid("it is not an object".to_owned())),
        }
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    /// The error of a field of this object.
    pub fn error(&self, key: &str, message: impl Into<String>) -> LoadError {
        LoadError::field(&self.file, format!("{}{key}", self.prefix), message)
    }

    /// The value of a key, unless absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let wrong =
            |value| self.error(key, format!("must be {expected}, not {}", shortened(value)));
        self.get(key)
            .map(|value| convert(value).ok_or_else(|| wrong(value)))
            .transpose()
    }

    /// A whole number that is not negative.
    pub fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.typed(key, "a whole number that is not negative", |value| {
            value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
        })
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub fn object(&self, key: &str) -> Result<Option<JsonObject>, LoadError> {
        Ok(self
            .typed(key, "an object", Value::as_object)?
            .map(|values| JsonObject {
                file: self.file.clone(),
                prefix: format!("{}{key}.", self.prefix),
                values: values.clone(),
            }))
    }

    /// A field without which nothing works.
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, LoadError> {
        value.ok_or_else(|| self.error(key, "is missing"))
    }

    pub fn keys(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }
}

/// A value for an error message: at most a line.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return text;
    }
    text.chars().take(60).chain("…".chars()).collect()
}
