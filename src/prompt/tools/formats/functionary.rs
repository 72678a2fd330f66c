//! `<function=name>{…}</function>`: Functionary 3.1, and Llama 3.1 when it is told so.

use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};

const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[(">", &[Item::Arguments])],
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "functionary",
    opens: &[Mark::new("<function=", &[Item::Name(&NAME)])],
    closes: &["</function>"],
    end_tokens: &["<|eom_id|>", "<|eot_id|>"],
    ways: &[Way {
        open: "<function=",
        call: &[
            Piece::Name,
            Piece::Text(">"),
            Piece::Json,
            Piece::Text("</function>"),
        ],
        between: Some("<function="),
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
        r#"<function=weather>{"city": "Berlin"}</function>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        r#"<function=weather>{"city": "Berlin"}</function><function=now>{}</function>"#,
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<function=now>{}</function> Done.",
        "I look. Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"<function=edit>{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}</function>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        r#"<function=weather>{"city": "Zürich 漢字 🙂"}</function>"#,
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<function=now>{}</function>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        r#"<function=weather>{"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", "<function=weather>Berlin</function>"),
    Case::text("look-alike", "Write <function=f> and its arguments."),
];
