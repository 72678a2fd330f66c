//! DeepSeek V3 and R1: between `<｜tool▁calls▁begin｜>` and its end, each call as
//! `function<｜tool▁sep｜>name`, a newline, and the arguments in a `json` fence.

use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::written::Written;

pub(super) const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
pub(super) const CALLS_END: &str = "<｜tool▁calls▁end｜>";
pub(super) const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
pub(super) const CALL_END: &str = "<｜tool▁call▁end｜>";
const TYPE: &str = "function<｜tool▁sep｜>";
const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[(
        "\n",
        &[
            Item::Space,
            Item::Text("```json"),
            Item::Space,
            Item::Arguments,
        ],
    )],
};
const CALL: &[Item] = &[Item::Text(TYPE), Item::Name(&NAME)];

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "deepseek_v3",
    opens: &[
        Mark::new(
            CALLS_BEGIN,
            &[
                Item::Space,
                Item::Text(CALL_BEGIN),
                Item::Text(TYPE),
                Item::Name(&NAME),
            ],
        ),
        Mark::new(CALL_BEGIN, CALL),
    ],
    closes: &["```", CALL_END, CALLS_END],
    written: Some(Written::Named {
        open: CALLS_BEGIN,
        before: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        between: "\n```json\n",
        after: "\n```<｜tool▁call▁end｜>",
        close: CALLS_END,
    }),
    ways: &[Way {
        open: "<｜tool▁calls▁begin｜>",
        call: &[
            Piece::Text("<｜tool▁call▁begin｜>function<｜tool▁sep｜>"),
            Piece::Name,
            Piece::Text("\n```json\n"),
            Piece::Json,
            Piece::Text("\n```<｜tool▁call▁end｜>"),
        ],
        between: Some("\n"),
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
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Berlin\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Berlin\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n```sh\nls\n```",
        "I look.\n```sh\nls\n```",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>edit\n```json\n{\"object\": {\"a\": [1, {\"b\": \"```\"}]}, \"text\": \"say \\\"hi\\\" \\\\\"}\n```<｜tool▁call▁end｜>",
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "```"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Zürich 漢字 🙂\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "truncated before it is certain",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```js",
    ),
    Case::text(
        "malformed",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather(Berlin)<｜tool▁call▁end｜>",
    ),
    Case::text(
        "look-alike",
        "<｜tool▁calls▁begin｜> begins calls, <｜tool▁calls▁end｜> ends them.",
    ),
];
