//! What the output must look like: `response_format`, and vLLM's `guided_*` and `structured_outputs`.

use serde_json::{Map, Value, json};

use super::fields::{Field, Fields};
use super::limits;
use crate::grammar::{GrammarPart, GrammarSource};
use crate::http::error::ApiError;

/// The one constraint that a request puts on its output, if any.
///
/// # Errors
/// What is malformed, and two constraints at once. Schemas, expressions and grammars themselves are
/// understood when the model is known.
pub fn output_format(body: &Fields<'_>) -> Result<Option<GrammarPart>, ApiError> {
    let mut found = Vec::new();
    if let Some(format) = body.object("response_format")? {
        found.extend(response_format(&format)?.map(|part| ("response_format".to_owned(), part)));
    }
    found.extend(guided(body, "guided_")?);
    if let Some(outputs) = body.object("structured_outputs")? {
        if let Some(tag) = outputs.get("structural_tag") {
            return Err(ApiError::unsupported(
                tag.path,
                "is not supported; use `json`, `regex`, `choice` or `grammar`",
            ));
        }
        found.extend(guided(&outputs, "")?);
    }
    let mut found = found.into_iter();
    let first = found.next();
    match (first, found.next()) {
        (Some((first, _)), Some((second, _))) => Err(ApiError::invalid(
            second,
            format!("cannot be combined with `{first}`; give one of them"),
        )),
        (first, _) => Ok(first.map(|(_, part)| part)),
    }
}

fn response_format(format: &Fields<'_>) -> Result<Option<GrammarPart>, ApiError> {
    let kind = format.require("type")?;
    match kind.string()? {
        "text" => Ok(None),
        "json_object" => Ok(Some(any_object(kind.path))),
        "json_schema" => {
            let described = format.require("json_schema")?.object()?;
            schema_name(&described.require("name")?)?;
            described.string("description")?;
            described.boolean("strict")?;
            let Some(schema) = described.get("schema") else {
                return Ok(Some(any_object(described.path_of("schema"))));
            };
            schema.object()?;
            Ok(Some(json_schema(&schema)))
        }
        other => Err(kind.invalid(format!(
            "must be `text`, `json_object` or `json_schema`, got {other:?}"
        ))),
    }
}

/// Clients put it into file names and the like, so OpenAI restricts it.
fn schema_name(field: &Field<'_>) -> Result<(), ApiError> {
    let name = field.string()?;
    let fits = |character: char| character.is_ascii_alphanumeric() || "_-".contains(character);
    if name.is_empty() || name.len() > limits::SCHEMA_NAME_BYTES || !name.chars().all(fits) {
        return Err(field.invalid(format!(
            "must be 1 to {} letters, digits, underscores or dashes",
            limits::SCHEMA_NAME_BYTES
        )));
    }
    Ok(())
}

/// vLLM's spellings; all names begin with `prefix`. With each, the field it came from.
fn guided(body: &Fields<'_>, prefix: &str) -> Result<Vec<(String, GrammarPart)>, ApiError> {
    let mut found = Vec::new();
    let mut add = |part: GrammarPart| found.push((part.field.clone(), part));
    let get = |name: &str| body.get(&format!("{prefix}{name}"));
    let text = |field: Field<'_>, source: fn(String) -> GrammarSource| {
        let source = source(field.string()?.to_owned());
        Ok::<_, ApiError>(GrammarPart {
            field: field.path,
            source,
        })
    };
    if let Some(field) = get("json") {
        add(match field.value {
            // vLLM takes the schema as text, too.
            Value::String(schema) => {
                let schema: Value = serde_json::from_str(schema)
                    .map_err(|error| field.invalid(format!("is not valid JSON: {error}")))?;
                json_schema(&Field {
                    path: field.path,
                    value: &schema,
                })
            }
            Value::Object(_) => json_schema(&field),
            _ => return Err(field.wrong_type("a JSON schema")),
        });
    }
    if let Some(field) = get("json_object")
        && field.boolean()?
    {
        add(any_object(field.path));
    }
    if let Some(field) = get("regex") {
        add(text(field, GrammarSource::Regex)?);
    }
    if let Some(field) = get("grammar") {
        add(text(field, GrammarSource::Lark)?);
    }
    if let Some(field) = get("choice") {
        let choices = field.array(limits::CHOICES)?;
        if choices.is_empty() {
            return Err(field.invalid("must hold at least one string"));
        }
        let choices = choices
            .iter()
            .map(|choice| match choice.string()? {
                "" => Err(choice.invalid("must not be empty")),
                text => Ok(text.to_owned()),
            })
            .collect::<Result<Vec<_>, _>>()?;
        add(GrammarPart {
            field: field.path,
            source: GrammarSource::Choice(choices),
        });
    }
    Ok(found)
}

fn json_schema(field: &Field<'_>) -> GrammarPart {
    GrammarPart {
        field: field.path.clone(),
        source: GrammarSource::JsonSchema {
            schema: field.value.clone(),
            strict: true,
        },
    }
}

