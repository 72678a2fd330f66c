//! `<minimax:tool_call><invoke name="…"><parameter name="…">…</parameter></invoke></minimax:tool_call>`: MiniMax M2.

use crate::prompt::tools::constraint::form::{Gap, Piece, Tagged, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::parameters::{Parameters, Typing};

const INVOKE: &str = "<invoke name=\"";
const PARAMETERS: Parameters = Parameters {
    open: "<parameter name=\"",
    key_ends: &[("\">", Typing::Schema)],
    value_open: "",
    value_end: "</parameter>",
    quoted: None,
    newlines: false,
    end: "</invoke>",
};
const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[("\">", &[Item::Parameters(&PARAMETERS)])],
};

const TAGGED: Tagged = Tagged {
    tags: &PARAMETERS,
    before: Gap::Newline,
    between: Gap::Nothing,
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "minimax_m2",
    opens: &[Mark::new(
        "<minimax:tool_call>",
        &[Item::Space, Item::Text(INVOKE), Item::Name(&NAME)],
    )],
    again: &[Mark::new(INVOKE, &[Item::Name(&NAME)])],
    closes: &["</minimax:tool_call>"],
    end_tokens: &["[e~["],
    ways: &[Way {
        open: "<minimax:tool_call>",
        call: &[
            Piece::Text("\n<invoke name=\""),
            Piece::Name,
            Piece::Text("\">"),
            Piece::Tagged(&TAGGED),
            Piece::Text("\n</invoke>"),
        ],
        between: Some(""),
        close: "\n</minimax:tool_call>",
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
        "<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Berlin</parameter>\n<parameter name=\"days\">3</parameter>\n</invoke>\n</minimax:tool_call>",
        "",
        &[("weather", r#"{"city": "Berlin", "days": 3}"#)],
    ),
    Case::new(
        "parallel",
        "<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Berlin</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<minimax:tool_call>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>\nDone.",
        "I look.\nDone.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        "<minimax:tool_call><invoke name=\"edit\"><parameter name=\"object\">{\"a\": [1, {\"b\": \"</x>\"}]}</parameter><parameter name=\"text\">\n\"q\" \\ 3</parameter></invoke></minimax:tool_call>",
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "</x>"}]}, "text": "\n\"q\" \\ 3"}"#,
        )],
    ),
    Case::new(
        "unicode",
        "<minimax:tool_call><invoke name=\"weather\"><parameter name=\"city\">Zürich 漢字 🙂</parameter></invoke></minimax:tool_call>",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<minimax:tool_call>\n<invoke name=\"now\">\n</invoke>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "malformed",
        "<minimax:tool_call>\n<invoke name=\"weather\">Berlin</invoke>",
    ),
    Case::text(
        "look-alike",
        "<invoke name=\"now\"></invoke> needs <minimax:tool_call> before it.",
    ),
];
