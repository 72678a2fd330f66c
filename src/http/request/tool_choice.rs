//! `tool_choice` and `parallel_tool_calls`: whether the model may, must or must not call, and what.

use serde_json::Value;

use super::fields::{Field, Fields};
use super::limits;
use crate::http::error::ApiError;

/// Whether the model may call tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolChoice {
    Auto,
    /// The tools stay in the prompt, so that its tokens (and the cache) are those of the turns with `auto`.
    None,
    /// The output is a call.
    Required,
}

/// What a request says about calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolRules {
    pub choice: ToolChoice,
    /// Indices of the tools that may be called. None: all.
    pub callable: Option<Vec<usize>>,
    /// Several calls in one answer are fine.
    pub parallel: bool,
}

impl ToolRules {
    /// `tools` are the declared ones, checked.
    ///
    /// # Errors
    /// A choice that is malformed, or means a tool that is not declared.
    pub fn parse(body: &Fields<'_>, tools: &[Value]) -> Result<Self, ApiError> {
        let mut rules = ToolRules {
            choice: ToolChoice::Auto,
            callable: None,
            parallel: body.boolean("parallel_tool_calls")?.unwrap_or(true),
        };
        let Some(field) = body.get("tool_choice") else {
            return Ok(rules);
        };
        let known = Declared(tools);
        match field.value {
            Value::String(_) => rules.choice = mode(&field, &["none", "auto", "required"])?,
            Value::Object(_) => {
                let choice = field.object()?;
                let kind = choice.require("type")?;
                match kind.string()? {
                    "function" => {
                        rules.choice = ToolChoice::Required;
                        rules.callable = Some(vec![known.function(&choice)?]);
                        rules.parallel = false;
                    }
                    "allowed_tools" => {
                        // In the chat API its members are one level deeper than in the Responses API.
                        let allowed = choice.object("allowed_tools")?.unwrap_or(choice);
                        rules.choice = mode(&allowed.require("mode")?, &["auto", "required"])?;
                        rules.callable = Some(known.several(&allowed.require("tools")?)?);
                    }
                    other => {
                        return Err(kind.invalid(format!(
                            "must be `function` or `allowed_tools`, got {other:?}"
                        )));
                    }
                }
            }
            _ => return Err(field.wrong_type("a string or an object")),
        }
        if tools.is_empty() && rules.choice != ToolChoice::None {
            return Err(field.invalid("needs `tools`; declare at least one, or leave it out"));
        }
        Ok(rules)
    }
}

fn mode(field: &Field<'_>, names: &[&str]) -> Result<ToolChoice, ApiError> {
    let name = field.string()?;
    match name {
        _ if !names.contains(&name) => {
            Err(field.invalid(format!("must be one of {}, got {name:?}", names.join(", "))))
        }
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        _ => Ok(ToolChoice::Auto),
    }
}

/// The tools of the request.
struct Declared<'a>(&'a [Value]);

