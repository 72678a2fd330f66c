//! Reading a JSON body field by field, so that every error names the field and what it should be.

use serde_json::{Map, Value};

use crate::http::error::ApiError;

/// A value and where it stands in the body.
#[derive(Clone)]
pub struct Field<'a> {
    pub path: String,
    pub value: &'a Value,
}

/// An object and where it stands in the body (the path of the body itself is empty).
#[derive(Clone)]
pub struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

/// What a value is, for messages such as "must be a string, not a number".
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl<'a> Fields<'a> {
    /// The body itself.
    pub fn root(body: &'a Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(map) => Ok(Fields {
                path: String::new(),
                map,
            }),
            other => Err(ApiError::malformed(format!(
                "the body must be a JSON object, not {}",
                kind(other)
            ))),
        }
    }

    /// The path of a member.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// A member that is present and not null.
    pub fn get(&self, name: &str) -> Option<Field<'a>> {
        let value = self.map.get(name)?;
        (!value.is_null()).then(|| Field {
            path: self.path_of(name),
            value,
        })
    }

    /// A member that must be there.
    pub fn require(&self, name: &str) -> Result<Field<'a>, ApiError> {
        self.get(name).ok_or_else(|| ApiError::InvalidRequest {
            message: format!("`{}` is required", self.path_of(name)),
            parameter: Some(self.path_of(name)),
            code: "missing_required_parameter",
        })
    }

    pub fn number(&self, name: &str, minimum: f64, maximum: f64) -> Result<Option<f64>, ApiError> {
        self.get(name)
            .map(|field| field.number(minimum, maximum))
            .transpose()
    }

    pub fn integer(&self, name: &str, minimum: i64, maximum: i64) -> Result<Option<i64>, ApiError> {
        self.get(name)
            .map(|field| field.integer(minimum, maximum))
            .transpose()
    }

    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.get(name).map(|field| field.boolean()).transpose()
    }

    pub fn string(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.get(name).map(|field| field.string()).transpose()
    }

    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(name).map(|field| field.object()).transpose()
    }

    pub fn array(&self, name: &str, maximum: usize) -> Result<Option<Vec<Field<'a>>>, ApiError> {
        self.get(name).map(|field| field.array(maximum)).transpose()
    }

    /// All members, in the order of the body.
    pub fn members(&self) -> impl Iterator<Item = (&'a str, Field<'a>)> {
        self.map.iter().map(|(name, value)| {
            (
                name.as_str(),
                Field {
                    path: self.path_of(name),
                    value,
                },
            )
        })
    }

    /// The JSON object itself.
    pub fn map(&self) -> &'a Map<String, Value> {
        self.map
    }
}

impl<'a> Field<'a> {
    /// A 400 about this field: "`path` message".
    pub fn invalid(&self, message: impl Into<String>) -> ApiError {
        ApiError::invalid(self.path.clone(), message)
    }

    /// A 400 about this field's type.
    pub fn wrong_type(&self, expected: &str) -> ApiError {
        ApiError::InvalidRequest {
            message: format!(
                "`{}` must be {expected}, not {}",
                self.path,
                kind(self.value)
            ),
            parameter: Some(self.path.clone()),
            code: "invalid_type",
        }
    }

    /// A finite number from `minimum` to `maximum`.
    pub fn number(&self, minimum: f64, maximum: f64) -> Result<f64, ApiError> {
        let number = self
            .value
            .as_f64()
            .ok_or_else(|| self.wrong_type("a number"))?;
        if number.is_finite() && (minimum..=maximum).contains(&number) {
            Ok(number)
        } else {
            Err(self.invalid(format!(
                "must be between {minimum} and {maximum}, got {number}"
            )))
        }
    }

    /// A whole number from `minimum` to `maximum`; `8.0` is one, too.
    pub fn integer(&self, minimum: i64, maximum: i64) -> Result<i64, ApiError> {
        if !self.value.is_number() {
            return Err(self.wrong_type("an integer"));
        }
        let whole = self.value.as_i64().or_else(|| {
            let number = self.value.as_f64()?;
            // Above 2^53 a float no longer says which integer it means.
            (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0)
                .then_some(number as i64)
        });
        match whole {
            Some(integer) if (minimum..=maximum).contains(&integer) => Ok(integer),
            _ if maximum == i64::MAX => Err(self.invalid(format!(
                "must be an integer of at least {minimum}, got {}",
                self.value
            ))),
            _ => Err(self.invalid(format!(
                "must be an integer from {minimum} to {maximum}, got {}",
                self.value
            ))),
        }
    }

    pub fn boolean(&self) -> Result<bool, ApiError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong_type("true or false"))
    }

    pub fn string(&self) -> Result<&'a str, ApiError> {
        self.value
            .as_str()
            .ok_or_else(|| self.wrong_type("a string"))
    }

    pub fn object(&self) -> Result<Fields<'a>, ApiError> {
        match self.value {
            Value::Object(map) => Ok(Fields {
                path: self.path.clone(),
                map,
            }),
            _ => Err(self.wrong_type("an object")),
        }
    }

    /// The elements of an array of at most `maximum`.
    pub fn array(&self, maximum: usize) -> Result<Vec<Field<'a>>, ApiError> {
        let Value::Array(items) = self.value else {
            return Err(self.wrong_type("an array"));
        };
        if items.len() > maximum {
            return Err(self.invalid(format!(
                "has {} elements; at most {maximum} are accepted",
                items.len()
            )));
        }
        let field = |(index, value)| Field {
            path: format!("{}[{index}]", self.path),
            value,
        };
        Ok(items.iter().enumerate().map(field).collect())
    }
}
