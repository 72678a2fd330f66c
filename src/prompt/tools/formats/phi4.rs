//! `<|tool_call|>[{…}]<|/tool_call|>` (Phi-4-mini) and `functools[{…}]` (Phi-4-mini, FireFunction).

use super::{LIST, LIST_OR_OBJECT, OBJECT};
use crate::prompt::tools::constraint::form::Way;
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Mark};
use crate::prompt::tools::written::Written;

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "phi4",
    opens: &[
        Mark::new("<|tool_call|>", LIST_OR_OBJECT),
        Mark::new("functools", LIST),
    ],
    again: &[Mark::new(",", OBJECT)],
    closes: &["]", "<|/tool_call|>"],
    hints: &["<|/tool|>", "functools"],
    end_tokens: &["<|end|>"],
    written: Some(Written::List("<|tool_call|>", "<|/tool_call|>")),
    ways: &[
        Way::list("<|tool_call|>[", "]<|/tool_call|>"),
        Way::list("functools[", "]"),
    ],
    #[cfg(test)]
    cases: CASES,
    ..Format::EMPTY
};

#[cfg(test)]
const CASES: &[Case] = &[
    Case::new(
        "one call",
        r#"<|tool_call|>[{"name": "weather", "arguments": {"city": "Berlin"}}]<|/tool_call|>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        r#" functools[{"name": "weather", "arguments": {"city": "Berlin"}}, {"name": "now", "arguments": {}}]"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        r#"I look.<|tool_call|>[{"name": "now", "arguments": {}}]<|/tool_call|> Done."#,
        "I look. Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"functools[{"name": "edit", "arguments": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}}]"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"functools[{"name": "weather", "arguments": {"city": "Zürich 漢字 🙂"}}]"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"<|tool_call|>{"name": "now", "arguments": {}}<|/tool_call|>"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"functools[{"name": "weather", "arguments": {"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", "functools[weather]"),
    Case::text("look-alike", "Python's functools has a cache."),
];