impl Declared<'_> {
    /// `{"type": "function", "function": {"name": …}}`, or with the name one level up.
    fn function(&self, choice: &Fields<'_>) -> Result<usize, ApiError> {
        let field = match choice.object("function")? {
            Some(function) => function.require("name")?,
            None => match choice.get("name") {
                Some(name) => name,
                None => choice.require("function")?,
            },
        };
        let name = field.string()?;
        let is_it = |tool: &Value| tool["function"]["name"] == name;
        self.0
            .iter()
            .position(is_it)
            .ok_or_else(|| field.invalid(format!("is {name:?}, which `tools` does not declare")))
    }

    fn several(&self, field: &Field<'_>) -> Result<Vec<usize>, ApiError> {
        let choices = field.array(limits::TOOLS)?;
        if choices.is_empty() {
            return Err(field.invalid("must name at least one tool"));
        }
        let mut callable = Vec::with_capacity(choices.len());
        for choice in &choices {
            let choice = choice.object()?;
            if let Some(kind) = choice.get("type")
                && kind.string()? != "function"
            {
                return Err(kind.invalid("must be `function`"));
            }
            let index = self.function(&choice)?;
            if !callable.contains(&index) {
                callable.push(index);
            }
        }
        Ok(callable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tools() -> Vec<Value> {
        ["a", "b", "c"]
            .map(|name| json!({"type": "function", "function": {"name": name}}))
            .to_vec()
    }

    fn parse(choice: Value) -> Result<ToolRules, ApiError> {
        let body = json!({"tool_choice": choice});
        ToolRules::parse(&Fields::root(&body).unwrap(), &tools())
    }

    #[test]
    fn both_spellings_of_a_function_and_of_allowed_tools() {
        let rules = |choice: Value| parse(choice).unwrap();
        for choice in [
            json!({"type": "function", "function": {"name": "b"}}),
            json!({"type": "function", "name": "b"}),
        ] {
            let expected = ToolRules {
                choice: ToolChoice::Required,
                callable: Some(vec![1]),
                parallel: false,
            };
            assert_eq!(rules(choice), expected);
        }
        let chat = json!({"mode": "auto", "tools": [
            {"type": "function", "function": {"name": "c"}}, {"type": "function", "function": {"name": "a"}}]});
        let flat = json!({"type": "allowed_tools", "mode": "required", "tools": [
            {"type": "function", "name": "c"}, {"name": "a"}, {"name": "c"}]});
        let chat = rules(json!({"type": "allowed_tools", "allowed_tools": chat}));
        assert_eq!(
            (chat.choice, chat.callable),
            (ToolChoice::Auto, Some(vec![2, 0]))
        );
        let flat = rules(flat);
        assert_eq!(
            (flat.choice, flat.callable),
            (ToolChoice::Required, Some(vec![2, 0]))
        );
        for (name, choice) in [
            ("none", ToolChoice::None),
            ("auto", ToolChoice::Auto),
            ("required", ToolChoice::Required),
        ] {
            let rules = rules(json!(name));
            assert_eq!(
                (rules.choice, rules.callable, rules.parallel),
                (choice, None, true)
            );
        }
    }

    #[test]
    fn bad_input_names_the_field() {
        for (choice, parameter, part) in [
            (json!("maybe"), "tool_choice", "got \"maybe\""),
            (json!(1), "tool_choice", "a string or an object"),
            (json!({}), "tool_choice.type", "is required"),
            (
                json!({"type": "custom"}),
                "tool_choice.type",
                "got \"custom\"",
            ),
            (
                json!({"type": "function"}),
                "tool_choice.function",
                "is required",
            ),
            (
                json!({"type": "function", "function": {}}),
                "tool_choice.function.name",
                "is required",
            ),
            (
                json!({"type": "function", "function": {"name": "d"}}),
                "tool_choice.function.name",
                "is \"d\", which `tools` does not declare",
            ),
            (
                json!({"type": "function", "name": "d"}),
                "tool_choice.name",
                "does not declare",
            ),
            (
                json!({"type": "allowed_tools"}),
                "tool_choice.mode",
                "is required",
            ),
            (
                json!({"type": "allowed_tools", "mode": "none", "tools": []}),
                "tool_choice.mode",
                "must be one of auto, required",
            ),
            (
                json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}),
                "tool_choice.allowed_tools.tools",
                "is required",
            ),
            (
                json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
                "tool_choice.allowed_tools.tools",
                "at least one",
            ),
            (
                json!({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "a"}, {"name": "z"}]}),
                "tool_choice.tools[1].name",
                "does not declare",
            ),
        ] {
            let error = parse(choice.clone()).expect_err(&choice.to_string());
            assert_eq!(error.status(), 400);
            assert_eq!(error.body()["error"]["param"], parameter, "{choice}");
            assert!(error.to_string().contains(part), "{choice}: {error}");
        }
        for choice in [
            json!("auto"),
            json!("required"),
            json!({"type": "function", "name": "a"}),
        ] {
            let body = json!({"tool_choice": choice});
            let error = ToolRules::parse(&Fields::root(&body).unwrap(), &[]).unwrap_err();
            assert_eq!(error.status(), 400);
            assert!(error.to_string().contains("tool"), "{error}");
        }
        let body = json!({"tool_choice": "none"});
        assert!(ToolRules::parse(&Fields::root(&body).unwrap(), &[]).is_ok());
    }
}
