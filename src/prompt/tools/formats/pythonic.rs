//! `[name(key=value), …]` as the whole answer: Llama 3.2 and 4, and others.

use crate::prompt::tools::constraint::form::{Piece, Way};
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark};
use crate::prompt::tools::written::Written;

pub(super) const CALL: &[Item] = &[Item::Space, Item::Python];
pub(super) const LIST: &[Item] = &[Item::Space, Item::Text("["), Item::Space, Item::Python];

pub(super) const PYTHON: &[Piece] = &[
    Piece::Name,
    Piece::Text("("),
    Piece::Python,
    Piece::Text(")"),
];

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "pythonic",
    opens: &[
        Mark::new("[", CALL).at_start(),
        Mark::new("<|python_start|>", LIST),
    ],
    again: &[Mark::new(",", CALL)],
    closes: &["]", "<|python_end|>"],
    declared_only: true,
    hints: &["[func_name1(params_name1=params_value1", "<|python_start|>"],
    end_tokens: &["<|eom_id|>", "<|eot_id|>", "<|eot|>", "<|eom|>"],
    written: Some(Written::Python("[", ", ", "]")),
    ways: &[
        Way {
            open: "[",
            anywhere: false,
            call: PYTHON,
            between: Some(", "),
            close: "]",
        },
        Way {
            open: "<|python_start|>[",
            call: PYTHON,
            between: Some(", "),
            close: "]<|python_end|>",
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
        "[weather(city='Berlin', days=3)]",
        "",
        &[("weather", r#"{"city": "Berlin", "days": 3}"#)],
    ),
    Case::new(
        "parallel",
        "[weather(city=\"Berlin\"), now()]",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "by position",
        "[weather(\"Berlin\", 3), edit('a', count=True)]",
        "",
        &[
            ("weather", r#"{"city": "Berlin", "days": 3}"#),
            ("edit", r#"{"text": "a", "count": true}"#),
        ],
    ),
    Case::new(
        "between marks",
        "I look.<|python_start|>[now()]<|python_end|> Done.",
        "I look. Done.",
        &[("now", "{}")],
    ),
    Case::new("text after", "[now()]\nDone.", "\nDone.", &[("now", "{}")]),
    Case::text("text before", "Sure: [now()]"),
    Case::new(
        "nested",
        r#"[edit(object={'a': [1, {"b": ')]'}], 'c': None}, text='say "hi" \\ it\'s', list=[])]"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": ")]"}], "c": null}, "text": "say \"hi\" \\ it's", "list": []}"#,
        )],
    ),
    Case::new(
        "long strings",
        "[edit(text=\"\"\"two\nlines, \"quoted\" \"\"\", flag=False)]",
        "",
        &[(
            "edit",
            r#"{"text": "two\nlines, \"quoted\" ", "flag": false}"#,
        )],
    ),
    Case::new(
        "unicode",
        r"[weather(city='Zürich 漢字 🙂 \u00fc')]",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂 ü"}"#)],
    ),
    Case::new("empty arguments", "[now( )]", "", &[("now", "{}")]),
    Case::new("a namespace", "[default_api.now()]", "", &[("now", "{}")]),
    Case::new(
        "truncated",
        "[weather(city='Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("truncated before it is certain", "[weather(ci"),
    Case::text("malformed", "[weather(city)]"),
    Case::text("look-alike", "[link](https://example.com) and [x(y=1)]"),
    Case::text("a list", "[1, 2, now]"),
];
