//! `<|tool_call>call:name{key:<|"|>text<|"|>,other:3}<tool_call|>`: Gemma 4.

use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};

const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[("{", &[Item::Gemma])],
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "gemma4",
    opens: &[Mark::new(
        "<|tool_call>",
        &[Item::Space, Item::Text("call:"), Item::Name(&NAME)],
    )],
    closes: &["<tool_call|>"],
    end_tokens: &["<turn|>", "<|tool_response>"],
    ways: &[Way {
        open: "<|tool_call>",
        call: &[
            Piece::Text("call:"),
            Piece::Name,
            Piece::Text("{"),
            Piece::Gemma,
            Piece::Text("}<tool_call|>"),
        ],
        between: Some("<|tool_call>"),
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
        r#"<|tool_call>call:weather{city:<|"|>Berlin<|"|>,days:3}<tool_call|>"#,
        "",
        &[("weather", r#"{"city": "Berlin", "days": 3}"#)],
    ),
    Case::new(
        "parallel",
        r#"<|tool_call>call:weather{city:<|"|>Berlin<|"|>}<tool_call|><|tool_call>call:now{}<tool_call|>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<|tool_call>call:now{}<tool_call|>Done.",
        "I look.Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"<|tool_call>call:edit{flag:true,list:[<|"|>a "}]<|"|>,{b:1.5}],object:{c:{},d:null},text:<|"|>\ <tool_call|><|"|>}<tool_call|>"#,
        "",
        &[(
            "edit",
            r#"{"flag": true, "list": ["a \"}]", {"b": 1.5}], "object": {"c": {}, "d": null}, "text": "\\ <tool_call|>"}"#,
        )],
    ),
    Case::new(
        "strings as in JSON",
        r#"<|tool_call>call:edit{object:{"a b":["x, }",<|"|>y<|"|>]},text:""}<tool_call|>"#,
        "",
        &[("edit", r#"{"object": {"a b": ["x, }", "y"]}, "text": ""}"#)],
    ),
    Case::new(
        "unicode",
        r#"<|tool_call>call:weather{city:<|"|>Zürich 漢字 🙂<|"|>}<tool_call|>"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<|tool_call>call:now{}<tool_call|>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<|tool_call>call:weather{city:<|"|>Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("truncated before it is certain", "<|tool_call>call:wea"),
    Case::text("malformed", "<|tool_call>weather{}<tool_call|>"),
    Case::text(
        "look-alike",
        "<|tool_call> begins a call, <tool_call|> ends it.",
    ),
];
