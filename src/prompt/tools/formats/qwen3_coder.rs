//! `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`: Qwen3-Coder, Qwen3.5,
//! Nemotron 3, Step 3.5. (JSON as Hermes has it is read, too: these models sometimes write it.)

use crate::prompt::tools::constraint::form::{Gap, Piece, Tagged, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark, NameRule};
use crate::prompt::tools::parameters::{Parameters, Typing};

const FUNCTION: &str = "<function=";
const PARAMETERS: Parameters = Parameters {
    open: "<parameter=",
    key_ends: &[(">", Typing::Schema)],
    value_open: "",
    value_end: "</parameter>",
    quoted: None,
    newlines: true,
    end: "</function>",
};
const NAME: NameRule = NameRule {
    prefix: "",
    numbered: false,
    ends: &[(">", &[Item::Parameters(&PARAMETERS)])],
};

const TAGGED: Tagged = Tagged {
    tags: &PARAMETERS,
    before: Gap::Newline,
    between: Gap::Nothing,
};

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "qwen3_coder",
    opens: &[
        Mark::new(
            "<tool_call>",
            &[
                Item::Space,
                Item::When(&[(
                    '{',
                    &[Item::Object {
                        needs_arguments: false,
                    }],
                )]),
                Item::Text(FUNCTION),
                Item::Name(&NAME),
            ],
        ),
        Mark::new(FUNCTION, &[Item::Name(&NAME)]),
    ],
    closes: &["</tool_call>"],
    ways: &[Way {
        open: "<tool_call>",
        call: &[
            Piece::Text("\n<function="),
            Piece::Name,
            Piece::Text(">"),
            Piece::Tagged(&TAGGED),
            Piece::Text("\n</function>\n</tool_call>"),
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
        "<tool_call>\n<function=weather>\n<parameter=city>\nBerlin\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("weather", r#"{"city": "Berlin", "days": 3}"#)],
    ),
    Case::new(
        "parallel",
        "<tool_call>\n<function=weather>\n<parameter=city>\nBerlin\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around, no tool_call tags",
        "I look.\n<function=now>\n</function> Done.",
        "I look. Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested: strings stay strings",
        "<tool_call><function=edit><parameter=text>3</parameter><parameter=text>{\"a\": 1}</parameter><parameter=text>\n\n a \"b\" \\ <c>\n\t</parameter></function></tool_call>",
        "",
        &[(
            "edit",
            r#"{"text": "3", "text": "{\"a\": 1}", "text": "\n a \"b\" \\ <c>\n\t"}"#,
        )],
    ),
    Case::new(
        "typed by the schema",
        "<function=edit><parameter=count>\n3\n</parameter><parameter=ratio>-1.5e3</parameter><parameter=flag>True</parameter><parameter=list>['a', {'b': None}]</parameter><parameter=object>\n{\"a\": [1,\n 2]}\n</parameter><parameter=kind>a</parameter><parameter=link>1</parameter></function>",
        "",
        &[(
            "edit",
            "{\"count\": 3, \"ratio\": -1.5e3, \"flag\": true, \"list\": [\"a\", {\"b\": null}], \"object\": {\"a\": [1,\n 2]}, \"kind\": \"a\", \"link\": \"1\"}",
        )],
    ),
    Case::new(
        "the closing tag in JSON",
        "<function=edit><parameter=list>[\"</parameter>\", \"\\\"</parameter>\"]</parameter><parameter=text>[\"</parameter></function>",
        "",
        &[(
            "edit",
            r#"{"list": ["</parameter>", "\"</parameter>"], "text": "[\""}"#,
        )],
    ),
    Case::new(
        "strings or something else",
        "<function=edit><parameter=maybe>null</parameter><parameter=maybe>nullable</parameter><parameter=maybe>3</parameter><parameter=either>3</parameter><parameter=either>3 of them</parameter><parameter=either>\"q\"</parameter></function>",
        "",
        &[(
            "edit",
            r#"{"maybe": null, "maybe": "nullable", "maybe": "3", "either": 3, "either": "3 of them", "either": "\"q\""}"#,
        )],
    ),
    Case::new(
        "not what the schema says",
        "<function=edit><parameter=count>many</parameter><parameter=list>[1,</parameter><parameter=flag></parameter></function>",
        "",
        &[("edit", r#"{"count": "many", "list": "[1,", "flag": ""}"#)],
    ),
    Case::new(
        "undeclared parameters",
        "<function=other><parameter=a>3</parameter><parameter=b>text</parameter><parameter=c>[1]</parameter><parameter=d>True</parameter></function>",
        "",
        &[("other", r#"{"a": 3, "b": "text", "c": [1], "d": true}"#)],
    ),
    Case::new(
        "unicode",
        "<function=weather><parameter=city>Zürich 漢字 🙂</parameter></function>",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<tool_call>\n<function=weather>\n<parameter=city>\nBer",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "truncated before it is certain",
        "<tool_call>\n<function=weather>\n<param",
    ),
    Case::new(
        "breaks",
        "<function=weather><parameter=city>Berlin</parameter>and",
        "and",
        &[("weather", r#"{"city": "Berlin""#)],
    ),
    Case::text(
        "malformed",
        "<tool_call>\n<function=weather>\nBerlin</function>",
    ),
    Case::text("malformed name", "<function=two words>\n</function>"),
    Case::new(
        "as Hermes",
        r#"<tool_call>{"name": "now", "arguments": {}}</tool_call>"#,
        "",
        &[("now", "{}")],
    ),
    Case::text(
        "look-alike",
        "Write <tool_call> and <function=f> with <parameter=x>.",
    ),
];
