//! `<|tool_calls|><|tool_call:begin|>id<|tool_call:name|>name<|tool_call:args|>{…}<|tool_call:end|><|calls|>`: Solar Open.

use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};

const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[("<|tool_call:args|>", &[Item::Arguments])],
};
const AFTER_ID: &[Item] = &[Item::Skip(&[("<|tool_call:name|>", &[Item::Name(&NAME)])])];
const CALL_BEGIN: &str = "<|tool_call:begin|>";

const CALLS: Way = Way {
    open: "<|tool_calls|>",
    call: &[
        Piece::Text("<|tool_call:begin|>"),
        Piece::Expression("[A-Za-z0-9_-]{1,64}"),
        Piece::Text("<|tool_call:name|>"),
        Piece::Name,
        Piece::Text("<|tool_call:args|>"),
        Piece::Json,
        Piece::Text("<|tool_call:end|>"),
    ],
    between: Some(""),
    ..Way::EMPTY
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "solar",
    opens: &[
        Mark::new(
            "<|tool_calls|>",
            &[
                Item::Space,
                Item::Text(CALL_BEGIN),
                Item::Skip(&[("<|tool_call:name|>", &[Item::Name(&NAME)])]),
            ],
        ),
        Mark::new(CALL_BEGIN, AFTER_ID),
    ],
    closes: &["<|tool_call:end|>", "<|calls|>"],
    noise: &["<|content|>", "<|begin|>assistant"],
    end_tokens: &["<|calls|>"],
    ways: &[
        CALLS,
        // Behind reasoning the message begins anew.
        Way {
            open: "<|begin|>assistant<|tool_calls|>",
            ..CALLS
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
        "<|tool_calls|><|tool_call:begin|>abc<|tool_call:name|>weather<|tool_call:args|>{\"city\": \"Berlin\"}<|tool_call:end|><|calls|>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        "<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>weather<|tool_call:args|>{\"city\": \"Berlin\"}<|tool_call:end|><|tool_call:begin|>b<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|><|calls|>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text before",
        "<|content|>I look.<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|>",
        "I look.",
        &[("now", "{}")],
    ),
    Case::new("only text", "<|content|>Hello!", "Hello!", &[]),
    Case::new(
        "nested and unicode",
        r#"<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>edit<|tool_call:args|>{"object": {"a": [1, {"b": "ü 🙂"}]}, "text": "say \"hi\" \\"}<|tool_call:end|>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "ü 🙂"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "empty arguments",
        "<|tool_calls|><|tool_call:begin|><|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>weather<|tool_call:args|>{\"city\": \"Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", "<|tool_calls|>now()<|calls|>"),
    Case::text("look-alike", "<|tool_calls|> begins calls."),
];
