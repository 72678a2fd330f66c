//! A tool call's arguments as templates see them.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};

use super::json::json_value;

/// Arguments that came as JSON text: a mapping for templates that look into it, and the very same text
/// for those that print it or turn it into JSON. A call is so rendered as the model wrote it, and the
/// tokens of a conversation stay a prefix of its next turn.
#[derive(Debug)]
pub(super) struct Arguments {
    text: String,
    fields: Value,
}

impl Arguments {
    /// The JSON text as it came.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

impl Object for Arguments {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.fields
            .get_item(key)
            .ok()
            .filter(|value| !value.is_undefined())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.fields.try_iter() {
            Ok(keys) => Enumerator::Values(keys.collect()),
            Err(_) => Enumerator::Empty,
        }
    }

    fn render(self: &Arc<Self>, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// JSON text as a mapping that remembers it; nothing if it is not the text of an object.
pub(in crate::prompt) fn arguments_value(text: &str) -> Option<Value> {
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let fields = json_value(&serde_json::Value::Object(fields));
    Some(Value::from_object(Arguments {
        text: text.to_string(),
        fields,
    }))
}
