//! DeepSeek V3.1: as V3, but each call is `name<｜tool▁sep｜>{…}`.

use super::deepseek_v3::{CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END};
use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::written::Written;

const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[("<｜tool▁sep｜>", &[Item::Arguments])],
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "deepseek_v31",
    opens: &[
        Mark::new(
            CALLS_BEGIN,
            &[Item::Space, Item::Text(CALL_BEGIN), Item::Name(&NAME)],
        ),
        Mark::new(CALL_BEGIN, &[Item::Name(&NAME)]),
    ],
    closes: &[CALL_END, CALLS_END],
    written: Some(Written::Named {
        open: CALLS_BEGIN,
        before: CALL_BEGIN,
        between: "<｜tool▁sep｜>",
        after: CALL_END,
        close: CALLS_END,
    }),
    ways: &[Way {
        open: "<｜tool▁calls▁begin｜>",
        call: &[
            Piece::Text("<｜tool▁call▁begin｜>"),
            Piece::Name,
            Piece::Text("<｜tool▁sep｜>"),
            Piece::Json,
            Piece::Text("<｜tool▁call▁end｜>"),
        ],
        between: Some(""),
        close: "<｜tool▁calls▁end｜>",
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
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Berlin\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Berlin\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜> Done.",
        "I look.\n Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        "<｜tool▁call▁begin｜>edit<｜tool▁sep｜>{\"object\": {\"a\": [1, {\"b\": \"}\"}]}, \"text\": \"say \\\"hi\\\" \\\\\"}<｜tool▁call▁end｜>",
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Zürich 漢字 🙂\"}<｜tool▁call▁end｜>",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "truncated before it is certain",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁s",
    ),
    Case::text(
        "malformed",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>Berlin<｜tool▁call▁end｜>",
    ),
    Case::text(
        "look-alike",
        "<｜tool▁calls▁begin｜> begins calls, <｜tool▁calls▁end｜> ends them.",
    ),
];
