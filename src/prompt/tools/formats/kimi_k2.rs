//! `<|tool_calls_section_begin|><|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>…`:
//! Kimi K2.

use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::written::Written;

const CALL_BEGIN: &str = "<|tool_call_begin|>";
const NAME: NameRule = NameRule {
    prefix: "functions.",
    numbered: true,
    ends: &[("<|tool_call_argument_begin|>", &[Item::Arguments])],
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "kimi_k2",
    opens: &[
        Mark::new(
            "<|tool_calls_section_begin|>",
            &[Item::Space, Item::Text(CALL_BEGIN), Item::Name(&NAME)],
        ),
        Mark::new(CALL_BEGIN, &[Item::Name(&NAME)]),
    ],
    closes: &["<|tool_call_end|>", "<|tool_calls_section_end|>"],
    hints: &["<|tool_calls_section_begin|>"],
    end_tokens: &["<|im_end|>"],
    written: Some(Written::Named {
        open: "<|tool_calls_section_begin|>",
        before: "<|tool_call_begin|>functions.",
        between: ":#<|tool_call_argument_begin|>",
        after: "<|tool_call_end|>",
        close: "<|tool_calls_section_end|>",
    }),
    ways: &[Way {
        open: "<|tool_calls_section_begin|>",
        call: &[
            Piece::Text("<|tool_call_begin|>functions."),
            Piece::Name,
            Piece::Text(":"),
            Piece::Expression("[0-9]|1[0-5]"),
            Piece::Text("<|tool_call_argument_begin|>"),
            Piece::Json,
            Piece::Text("<|tool_call_end|>"),
        ],
        between: Some(""),
        close: "<|tool_calls_section_end|>",
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
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"city\": \"Berlin\"}<|tool_call_end|><|tool_calls_section_end|>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"city\": \"Berlin\"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look. <|tool_calls_section_begin|> <|tool_call_begin|> functions.now:12 <|tool_call_argument_begin|> {} <|tool_call_end|> <|tool_calls_section_end|>Done.",
        "I look. Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"<|tool_call_begin|>edit<|tool_call_argument_begin|>{"object": {"a": [1, {"b": "}"}]}, "text": "say \"hi\" \\"}<|tool_call_end|>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"city\": \"Zürich 漢字 🙂\"}<|tool_call_end|>",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"city\": \"Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "truncated before it is certain",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.wea",
    ),
    Case::text(
        "malformed",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0 Berlin<|tool_call_end|>",
    ),
    Case::text(
        "look-alike",
        "<|tool_calls_section_begin|> begins calls, <|tool_calls_section_end|> ends them.",
    ),
];
