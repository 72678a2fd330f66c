//! `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen2.5, Qwen3, Granite 4, the demo model;
//! and models whose template knows no tools, which are told so.

use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark};
use crate::prompt::tools::written::Written;

const CALL: &[Item] = &[Item::Object {
    needs_arguments: false,
}];

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "hermes",
    opens: &[Mark::new("<tool_call>", CALL)],
    again: &[Mark::kept("{", CALL)],
    closes: &["</tool_call>"],
    written: Some(Written::Each("<tool_call>", "</tool_call>")),
    ways: &[Way {
        open: "<tool_call>",
        call: &[
            Piece::Text("\n{\"name\": "),
            Piece::QuotedName,
            Piece::Text(", \"arguments\": "),
            Piece::Json,
            Piece::Text("}\n</tool_call>"),
        ],
        between: Some("\n<tool_call>"),
        ..Way::EMPTY
    }],
    #[cfg(test)]
    cases: CASES,
    ..Format::EMPTY
};

#[cfg(test)]
const CASES: &[Case] = &[
    Case::new(
        "one call",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\"}}\n</tool_call>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\nDone.",
        "I look.\nDone.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"<tool_call>{"name": "edit", "arguments": {"object": {"a": [1, {"b": "}]</tool_call>"}]}, "text": "say \"hi\" \\ \u00e9"}}</tool_call>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}]</tool_call>"}]}, "text": "say \"hi\" \\ \u00e9"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"<tool_call>{"name": "weather", "arguments": {"city": "Zürich 漢字 🙂"}}</tool_call>"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"<tool_call>{"name": "now", "arguments": {}}</tool_call>"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<tool_call>{"name": "weather", "arguments": {"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("truncated before the name", r#"<tool_call>{"name": "wea"#),
    Case::text("malformed", "<tool_call>{'name': 'now'}</tool_call>"),
    Case::text(
        "look-alike",
        "The tag <tool_call> opens a call, </tool_call> closes it.",
    ),
];
