//! Calls as Python in a `tool_code` fence: Gemma 3, and models prompted in that way.

use super::pythonic;
use crate::prompt::tools::constraint::form::Way;
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Item, Mark};
use crate::prompt::tools::written::Written;

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "gemma3",
    opens: &[Mark::new(
        "```tool_code",
        &[
            Item::Space,
            Item::When(&[('[', pythonic::LIST)]),
            Item::Python,
        ],
    )],
    again: &[Mark::new(",", pythonic::CALL)],
    again_word: Some(&[Item::Python]),
    closes: &["]", "```"],
    declared_only: true,
    hints: &["tool_code"],
    end_tokens: &["<end_of_turn>"],
    written: Some(Written::Python("```tool_code\n", "\n", "\n```")),
    ways: &[Way {
        open: "```tool_code\n",
        call: pythonic::PYTHON,
        between: Some("\n"),
        close: "\n```",
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
        "```tool_code\nweather(city=\"Berlin\", days=3)\n```",
        "",
        &[("weather", r#"{"city": "Berlin", "days": 3}"#)],
    ),
    Case::new(
        "parallel",
        "```tool_code\nweather(city='Berlin')\nnow()\n```",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "a list",
        "```tool_code\n[weather(city='Berlin'), now()]\n```",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n```tool_code\nnow()\n```\nDone.\n```\nx\n```",
        "I look.\nDone.\n```\nx\n```",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        "```tool_code\nedit(object={'a': [1, {\"b\": ')```'}]}, text='say \"hi\" \\\\')\n```",
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": ")```"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        "```tool_code\nweather(city='Zürich 漢字 🙂')\n```",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "```tool_code\nnow()\n```",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "```tool_code\nweather(city='Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text("malformed", "```tool_code\nweather Berlin\n```"),
    Case::text("other code", "```tool_code\nprint(1)\n```"),
    Case::text("look-alike", "```python\nnow()\n```"),
];
