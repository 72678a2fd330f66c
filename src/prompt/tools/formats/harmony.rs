//! `<|channel|>commentary to=functions.name <|constrain|>json<|message|>{…}<|call|>`: gpt-oss. Read by
//! [`crate::prompt::harmony`].

use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::Format;

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "harmony",
    channels: true,
    hints: &["<|channel|>analysis"],
    end_tokens: &["<|return|>", "<|call|>"],
    ways: &[
        Way {
            open: "<|channel|>commentary to=functions.",
            call: &[
                Piece::Name,
                Piece::Maybe(&[" <|constrain|>json", " json"]),
                Piece::Text("<|message|>"),
                Piece::Json,
            ],
            ..Way::EMPTY
        },
        Way {
            open: " to=functions.",
            call: &[
                Piece::Name,
                Piece::Text("<|channel|>commentary"),
                Piece::Maybe(&[" <|constrain|>json", " json"]),
                Piece::Text("<|message|>"),
                Piece::Json,
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
        r#"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Berlin"}<|call|>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "the recipient first",
        r#" to=functions.weather<|channel|>commentary json<|message|>{"city": "Berlin"}<|call|>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        r#"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Berlin"}<|call|><|start|>assistant<|channel|>commentary to=functions.now<|message|>{}<|call|>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text before",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}",
        "I look.",
        &[("now", "{}")],
    ),
    Case::new(
        "an answer",
        "<|channel|>final<|message|>Hello <|x|> <b>!\n<|return|>",
        "Hello <|x|> <b>!\n",
        &[],
    ),
    Case::new(
        "an answer cut off",
        "<|channel|>final<|message|>Hello <|en",
        "Hello <|en",
        &[],
    ),
    Case::new(
        "nested",
        r#"<|channel|>commentary to=functions.edit <|constrain|>json<|message|>{"object": {"a": [1, {"b": "}"}]}, "text": "say \"hi\" \\"}<|call|>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"<|channel|>commentary to=functions.weather<|message|>{"city": "Zürich 漢字 🙂"}<|call|>"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<|channel|>commentary to=functions.now<|message|><|call|>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<|channel|>commentary to=functions.weather<|message|>{"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::new(
        "malformed",
        "<|channel|>commentary to=functions.weather<|message|>{\"city\" Berlin}<|call|>",
        "Berlin}",
        &[("weather", "{\"city\" ")],
    ),
    Case::new(
        "another recipient",
        "<|channel|>commentary to=python<|message|>print(1)<|end|>",
        "print(1)",
        &[],
    ),
    Case::text("no channels", "to whom? {\"name\": \"now\"}"),
    Case::text("other text", "Hello!"),
];
