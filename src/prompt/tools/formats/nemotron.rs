//! `<TOOLCALL>[{"name": …, "arguments": {…}}]</TOOLCALL>`: Nemotron Nano 2.

use super::{LIST_OR_OBJECT, OBJECT};
use crate::prompt::tools::constraint::form::Way;
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Mark};
use crate::prompt::tools::written::Written;

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "nemotron",
    opens: &[Mark::new("<TOOLCALL>", LIST_OR_OBJECT)],
    again: &[Mark::new(",", OBJECT)],
    closes: &["]", "</TOOLCALL>"],
    end_tokens: &["<SPECIAL_12>"],
    written: Some(Written::List("<TOOLCALL>", "</TOOLCALL>")),
    ways: &[Way::list("<TOOLCALL>[", "]</TOOLCALL>")],
    #[cfg(test)]
    cases: CASES,
    ..Format::EMPTY
};

#[cfg(test)]
const CASES: &[Case] = &[
    Case::new(
        "one call",
        r#"<TOOLCALL>[{"name": "weather", "arguments": {"city": "Berlin"}}]</TOOLCALL>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        r#"<TOOLCALL>[{"name": "weather", "arguments": {"city": "Berlin"}}, {"name": "now", "arguments": {}}]</TOOLCALL>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<TOOLCALL>[{\"name\": \"now\", \"arguments\": {}}]</TOOLCALL>\nDone.",
        "I look.\nDone.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"<TOOLCALL>[{"name": "edit", "arguments": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}}]</TOOLCALL>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"<TOOLCALL>[{"name": "weather", "arguments": {"city": "Zürich 漢字 🙂"}}]</TOOLCALL>"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"<TOOLCALL>[{"name": "now", "arguments": {}}]</TOOLCALL>"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<TOOLCALL>[{"name": "weather", "arguments": {"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", "<TOOLCALL>[]</TOOLCALL>"),
    Case::text("look-alike", "<TOOLCALL> begins calls."),
];
