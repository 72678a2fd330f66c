//! `<|tool_call_start|>[name(key=value), …]<|tool_call_end|>`: LFM2.

use super::pythonic;
use crate::prompt::tools::constraint::form::Way;
#[cfg(test)]
use crate::prompt::tools::item::Case;
use crate::prompt::tools::item::{Format, Mark};
use crate::prompt::tools::written::Written;

pub(in crate::prompt::tools) const FORMAT: Format = Format {
    name: "lfm2",
    opens: &[Mark::new("<|tool_call_start|>", pythonic::LIST)],
    again: &[Mark::new(",", pythonic::CALL)],
    closes: &["]", "<|tool_call_end|>"],
    hints: &["<|tool_call_start|>", "<|tool_list_start|>"],
    written: Some(Written::Python(
        "<|tool_call_start|>[",
        ", ",
        "]<|tool_call_end|>",
    )),
    ways: &[Way {
        open: "<|tool_call_start|>[",
        call: pythonic::PYTHON,
        between: Some(", "),
        close: "]<|tool_call_end|>",
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
        "<|tool_call_start|>[weather(city=\"Berlin\")]<|tool_call_end|>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    ),
    Case::new(
        "parallel",
        "<|tool_call_start|>[weather(city='Berlin'), now()]<|tool_call_end|>",
        "",
        &[("weather", r#"{"city": "Berlin"}"#), ("now", "{}")],
    ),
    Case::new(
        "text around",
        "I look.\n<|tool_call_start|>[now()]<|tool_call_end|>Done.",
        "I look.Done.",
        &[("now", "{}")],
    ),
    Case::new(
        "nested",
        r#"<|tool_call_start|>[edit(object={'a': [1, {"b": ')]'}]}, text='say "hi" \\')]<|tool_call_end|>"#,
        "",
        &[(
            "edit",
            r#"{"object": {"a": [1, {"b": ")]"}]}, "text": "say \"hi\" \\"}"#,
        )],
    ),
    Case::new(
        "unicode",
        "<|tool_call_start|>[weather(city='Zürich 漢字 🙂')]<|tool_call_end|>",
        "",
        &[("weather", r#"{"city": "Zürich 漢字 🙂"}"#)],
    ),
    Case::new(
        "empty arguments",
        "<|tool_call_start|>[now()]<|tool_call_end|>",
        "",
        &[("now", "{}")],
    ),
    Case::new(
        "truncated",
        "<|tool_call_start|>[weather(city='Ber",
        "",
        &[("weather", r#"{"city": "Ber"#)],
    ),
    Case::text(
        "malformed",
        "<|tool_call_start|>weather Berlin<|tool_call_end|>",
    ),
    Case::text("look-alike", "[now()] is how a call looks."),
];
