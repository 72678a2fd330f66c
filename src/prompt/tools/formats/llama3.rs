//! `{"name": …, "parameters": {…}}` as the whole answer: Llama 3.1 to 3.3.

use super::OBJECT;
use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark};

const CALL: &[Item] = &[Item::Object {
    needs_arguments: true,
}];

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "llama3",
    opens: &[
        Mark::kept("{", CALL).at_start(),
        Mark::new("<|python_tag|>", OBJECT),
    ],
    again: &[Mark::kept("{", CALL), Mark::new(";", OBJECT)],
    declared_only: true,
    end_tokens: &["<|eom_id|>", "<|eot_id|>"],
    ways: &[Way {
        anywhere: false,
        call: &[
            Piece::Text("{\"name\": "),
            Piece::QuotedName,
            Piece::Text(", \"parameters\": "),
            Piece::Json,
            Piece::Text("}"),
        ],
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
        r#"{"name": "weather", "parameters": {"city": "Berlin"}}"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "with a type",
        "\n{\"type\": \"function\", \"name\": \"weather\", \"parameters\": {\"city\": \"Berlin\"}}\n",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        r#"{"name": "weather", "parameters": {"city": "Berlin"}}; {"name": "now", "parameters": {}}"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "behind the tag",
        r#"I look.<|python_tag|>{"name": "now", "parameters": {}}"#,
        "I look.",
        &[("now", "{}")],
    ),
    Case::new(
        "text after",
        r#"{"name": "now", "parameters": {}} Done."#,
        " Done.",
        &[("now", "{}")],
    ),
    Case::text("text before", r#"Sure: {"name": "now", "parameters": {}}"#),
    Case::new(
        "nested",
        r#"{"name": "edit", "parameters": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\ \u00e9"}}"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\ \u00e9"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"{"name": "weather", "parameters": {"city": "Zürich 漢字 🙂"}}"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"{"name": "now", "parameters": {}}"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"{"name": "weather", "parameters": {"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "truncated before it is certain",
        r#"{"name": "weather", "para"#,
    ),
    Case::text("malformed", "{'name': 'now', 'parameters': {}}"),
    Case::text(
        "an answer in JSON",
        r#"{"name": "Ada", "parameters": {"age": 36}}"#,
    ),
    Case::text(
        "another answer in JSON",
        r#"[{"name": "now", "parameters": {}}]"#,
    ),
];
