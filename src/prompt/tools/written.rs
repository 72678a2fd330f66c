//! Calls as text, for templates that print none: told to the model as an example, and in later turns.

use serde_json::Value;

/// How calls are written.
#[derive(Debug, Clone, Copy)]
pub(in crate::prompt) enum Written {
    /// Each as an object with `name` and `arguments` between these, on lines of their own.
    Each(&'static str, &'static str),
    /// As a list of such objects between these.
    List(&'static str, &'static str),
    /// Each with its name and arguments between marks.
    Named {
        open: &'static str,
        before: &'static str,
        between: &'static str,
        after: &'static str,
        close: &'static str,
    },
    /// As Python, with this between them, between these.
    Python(&'static str, &'static str, &'static str),
}

impl Written {
    /// Names and the JSON text of arguments as text.
    pub(in crate::prompt) fn text(self, calls: &[(String, String)]) -> String {
        let object = |(name, arguments): &(String, String)| {
            let name = Value::from(name.as_str());
            format!("{{\"name\": {name}, \"arguments\": {arguments}}}")
        };
        match self {
            Written::Each(open, close) => {
                let each = |call| format!("{open}\n{}\n{close}", object(call));
                calls.iter().map(each).collect::<Vec<_>>().join("\n")
            }
            Written::List(open, close) => {
                let list: Vec<String> = calls.iter().map(object).collect();
                format!("{open}[{}]{close}", list.join(", "))
            }
            Written::Named {
                open,
                before,
                between,
                after,
                close,
            } => {
                let each = |(number, (name, arguments)): (usize, &(String, String))| {
                    let between = between.replace('#', &number.to_string());
                    format!("{before}{name}{between}{arguments}{after}")
                };
                let calls: String = calls.iter().enumerate().map(each).collect();
                format!("{open}{calls}{close}")
            }
            Written::Python(open, between, close) => {
                let list: Vec<String> = calls.iter().map(python_call).collect();
                format!("{open}{}{close}", list.join(between))
            }
        }
    }
}

fn python_call((name, arguments): &(String, String)) -> String {
    let arguments: serde_json::Map<String, Value> =
        serde_json::from_str(arguments).unwrap_or_default();
    let arguments: Vec<String> = arguments
        .iter()
        .map(|(key, value)| format!("{key}={}", python(value)))
        .collect();
    format!("{name}({})", arguments.join(", "))
}

/// A value in Python's notation.
pub(super) fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(python).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), python(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        // What JSON escapes in strings, Python understands alike.
        Value::Number(_) | Value::String(_) => value.to_string(),
    }
}
