//! Strings that stand without quotes, up to a mark that ends them: arguments as Qwen3-Coder or Gemma write
//! them.

use serde_json::Value;

use llguidance::api::GrammarWithLexer;
use llguidance::regex_to_lark;

use super::{GrammarError, schema};

/// What a string may be, and how it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct PlainText {
    /// Says what the string may be. Anything but strings in it is passed over.
    pub schema: Value,
    /// Keywords that cannot be enforced are an error; otherwise they are passed over.
    pub strict: bool,
    /// Regular expressions of texts that would be read as something else than a string.
    pub except: Vec<String>,
    /// Regular expressions of texts that are read as something else than a string, and may be.
    pub also: Vec<String>,
    /// Never in the string: where it is read, the string ends.
    pub mark: String,
    /// Follows the string. It ends with `mark`.
    pub end: String,
}

/// The string and its end as one lexeme: no text of it is the beginning of another one.
pub(super) fn lower(text: &PlainText, field: &str) -> Result<GrammarWithLexer, GrammarError> {
    // What is wrong in the schema is found there, with its place.
    schema::prepare(&text.schema, field, text.strict)?;
    let mut conditions = vec![values(&text.schema, field)?];
    if let Some(pattern) = text.schema.get("pattern").and_then(Value::as_str) {
        conditions.push(searched(&regex_to_lark(pattern, "dw")));
    }
    if let Some(format) = text.schema.get("format").and_then(Value::as_str)
        && let Some((_, expression)) = FORMATS.iter().find(|(name, _)| *name == format)
    {
        conditions.push((*expression).to_owned());
    }
    let mark = escaped(&text.mark);
    let without = std::iter::once(format!("(?s:.*){mark}(?s:.*)")).chain(text.except.clone());
    let terms: Vec<String> = conditions
        .iter()
        .map(|condition| lark(condition))
        .chain(without.map(|condition| format!("~{}", lark(&condition))))
        .collect();
    let mut grammar = format!("start: VALUE\nSTRING: {}\n", terms.join(" & "));
    let end = lark(&escaped(&text.end));
    match text.also.is_empty() {
        true => grammar.push_str(&format!("VALUE: STRING {end}\n")),
        false => {
            let also = lark(&text.also.join("|"));
            grammar.push_str(&format!(
                "OTHER: {also}\nVALUE: STRING {end} | OTHER {end}\n"
            ));
        }
    }
    Ok(GrammarWithLexer::from_lark(grammar))
}

/// By the values or the length that the schema gives.
fn values(schema: &Value, field: &str) -> Result<String, GrammarError> {
    let listed = schema
        .get("enum")
        .and_then(Value::as_array)
        .cloned()
        .or_else(|| Some(vec![schema.get("const")?.clone()]));
    if let Some(values) = listed {
        let texts: Vec<String> = values
            .iter()
            .filter_map(Value::as_str)
            .map(escaped)
            .collect();
        if texts.is_empty() {
            return Err(GrammarError::invalid(field, "has no string to choose"));
        }
        return Ok(format!("(?:{})", texts.join("|")));
    }
    let length = |keyword: &str| {
        let number = schema.get(keyword)?;
        number
            .as_u64()
            .or_else(|| number.as_f64().map(|number| number as u64))
    };
    let least = length("minLength").unwrap_or(0);
    Ok(match length("maxLength") {
        Some(most) if most < least => {
            return Err(GrammarError::invalid(
                format!("{field}.maxLength"),
                "cannot be enforced: it is less than minLength",
            ));
        }
        Some(most) => format!("(?s:.{{{least},{most}}})"),
        None if least == 0 => "(?s:.*)".to_owned(),
        None => format!("(?s:.{{{least},}})"),
    })
}

/// An expression for texts in which this one is found, as `pattern` means it: without an anchor, anywhere.
fn searched(expression: &str) -> String {
    let branches: Vec<String> = branches(expression)
        .into_iter()
        .map(|branch| {
            let (start, rest) = match branch.strip_prefix('^') {
                Some(rest) => ("", rest),
                None => ("(?s:.*)", branch),
            };
            let backslashes = |text: &str| text.len() - text.trim_end_matches('\\').len();
            let (rest, end) = match rest.strip_suffix('$') {
                Some(before) if backslashes(before) % 2 == 0 => (before, ""),
                _ => (rest, "(?s:.*)"),
            };
            format!("{start}(?:{rest}){end}")
        })
        .collect();
    branches.join("|")
}

/// The alternatives of an expression, not those in groups and classes.
fn branches(expression: &str) -> Vec<&str> {
    let (mut found, mut begin, mut depth, mut in_class) = (Vec::new(), 0, 0usize, false);
    let mut characters = expression.char_indices();
    while let Some((position, character)) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => depth += 1,
            ')' if !in_class => depth = depth.saturating_sub(1),
            '|' if !in_class && depth == 0 => {
                found.push(&expression[begin..position]);
                begin = position + 1;
            }
            _ => {}
        }
    }
    found.push(&expression[begin..]);
    found
}

/// An expression as Lark has it.
fn lark(expression: &str) -> String {
    format!("/{}/", regex_to_lark(expression, ""))
}

/// A regular expression for this text.
pub fn escaped(text: &str) -> String {
    let special = |character: char| "|[](){}.*+?^$\\&~-#".contains(character);
    let mut expression = String::with_capacity(text.len());
    for character in text.chars() {
        if special(character) {
            expression.push('\\');
        }
        expression.push(character);
    }
    expression
}

/// The formats that strings can be held to. Each says a little less than its standard allows.
const FORMATS: [(&str, &str); 10] = [
    ("date", DATE),
    (
        "time",
        "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
    ),
    (
        "date-time",
        "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
    ),
    (
        "duration",
        "P(?:[0-9]{1,9}W|[0-9]{1,9}D(?:T[0-9]{1,9}H)?|(?:[0-9]{1,9}D)?T(?:[0-9]{1,9}H)?(?:[0-9]{1,9}M[0-9]{1,9}S|[0-9]{1,9}[MS])|T[0-9]{1,9}H|[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?)",
    ),
    (
        "email",
        "[A-Za-z0-9_+-]{1,30}(?:\\.[A-Za-z0-9_+-]{1,30})?@[A-Za-z0-9](?:[A-Za-z0-9-]{0,60}[A-Za-z0-9])?(?:\\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,60}[A-Za-z0-9])?){1,4}",
    ),
    (
        "hostname",
        "[A-Za-z0-9](?:[A-Za-z0-9-]{0,60}[A-Za-z0-9])?(?:\\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,40}[A-Za-z0-9])?){0,4}",
    ),
    (
        "ipv4",
        "(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])",
    ),
    (
        "ipv6",
        "(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}|(?:[0-9A-Fa-f]{1,4}:){1,5}(?::[0-9A-Fa-f]{1,4})|(?:[0-9A-Fa-f]{1,4}:){1,6}:|::(?:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){0,5})?",
    ),
    (
        "uuid",
        "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    ),
    (
        "uri",
        "[A-Za-z][A-Za-z0-9+.-]{1,20}:(?:[A-Za-z0-9._~:/?#@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+",
    ),
];

const DATE: &str = "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))";