fn any_object(field: String) -> GrammarPart {
    let schema = Value::Object(Map::from_iter([("type".to_owned(), json!("object"))]));
    GrammarPart {
        field,
        source: GrammarSource::JsonSchema {
            schema,
            strict: true,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: Value) -> Result<Option<GrammarPart>, ApiError> {
        output_format(&Fields::root(&body).unwrap())
    }

    #[test]
    fn all_spellings_mean_the_same() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
        let source = |body: Value| parse(body).unwrap().map(|part| (part.field, part.source));
        let json = GrammarSource::JsonSchema {
            schema: schema.clone(),
            strict: true,
        };
        let named = json!({"name": "thing", "schema": schema, "strict": true});
        let format = json!({"type": "json_schema", "json_schema": named});
        for (body, field) in [
            (
                json!({"response_format": format}),
                "response_format.json_schema.schema",
            ),
            (json!({"guided_json": schema}), "guided_json"),
            (json!({"guided_json": schema.to_string()}), "guided_json"),
            (
                json!({"structured_outputs": {"json": schema}}),
                "structured_outputs.json",
            ),
        ] {
            assert_eq!(source(body), Some((field.to_owned(), json.clone())));
        }
        let choice = GrammarSource::Choice(vec!["a".into(), "b".into()]);
        for (body, expected) in [
            (json!({"guided_choice": ["a", "b"]}), choice.clone()),
            (
                json!({"structured_outputs": {"choice": ["a", "b"]}}),
                choice,
            ),
            (
                json!({"guided_regex": "a+"}),
                GrammarSource::Regex("a+".into()),
            ),
            (
                json!({"guided_grammar": "start: \"a\""}),
                GrammarSource::Lark("start: \"a\"".into()),
            ),
        ] {
            assert_eq!(source(body).unwrap().1, expected);
        }
        for free in [
            json!({}),
            json!({"response_format": {"type": "text"}, "guided_json": null}),
            json!({"structured_outputs": {}}),
        ] {
            assert_eq!(source(free), None);
        }
    }

    #[test]
    fn bad_input_names_the_field() {
        let format = |format: Value| json!({"response_format": format});
        let named = |name: Value| {
            format(json!({"type": "json_schema", "json_schema": {"name": name, "schema": {}}}))
        };
        for (body, parameter, part) in [
            (format(json!("json")), "response_format", "an object"),
            (format(json!({})), "response_format.type", "is required"),
            (
                format(json!({"type": "xml"})),
                "response_format.type",
                "got \"xml\"",
            ),
            (
                format(json!({"type": "json_schema"})),
                "response_format.json_schema",
                "is required",
            ),
            (
                format(json!({"type": "json_schema", "json_schema": {"schema": {}}})),
                "response_format.json_schema.name",
                "is required",
            ),
            (
                named(json!("")),
                "response_format.json_schema.name",
                "must be 1 to 64",
            ),
            (
                named(json!("a b")),
                "response_format.json_schema.name",
                "must be 1 to 64",
            ),
            (
                named(json!("a".repeat(65))),
                "response_format.json_schema.name",
                "must be 1 to 64",
            ),
            (
                format(json!({"type": "json_schema", "json_schema": {"name": "a", "strict": 1}})),
                "response_format.json_schema.strict",
                "true or false",
            ),
            (
                format(json!({"type": "json_schema", "json_schema": {"name": "a", "schema": []}})),
                "response_format.json_schema.schema",
                "an object",
            ),
            (json!({"guided_json": 1}), "guided_json", "a JSON schema"),
            (json!({"guided_json": "{"}), "guided_json", "not valid JSON"),
            (json!({"guided_regex": 1}), "guided_regex", "a string"),
            (json!({"guided_grammar": []}), "guided_grammar", "a string"),
            (json!({"guided_choice": "a"}), "guided_choice", "an array"),
            (
                json!({"guided_choice": []}),
                "guided_choice",
                "at least one",
            ),
            (
                json!({"guided_choice": ["a", 1]}),
                "guided_choice[1]",
                "a string",
            ),
            (
                json!({"guided_choice": [""]}),
                "guided_choice[0]",
                "must not be empty",
            ),
            (
                json!({"guided_regex": "a", "guided_json": {}}),
                "guided_regex",
                "cannot be combined with `guided_json`",
            ),
            (
                json!({"response_format": {"type": "json_object"}, "guided_choice": ["a"]}),
                "guided_choice",
                "cannot be combined with `response_format`",
            ),
            (
                json!({"structured_outputs": {"structural_tag": "{}"}}),
                "structured_outputs.structural_tag",
                "not supported",
            ),
        ] {
            let error = parse(body.clone()).expect_err(&body.to_string());
            assert_eq!(error.status(), 400);
            assert_eq!(error.body()["error"]["param"], parameter, "{body}");
            assert!(error.to_string().contains(part), "{body}: {error}");
        }
    }
}
