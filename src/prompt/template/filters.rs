//! Filters and tests where Jinja2's, run by Python, differ from the engine's.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters};

use super::json;
use super::source::ITERATE;
use super::values::{is_float, python_lines, python_str};

/// Registers them.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |value: &Value| python_str(value));
    environment.add_filter("indent", indent);
    environment.add_filter("join", join);
    environment.add_filter(ITERATE, iterate);
    over_iterables(environment);

    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined
        )
    });
    // Python's bool is a number.
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool) || is_float(value)
    });
    environment.add_test("float", is_float);
}

fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// What a `for` walks over. None is nothing to the engine, and an error to Python.
fn iterate(value: Value) -> Result<Value, Error> {
    if is_iterable(&value) {
        return Ok(value);
    }
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("value of type {} is not iterable", value.kind()),
    ))
}

/// Filters that walk over their input, with the same check as `for`. (`map`, `select` and their like take
/// None for nothing in Jinja2, too.)
fn over_iterables(environment: &mut Environment<'static>) {
    macro_rules! checked {
        ($($name:literal as $inner:literal: $filter:path),* $(,)?) => {$(
            environment.add_filter($inner, $filter);
            environment.add_filter($name, |state: &mut State, value: Value, rest: Rest<Value>, named: Kwargs| {
                let mut arguments = vec![iterate(value)?];
                arguments.extend(rest.iter().cloned());
                if named.args().next().is_some() {
                    arguments.push(Value::from(named));
                }
                state.apply_filter($inner, &arguments)
            });
        )*};
    }
    checked! {
        "list" as "__list__": filters::list,
        "sort" as "__sort__": filters::sort,
        "unique" as "__unique__": filters::unique,
        "first" as "__first__": filters::first,
        "last" as "__last__": filters::last,
        "min" as "__min__": filters::min,
        "max" as "__max__": filters::max,
        "sum" as "__sum__": filters::sum,
        "groupby" as "__groupby__": filters::groupby,
        "batch" as "__batch__": filters::batch,
    }
}

/// `value|join(separator, attribute=None)`.
fn join(value: Value, separator: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let separator = match separator {
        Some(separator) => Some(separator),
        None => options.get::<Option<Value>>("d")?,
    };
    let separator = separator
        .map(|separator| python_str(&separator))
        .unwrap_or_default();
    let attribute = options.get::<Option<String>>("attribute")?;
    options.assert_all_used()?;
    let mut text = String::new();
    for (place, item) in iterate(value)?.try_iter()?.enumerate() {
        if place > 0 {
            text.push_str(&separator);
        }
        let item = match &attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        text.push_str(&python_str(&item));
    }
    Ok(text)
}

/// `value|indent(width=4, first=False, blank=False)`: each line but the first, and but empty ones, gets
/// spaces (or `width`, if that is a string) in front.
fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => options.get::<Option<Value>>("width")?,
    };
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    let indention = match width.as_ref() {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(width.as_usize().unwrap_or(0).min(1024)),
        },
    };
    let text = python_str(value);
    let mut indented = String::new();
    if first {
        indented.push_str(&indention);
    }
    // Jinja2 adds a line end first, so that a last empty line counts.
    for (place, line) in python_lines(&(text + "\n")).into_iter().enumerate() {
        if place > 0 {
            indented.push('\n');
            if blank || !line.is_empty() {
                indented.push_str(&indention);
            }
        }
        indented.push_str(line);
    }
    Ok(indented)
}
