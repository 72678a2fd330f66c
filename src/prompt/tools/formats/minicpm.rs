//! `<function name="…"><param name="…">…</param></function>`, values maybe in CDATA: MiniCPM 5.

use crate::prompt::tools::constraint::form::{Gap, Piece, Tagged, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::parameters::{Parameters, Typing};

const PARAMETERS: Parameters = Parameters {
    open: "<param name=\"",
    key_ends: &[("\">", Typing::Schema)],
    value_open: "",
    value_end: "</param>",
    quoted: Some(("<![CDATA[", "]]></param>")),
    newlines: false,
    end: "</function>",
};
const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[("\">", &[Item::Parameters(&PARAMETERS)])],
};

const TAGGED: Tagged = Tagged {
    tags: &PARAMETERS,
    before: Gap::Nothing,
    between: Gap::Nothing,
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "minicpm",
    opens: &[Mark::new("<function name=\"", &[Item::Name(&NAME)])],
    ways: &[Way {
        open: "<function name=\"",
        call: &[
            Piece::Name,
            Piece::Text("\">"),
            Piece::Tagged(&TAGGED),
            Piece::Text("</function>"),
        ],
        between: Some("\n<function name=\""),
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
        r#"<function name="weather"><param name="city">Berlin</param><param name="days">3</param></function>"#,
        "",
        &[("weather", r#"{"city": "Berlin", "days": 3}"#)],
    ),
    Case::new(
        "parallel",
        "<function name=\"weather\"><param name=\"city\">Berlin</param></function>\n<function name=\"now\"></function>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<function name=\"now\"></function>\nDone.",
        "I look.\nDone.",
        &[("now", "{}")],
    ),
    Case::new(
        "quoted",
        "<function name=\"edit\"><param name=\"text\"><![CDATA[a \"b\" </param>\n<c>]]></param><param name=\"text\"><!></param></function>",
        "",
        &[(
            "edit",
            r#"{"text": "a \"b\" </param>\n<c>", "text": "<!>"}"#,
        )],
    ),
    Case::new(
        "nested",
        r#"<function name="edit"><param name="object">{"a": [1, {"b": "c"}]}</param><param name="list">['a', {'b': 1.5}]</param><param name="flag">True</param></function>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "c"}]}, "list": ["a", {"b": 1.5}], "flag": true}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"<function name="weather"><param name="city">Zürich 漢字 🙂</param></function>"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        r#"<function name="now"></function>"#,
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<function name="weather"><param name="city">Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", r#"<function name="weather">Berlin</function>"#),
    Case::text(
        "look-alike",
        r#"Write <function name="f"> and its parameters."#,
    ),
];
