//! `<tool_call>name\n<arg_key>key</arg_key>\n<arg_value>value</arg_value>\n</tool_call>`: GLM-4.5 and later, Ling 3,
//! Laguna, Spark.

use crate::prompt::tools::constraint::form::{Gap, Piece, Tagged, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::parameters::{Parameters, Typing};

const PARAMETERS: Parameters = Parameters {
    open: "<arg_key>",
    key_ends: &[("</arg_key>", Typing::Schema)],
    value_open: "<arg_value>",
    value_end: "</arg_value>",
    quoted: None,
    newlines: false,
    end: "</tool_call>",
};
const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[
        ("\n", &[Item::Parameters(&PARAMETERS)]),
        (PARAMETERS.open, &[Item::ParametersAtKey(&PARAMETERS)]),
        (PARAMETERS.end, &[]),
    ],
};

const TAGGED: Tagged = Tagged {
    tags: &PARAMETERS,
    before: Gap::MaybeNewline,
    between: Gap::MaybeNewline,
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "glm4",
    opens: &[Mark::new("<tool_call>", &[Item::Name(&NAME)])],
    end_tokens: &["<|observation|>", "<|user|>"],
    ways: &[Way {
        open: "<tool_call>",
        call: &[
            Piece::Name,
            Piece::Tagged(&TAGGED),
            Piece::Maybe(&["\n"]),
            Piece::Text("</tool_call>"),
        ],
        between: Some("\n<tool_call>"),
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
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Berlin</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        "",
        &[("weather", r#"{"city": "Berlin", "days": 3}"#)],
    ),
    Case::new(
        "parallel, without newlines",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Berlin</arg_value></tool_call><tool_call>now</tool_call>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<tool_call>now\n</tool_call>\nDone.",
        "I look.\nDone.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested and typed",
        "<tool_call>edit\n<arg_key>text</arg_key>\n<arg_value>\na \"b\" \\ 3\n</arg_value>\n<arg_key>object</arg_key>\n<arg_value>{\"a\": [1, {\"b\": \"</x>\"}]}</arg_value>\n<arg_key>flag</arg_key>\n<arg_value>true</arg_value>\n</tool_call>",
        "",
        &[(
            "edit",
            r#"{"text": "\na \"b\" \\ 3\n", "object": {"a": [1, {"b": "</x>"}]}, "flag": true}"#,
        )],
    ),
    Case::new(
        "unicode",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich 漢字 🙂</arg_value>\n</tool_call>",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<tool_call>now\n\n</tool_call>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "truncated before it is certain",
        "<tool_call>weather\n<arg_k",
    ),
    Case::text(
        "malformed",
        "<tool_call>weather\ncity: Berlin\n</tool_call>",
    ),
    Case::text(
        "look-alike",
        "The tag <tool_call> opens\na call, </tool_call> closes it.",
    ),
];
