//! `<|tool_call|>[{"name": …, "arguments": {…}}]`: Granite 3.

use super::{LIST_OR_OBJECT, OBJECT};
use crate::prompt::tools::constraint::form::Way;
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Mark};
use crate::prompt::tools::written::Written;

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "granite",
    opens: &[
        Mark::new("<|tool_call|>", LIST_OR_OBJECT),
        Mark::new("<tool_call>", LIST_OR_OBJECT),
    ],
    again: &[Mark::new(",", OBJECT)],
    closes: &["]", "</tool_call>"],
    noise: &["<response>", "</response>"],
    hints: &["<|tool_call|>"],
    written: Some(Written::List("<|tool_call|>", "")),
    ways: &[Way::list("<|tool_call|>[", "]")],
    #[cfg(test)]
    cases: CASES,
    ..Format::EMPTY
};

#[cfg(test)]
const CASES: &[Case] = &[
    Case::new(
        "one call",
        r#"<|tool_call|>[{"name": "weather", "arguments": {"city": "Berlin"}}]"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        r#"<|tool_call|> [{"name": "weather", "arguments": {"city": "Berlin"}}, {"name": "now", "arguments": {}}]"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        r#"I look.<|tool_call|>[{"name": "now", "arguments": {}}]Done."#,
        "I look.Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "another tag",
        r#"<tool_call>[{"name": "now", "arguments": {}}]</tool_call>"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"<|tool_call|>[{"name": "edit", "arguments": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}}]"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"<|tool_call|>[{"name": "weather", "arguments": {"city": "Zürich 漢字 🙂"}}]"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"<|tool_call|>[{"name": "now", "arguments": {}}]"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<|tool_call|>[{"name": "weather", "arguments": {"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", "<|tool_call|>[weather(Berlin)]"),
    Case::text("look-alike", "<|tool_call|> begins calls."),
];
