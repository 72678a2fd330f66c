//! The tools a request declares, as far as reading calls needs them.

use std::sync::Arc;

use serde_json::Value;

/// References in schemas that are followed in each other, at most.
const MAX_DEPTH: usize = 8;

/// The declared tools' names and their parameters' types. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeclaredTools(Arc<Vec<Tool>>);

#[derive(Debug, PartialEq, Eq)]
struct Tool {
    name: String,
    /// In the order in which they are declared.
    parameters: Vec<(String, Kinds)>,
}

/// The JSON types that a value may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Kinds(u8);

impl Kinds {
    pub(super) const STRING: Kinds = Kinds(1);
    const NUMBER: Kinds = Kinds(2);
    const BOOLEAN: Kinds = Kinds(4);
    const ARRAY: Kinds = Kinds(8);
    const OBJECT: Kinds = Kinds(16);
    const NULL: Kinds = Kinds(32);
    /// All but strings that stand without quotes.
    pub(super) const JSON: Kinds = Kinds(62);
    /// Nothing is said about it.
    pub(super) const ANY: Kinds = Kinds(63);

    fn of_value(value: &Value) -> Kinds {
        match value {
            Value::Null => Kinds::NULL,
            Value::Bool(_) => Kinds::BOOLEAN,
            Value::Number(_) => Kinds::NUMBER,
            Value::String(_) => Kinds::STRING,
            Value::Array(_) => Kinds::ARRAY,
            Value::Object(_) => Kinds::OBJECT,
        }
    }

    fn of_name(name: &str) -> Kinds {
        match name {
            "string" | "str" => Kinds::STRING,
            "number" | "integer" | "int" | "float" => Kinds::NUMBER,
            "boolean" | "bool" => Kinds::BOOLEAN,
            "array" | "list" => Kinds::ARRAY,
            "object" | "dict" => Kinds::OBJECT,
            "null" => Kinds::NULL,
            _ => Kinds::default(),
        }
    }

    fn or(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    /// A value of this type is allowed.
    pub(super) fn allow(self, value: &Value) -> bool {
        self.0 & Kinds::of_value(value).0 != 0
    }

    pub(super) fn allow_strings(self) -> bool {
        self.0 & Kinds::STRING.0 != 0
    }
}

impl DeclaredTools {
    /// From tools as OpenAI's API declares them, or functions alone. What is not as expected is left out.
    pub fn new(tools: &[Value]) -> Self {
        let tools = tools.iter().filter_map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            let schema = function
                .get("parameters")
                .or_else(|| function.get("input_schema"))
                .unwrap_or(&Value::Null);
            let properties = schema["properties"].as_object();
            Some(Tool {
                name: function["name"].as_str()?.to_owned(),
                parameters: properties
                    .into_iter()
                    .flatten()
                    .map(|(name, property)| (name.clone(), kinds(property, schema, 0)))
                    .collect(),
            })
        });
        DeclaredTools(Arc::new(tools.collect()))
    }

    /// A tool has this name. Where nothing is declared, every name will do.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.0.is_empty() || self.tool(name).is_some()
    }

    /// A tool of this name was declared.
    pub(in crate::prompt) fn declares(&self, name: &str) -> bool {
        self.tool(name).is_some()
    }

    /// What a parameter's value may be.
    pub(super) fn kinds(&self, tool: &str, parameter: &str) -> Kinds {
        let found = self.tool(tool).and_then(|tool| {
            let named = |(name, _): &&(String, Kinds)| name == parameter;
            tool.parameters.iter().find(named)
        });
        found.map_or(Kinds::ANY, |(_, kinds)| *kinds)
    }

    /// The name of a tool's parameter at this place.
    pub(super) fn parameter(&self, tool: &str, position: usize) -> Option<&str> {
        let (name, _) = self.tool(tool)?.parameters.get(position)?;
        Some(name)
    }

    fn tool(&self, name: &str) -> Option<&Tool> {
        self.0.iter().find(|tool| tool.name == name)
    }
}

/// The types that a schema allows; all if it does not say.
fn kinds(schema: &Value, root: &Value, depth: usize) -> Kinds {
    let mut found = match &schema["type"] {
        Value::String(name) => Kinds::of_name(name),
        Value::Array(names) => names
            .iter()
            .filter_map(Value::as_str)
            .fold(Kinds::default(), |kinds, name| {
                kinds.or(Kinds::of_name(name))
            }),
        _ => Kinds::default(),
    };
    if found == Kinds::default() {
        let values = schema["enum"].as_array().into_iter().flatten();
        found = values
            .chain(schema.get("const"))
            .fold(found, |kinds, value| kinds.or(Kinds::of_value(value)));
    }
    if found == Kinds::default() && depth < MAX_DEPTH {
        let alternatives = ["anyOf", "oneOf", "allOf"]
            .into_iter()
            .filter_map(|key| schema[key].as_array())
            .flatten();
        let reference = schema["$ref"]
            .as_str()
            .and_then(|path| root.pointer(path.strip_prefix('#')?));
        found = alternatives.chain(reference).fold(found, |found, schema| {
            found.or(kinds(schema, root, depth + 1))
        });
    }
    if found == Kinds::default() {
        Kinds::ANY
    } else {
        found
    }
}
