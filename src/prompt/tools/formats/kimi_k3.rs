//! `<|open|>tools<|sep|><|open|>call tool="…" index="1"<|sep|><|open|>argument key="…" type="string"<|sep|>…`: Kimi K3.

use crate::prompt::tools::constraint::form::{Gap, Piece, Tagged, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::parameters::{Parameters, Typing};

const CALL: &str = "<|open|>call tool=\"";
const PARAMETERS: Parameters = Parameters {
    open: "<|open|>argument key=\"",
    key_ends: &[
        ("\" type=\"string\"<|sep|>", Typing::Text),
        ("\" type=\"number\"<|sep|>", Typing::Typed("number")),
        ("\" type=\"boolean\"<|sep|>", Typing::Typed("boolean")),
        ("\" type=\"array\"<|sep|>", Typing::Typed("array")),
        ("\" type=\"object\"<|sep|>", Typing::Typed("object")),
        ("\" type=\"null\"<|sep|>", Typing::Typed("null")),
        ("\"<|sep|>", Typing::Schema),
    ],
    value_open: "",
    value_end: "<|close|>argument<|sep|>",
    quoted: None,
    newlines: false,
    end: "<|close|>call<|sep|>",
};
const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[(
        "\"",
        &[Item::Skip(&[("<|sep|>", &[Item::Parameters(&PARAMETERS)])])],
    )],
};

const TAGGED: Tagged = Tagged {
    tags: &PARAMETERS,
    before: Gap::Nothing,
    between: Gap::Nothing,
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "kimi_k3",
    opens: &[Mark::new(
        "<|open|>tools<|sep|>",
        &[Item::Space, Item::Text(CALL), Item::Name(&NAME)],
    )],
    again: &[Mark::new(CALL, &[Item::Name(&NAME)])],
    closes: &["<|close|>tools<|sep|>"],
    noise: &[
        "<|open|>response<|sep|>",
        "<|close|>response<|sep|>",
        "<|close|>message<|sep|>",
    ],
    end_tokens: &["<|end_of_msg|>"],
    ways: &[Way {
        open: "<|open|>tools<|sep|>",
        call: &[
            Piece::Text("<|open|>call tool=\""),
            Piece::Name,
            Piece::Text("\" index=\""),
            Piece::Expression("[1-9]|1[0-6]"),
            Piece::Text("\"<|sep|>"),
            Piece::Tagged(&TAGGED),
            Piece::Text("<|close|>call<|sep|>"),
        ],
        between: Some(""),
        close: "<|close|>tools<|sep|>",
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
        "<|open|>tools<|sep|><|open|>call tool=\"weather\" index=\"1\"<|sep|><|open|>argument key=\"city\" type=\"string\"<|sep|>Berlin<|close|>argument<|sep|><|open|>argument key=\"days\" type=\"number\"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
        "",
        &[("weather", r#"{"city": "Berlin", "days": 3}"#)],
    ),
    Case::new(
        "parallel",
        "<|open|>tools<|sep|><|open|>call tool=\"weather\" index=\"1\"<|sep|><|open|>argument key=\"city\" type=\"string\"<|sep|>Berlin<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool=\"now\" index=\"2\"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text before",
        "<|open|>response<|sep|>I look.<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool=\"now\" index=\"1\"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
        "I look.",
        &[("now", "{}")],
    ),
    Case::new(
        "only text",
        "<|open|>response<|sep|>Hello!\n<|close|>response<|sep|><|close|>message<|sep|>",
        "Hello!\n",
        &[],
    ),
    Case::new(
        "nested and unicode",
        "<|open|>tools<|sep|><|open|>call tool=\"edit\" index=\"1\"<|sep|><|open|>argument key=\"object\" type=\"object\"<|sep|>{\"a\": [1, {\"b\": \"ü 🙂\"}]}<|close|>argument<|sep|><|open|>argument key=\"text\" type=\"string\"<|sep|>\"q\" \\ <b>\n<|close|>argument<|sep|><|close|>call<|sep|>",
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "ü 🙂"}]}, "text": "\"q\" \\ <b>\n"}"#,
        )],
    ),
    Case::new(
        "empty arguments",
        "<|open|>tools<|sep|><|open|>call tool=\"now\" index=\"1\"<|sep|><|close|>call<|sep|>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<|open|>tools<|sep|><|open|>call tool=\"weather\" index=\"1\"<|sep|><|open|>argument key=\"city\" type=\"string\"<|sep|>Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "malformed",
        "<|open|>tools<|sep|>weather(Berlin)<|close|>tools<|sep|>",
    ),
    Case::text("look-alike", "<|open|>tools is no call."),
];
