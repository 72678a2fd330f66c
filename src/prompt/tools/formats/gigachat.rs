//! `{"name": …, "arguments": {…}}` as a message of its own: GigaChat 3.

use super::OBJECT;
use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Mark};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "gigachat",
    opens: &[
        Mark::new("<|function_call|>", OBJECT),
        Mark::new("<|message_sep|>\n\nfunction call<|role_sep|>\n", OBJECT),
        Mark::new("function call<|role_sep|>\n", OBJECT),
    ],
    closes: &["<|message_sep|>"],
    ways: &[
        Way {
            open: "<|function_call|>",
            call: &[
                Piece::Text("{\"name\": "),
                Piece::QuotedName,
                Piece::Text(", \"arguments\": "),
                Piece::Json,
                Piece::Text("}"),
            ],
            between: Some("<|function_call|>"),
            ..Way::EMPTY
        },
        Way {
            open: "<|message_sep|>\n\nfunction call<|role_sep|>\n",
            call: &[
                Piece::Text("{\"name\": "),
                Piece::QuotedName,
                Piece::Text(", \"arguments\": "),
                Piece::Json,
                Piece::Text("}"),
            ],
            ..Way::EMPTY
        },
        Way {
            open: "function call<|role_sep|>\n",
            call: &[
                Piece::Text("{\"name\": "),
                Piece::QuotedName,
                Piece::Text(", \"arguments\": "),
                Piece::Json,
                Piece::Text("}"),
            ],
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
        r#"<|function_call|>{"name": "weather", "arguments": {"city": "Berlin"}}"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        r#"<|function_call|>{"name": "weather", "arguments": {"city": "Berlin"}}<|function_call|>{"name": "now", "arguments": {}}"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text before, a message",
        "I look.<|message_sep|>\n\nfunction call<|role_sep|>\n{\"name\": \"now\", \"arguments\": {}}<|message_sep|>",
        "I look.",
        &[("now", "{}")],
    ),
    Case::new(
        "text after",
        r#"<|function_call|>{"name": "now", "arguments": {}}<|message_sep|>Done."#,
        "Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"<|function_call|>{"name": "edit", "arguments": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}}"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"<|function_call|>{"name": "weather", "arguments": {"city": "Zürich 漢字 🙂"}}"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"<|function_call|>{"name": "now", "arguments": {}}"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<|function_call|>{"name": "weather", "arguments": {"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", "<|function_call|>now()"),
    Case::text("look-alike", "A function call is one."),
];
