//! `<|START_ACTION|>[{"tool_name": …, "parameters": {…}}]<|END_ACTION|>` (Command-R7B and later), and
//! ``Action:```json`` with the same list (Command-R+).

use super::{LIST_OR_OBJECT, OBJECT};
use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark};
use crate::prompt::tools::written::Written;

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "cohere",
    opens: &[
        Mark::new("<|START_ACTION|>", LIST_OR_OBJECT),
        Mark::new(
            "Action:",
            &[
                Item::Space,
                Item::Text("```json"),
                Item::Space,
                Item::Text("["),
                Item::Space,
                Item::Object {
                    needs_arguments: false,
                },
            ],
        ),
    ],
    again: &[Mark::new(",", OBJECT)],
    closes: &["]", "```", "<|END_ACTION|>"],
    noise: &[
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
        "<|START_TEXT|>",
        "<|END_TEXT|>",
    ],
    hints: &["Action:```json", "Action: ```json", "<|START_ACTION|>"],
    end_tokens: &["<|END_OF_TURN_TOKEN|>"],
    written: Some(Written::List("<|START_ACTION|>", "<|END_ACTION|>")),
    ways: &[
        Way {
            open: "<|START_ACTION|>[\n    ",
            call: &[
                Piece::Text("{\"tool_call_id\": \""),
                Piece::Expression("[0-9]{1,2}"),
                Piece::Text("\", \"tool_name\": "),
                Piece::QuotedName,
                Piece::Text(", \"parameters\": "),
                Piece::Json,
                Piece::Text("}"),
            ],
            between: Some(",\n    "),
            close: "\n]<|END_ACTION|>",
            ..Way::EMPTY
        },
        Way {
            open: "Action: ```json\n[\n    ",
            call: &[
                Piece::Text("{\n        \"tool_name\": "),
                Piece::QuotedName,
                Piece::Text(",\n        \"parameters\": "),
                Piece::Json,
                Piece::Text("\n    }"),
            ],
            between: Some(",\n    "),
            close: "\n]```",
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
        "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": {\"city\": \"Berlin\"}}\n]<|END_ACTION|>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": {\"city\": \"Berlin\"}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"now\", \"parameters\": {}}\n]<|END_ACTION|>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "in a fence",
        "Action:```json\n[\n    {\n        \"tool_name\": \"now\",\n        \"parameters\": {}\n    }\n]```",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "text around",
        r#"I look.<|START_ACTION|>[{"tool_name": "now", "parameters": {}}]<|END_ACTION|> Done."#,
        "I look. Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "an answer",
        "<|START_RESPONSE|>Hello!<|END_RESPONSE|>",
        "Hello!",
        &[],
    ),
    Case::new(
        "nested",
        r#"<|START_ACTION|>[{"tool_name": "edit", "parameters": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}}]<|END_ACTION|>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"<|START_ACTION|>[{"tool_name": "weather", "parameters": {"city": "Zürich 漢字 🙂"}}]<|END_ACTION|>"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"<|START_ACTION|>[{"tool_name": "now", "parameters": {}}]<|END_ACTION|>"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<|START_ACTION|>[{"tool_name": "weather", "parameters": {"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", "<|START_ACTION|>weather<|END_ACTION|>"),
    Case::text("look-alike", "Action: none."),
];
