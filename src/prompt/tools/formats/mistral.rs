//! `[TOOL_CALLS]`: before a JSON list of calls (Mistral 7B v0.3, Nemo, Small 2409), or before each call as
//! `name[ARGS]{…}`, maybe with `[CALL_ID]id` behind the name (Small 3.2, Magistral, Devstral, Ministral 3).

use super::{LIST, OBJECT};
use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::written::Written;

const ARGUMENTS: &[Item] = &[Item::Arguments];
const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[
        ("[ARGS]", ARGUMENTS),
        ("[CALL_ID]", &[Item::Skip(&[("[ARGS]", ARGUMENTS)])]),
    ],
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "mistral",
    opens: &[Mark::new(
        "[TOOL_CALLS]",
        &[
            Item::Space,
            Item::When(&[('[', LIST), ('{', OBJECT)]),
            Item::Name(&NAME),
        ],
    )],
    again: &[Mark::new(",", OBJECT)],
    closes: &["]"],
    hints: &["[TOOL_CALLS]"],
    written: Some(Written::List("[TOOL_CALLS]", "")),
    ways: &[
        Way {
            open: "[TOOL_CALLS]",
            call: &[Piece::Name, Piece::Text("[ARGS]"), Piece::Json],
            between: Some("[TOOL_CALLS]"),
            ..Way::EMPTY
        },
        Way {
            open: "[TOOL_CALLS][",
            call: &[
                Piece::Text("{\"name\": "),
                Piece::QuotedName,
                Piece::Text(", \"arguments\": "),
                Piece::Json,
                Piece::Text("}"),
            ],
            between: Some(", "),
            close: "]",
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
        "one call, old",
        r#"[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Berlin"}, "id": "call00001"}]"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel, old",
        r#"[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Berlin"}}, {"name": "now", "arguments": {}}]"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "one call, new",
        r#"[TOOL_CALLS]weather[ARGS]{"city": "Berlin"}"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel, new",
        r#"[TOOL_CALLS]weather[ARGS]{"city": "Berlin"}[TOOL_CALLS]now[ARGS]{}"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "with ids",
        r#"[TOOL_CALLS]weather[CALL_ID]abc123DEF[ARGS]{"city": "Berlin"}"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "text around, old",
        r#"I look.[TOOL_CALLS][{"name": "now", "arguments": {}}] Done."#,
        "I look. Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "text around, new",
        "I look.\n[TOOL_CALLS]now[ARGS]{}, done.",
        "I look., done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"[TOOL_CALLS]edit[ARGS]{"object": {"a": [1, {"b": "}][TOOL_CALLS]"}]}, "text": "say \"hi\" \\"}"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}][TOOL_CALLS]"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"[TOOL_CALLS]weather[ARGS]{"city": "Zürich 漢字 🙂"}"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"[TOOL_CALLS][{"name": "now"}]"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"[TOOL_CALLS]weather[ARGS]{"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("truncated before it is certain", "[TOOL_CALLS]weather[AR"),
    Case::text("malformed", "[TOOL_CALLS]weather Berlin"),
    Case::text("malformed list", "[TOOL_CALLS][\"weather\"]"),
    Case::text(
        "look-alike",
        "[TOOL_CALLS] begins calls; [TOOL_CALL] does not.",
    ),
];
