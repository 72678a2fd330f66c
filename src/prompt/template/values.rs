//! Values as Python prints them.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, Value, ValueKind};

use super::arguments::Arguments;
use super::json::float_repr;

/// Lists and mappings in each other, at most; deeper ones are printed as `...`.
const MAX_DEPTH: usize = 200;

/// A float that Python writes with an exponent. The engine would not, wherever it turns it into text.
#[derive(Debug)]
struct LongFloat(f64);

impl Object for LongFloat {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&float_repr(self.0))
    }
}

/// A float as templates see it.
pub(super) fn float_value(number: f64) -> Value {
    if float_repr(number).contains('e') {
        Value::from_object(LongFloat(number))
    } else {
        Value::from(number)
    }
}

/// The value is a float.
pub(super) fn is_float(value: &Value) -> bool {
    (value.is_number() && !value.is_integer()) || value.downcast_object_ref::<LongFloat>().is_some()
}

/// The value's number, if it is a float.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    match value.downcast_object_ref::<LongFloat>() {
        Some(LongFloat(number)) => Some(*number),
        None if is_float(value) => f64::try_from(value.clone()).ok(),
        None => None,
    }
}

/// `text.splitlines()`.
pub(super) fn python_lines(text: &str) -> Vec<&str> {
    let is_end = |character: char| {
        matches!(
            character,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(is_end) {
        lines.push(&rest[..end]);
        let line_end = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        rest = &rest[end + line_end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// `str(value)`.
pub(super) fn python_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        _ => {
            let mut text = String::new();
            write_repr(value, &mut text, 0);
            text
        }
    }
}

/// Appends `repr(value)`.
fn write_repr(value: &Value, out: &mut String, depth: usize) {
    if let Some(arguments) = value.downcast_object_ref::<Arguments>() {
        out.push_str(arguments.text());
        return;
    }
    if let Some(number) = as_float(value) {
        match number {
            _ if number.is_nan() => out.push_str("nan"),
            _ if number.is_infinite() => out.push_str(if number > 0.0 { "inf" } else { "-inf" }),
            _ => out.push_str(&float_repr(number)),
        }
        return;
    }
    match value.kind() {
        ValueKind::String => write_string(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Map if depth > MAX_DEPTH => out.push_str("..."),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() {
                ('(', ')')
            } else {
                ('[', ']')
            };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.push_str(", ");
                }
                write_repr(&item, out, depth + 1);
                count += 1;
            }
            if value.is_tuple() && count == 1 {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (place, key) in value.try_iter().into_iter().flatten().enumerate() {
                if place > 0 {
                    out.push_str(", ");
                }
                write_repr(&key, out, depth + 1);
                out.push_str(": ");
                write_repr(&value.get_item(&key).unwrap_or_default(), out, depth + 1);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn write_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if character == quote => {
                out.push('\\');
                out.push(character);
            }
            _ if is_printable(character) => out.push(character),
            _ => match u32::from(character) {
                code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ 0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
}

/// `str.isprintable` for the characters that texts hold: no control, format, private or separator
/// characters but the space.
fn is_printable(character: char) -> bool {
    let format = matches!(
        character,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}'
            | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e007f}' | '\u{f0000}'..
    );
    character == ' ' || !(character.is_control() || character.is_whitespace() || format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::template::json_value;

    #[test]
    fn values_are_printed_as_python_does() {
        let value = json_value(&serde_json::json!({
            "a": [1, -2.0, 1e-7, true, null, "it's", "\"q\"", "both ' \"", "\u{a0}\u{1b}\u{2028}ü🙂\\"],
            "b": {}, "c": [],
        }));
        assert_eq!(
            python_str(&value),
            r#"{'a': [1, -2.0, 1e-07, True, None, "it's", '"q"', 'both \' "', '\xa0\x1b\u2028ü🙂\\'], 'b': {}, 'c': []}"#
        );
        assert_eq!(python_str(&Value::UNDEFINED), "");
        assert_eq!(python_str(&Value::from(())), "None");
        assert_eq!(python_str(&Value::from(1e22)), "1e+22");
    }
}
