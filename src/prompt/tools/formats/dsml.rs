//! `<｜DSML｜invoke name="…"><｜DSML｜parameter name="…" string="true">…`: DeepSeek V3.2 and V4.

use crate::prompt::tools::constraint::form::{Gap, Piece, Tagged, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::parameters::{Parameters, Typing};

const INVOKE: &str = "<｜DSML｜invoke name=\"";
const PARAMETERS: Parameters = Parameters {
    open: "<｜DSML｜parameter name=\"",
    key_ends: &[
        ("\" string=\"true\">", Typing::Text),
        ("\" string=\"false\">", Typing::Json),
        ("\">", Typing::Schema),
    ],
    value_open: "",
    value_end: "</｜DSML｜parameter>",
    quoted: None,
    newlines: false,
    end: "</｜DSML｜invoke>",
};
const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[("\">", &[Item::Parameters(&PARAMETERS)])],
};
const SECTION: &[Item] = &[Item::Space, Item::Text(INVOKE), Item::Name(&NAME)];

const TAGGED: Tagged = Tagged {
    tags: &PARAMETERS,
    before: Gap::Newline,
    between: Gap::Nothing,
};
const CALL: &[Piece] = &[
    Piece::Text("\n<｜DSML｜invoke name=\""),
    Piece::Name,
    Piece::Text("\">"),
    Piece::Tagged(&TAGGED),
    Piece::Text("\n</｜DSML｜invoke>"),
];

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "dsml",
    opens: &[
        Mark::new("<｜DSML｜tool_calls>", SECTION),
        Mark::new("<｜DSML｜function_calls>", SECTION),
    ],
    again: &[Mark::new(INVOKE, &[Item::Name(&NAME)])],
    closes: &["</｜DSML｜tool_calls>", "</｜DSML｜function_calls>"],
    ways: &[
        Way {
            open: "<｜DSML｜tool_calls>",
            call: CALL,
            between: Some(""),
            close: "\n</｜DSML｜tool_calls>",
            ..Way::EMPTY
        },
        Way {
            open: "<｜DSML｜function_calls>",
            call: CALL,
            between: Some(""),
            close: "\n</｜DSML｜function_calls>",
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
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Berlin</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        "",
        &[("weather", r#"{"city": "Berlin", "days": 3}"#)],
    ),
    Case::new(
        "parallel",
        "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Berlin</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls> Done.",
        "I look.\n Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        "<｜DSML｜tool_calls><｜DSML｜invoke name=\"edit\"><｜DSML｜parameter name=\"x\" string=\"false\">{\"a\": [1, {\"b\": \"</x>\"}]}</｜DSML｜parameter><｜DSML｜parameter name=\"y\" string=\"true\">3 \"q\" \\\n</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜tool_calls>",
        "",
        &[(
            "edit",
            r#"{"x": {"a": [1, {"b": "</x>"}]}, "y": "3 \"q\" \\\n"}"#,
        )],
    ),
    Case::new(
        "unicode",
        "<｜DSML｜tool_calls><｜DSML｜invoke name=\"weather\"><｜DSML｜parameter name=\"city\">Zürich 漢字 🙂</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜tool_calls>",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "malformed",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">Berlin</｜DSML｜invoke>",
    ),
    Case::text(
        "look-alike",
        "<｜DSML｜tool_calls> begins calls, </｜DSML｜tool_calls> ends them.",
    ),
];
