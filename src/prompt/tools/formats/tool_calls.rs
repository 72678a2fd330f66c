//! `<tool_calls>` around JSON objects, one a line (MiniMax M1) or in a list (Apriel).

use super::{LIST_OR_OBJECT, OBJECT};
use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Mark};
use crate::prompt::tools::written::Written;

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "tool_calls",
    opens: &[Mark::new("<tool_calls>", LIST_OR_OBJECT)],
    again: &[Mark::new(",", OBJECT), Mark::kept("{", OBJECT)],
    closes: &["]", "</tool_calls>"],
    written: Some(Written::List("<tool_calls>", "</tool_calls>")),
    ways: &[
        Way::list("<tool_calls>[", "]</tool_calls>"),
        Way {
            open: "<tool_calls>\n",
            call: &[
                Piece::Text("{\"name\": "),
                Piece::QuotedName,
                Piece::Text(", \"arguments\": "),
                Piece::Json,
                Piece::Text("}"),
            ],
            between: Some("\n"),
            close: "\n</tool_calls>",
            ..Way::EMPTY
        },
    ],
    #[cfg(test)]
    cases: CASES,
    ..Format::EMPTY
};

#[cfg(test)]
const CASES: &[Case] = &[
    Case::new(
        "one call",
        "<tool_calls>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\"}}\n</tool_calls>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        "<tool_calls>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\"}}\n{\"name\": \"now\", \"arguments\": {}}\n</tool_calls>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "a list",
        r#"<tool_calls>[{"name": "weather", "arguments": {"city": "Berlin"}, "id": "a"}, {"name": "now", "arguments": {}, "id": "b"}]</tool_calls>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<tool_calls>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_calls>\nDone.",
        "I look.\nDone.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"<tool_calls>[{"name": "edit", "arguments": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}}]</tool_calls>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"<tool_calls>{"name": "weather", "arguments": {"city": "Zürich 漢字 🙂"}}</tool_calls>"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"<tool_calls>{"name": "now", "arguments": {}}</tool_calls>"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<tool_calls>{"name": "weather", "arguments": {"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", "<tool_calls>now()</tool_calls>"),
    Case::text("look-alike", "<tool_calls> begins calls."),
];
