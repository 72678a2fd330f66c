//! Each format's own cases, and what holds for all formats.

use proptest::prelude::*;
use serde_json::Value;

use super::{Parsed, parse_with};
use crate::prompt::OutputDelta;
use crate::prompt::output::{OutputFormat, OutputParser};
use crate::prompt::reasoning::{self, ReasoningFormat};
use crate::prompt::tools::{DECLARED, FORMATS, Format};

fn declared() -> Vec<Value> {
    serde_json::from_str(DECLARED).expect("tools")
}

/// A parser for the output behind this prompt, with the cases' tools.
fn parser(tools: &'static Format, prompt: &str) -> OutputParser {
    parser_with(tools, None, prompt)
}

fn parser_with(
    tools: &'static Format,
    reasoning: Option<&'static ReasoningFormat>,
    prompt: &str,
) -> OutputParser {
    let format = OutputFormat { reasoning, tools };
    OutputParser::new(&format.options(prompt, &declared()), format)
}

/// Reads a text whole, cut in two at every place, and by characters: always the same.
#[track_caller]
fn read_at_every_cut(make: impl Fn() -> OutputParser, text: &str) -> Parsed {
    let whole = parse_with(make(), [text]);
    for (cut, _) in text.char_indices() {
        let (first, second) = text.split_at(cut);
        assert_eq!(
            parse_with(make(), [first, second]),
            whole,
            "{first:?} + {second:?}"
        );
    }
    let characters: Vec<String> = text.chars().map(String::from).collect();
    let pieces = characters.iter().map(String::as_str);
    assert_eq!(parse_with(make(), pieces), whole, "by characters: {text:?}");
    whole
}

#[test]
fn every_case_of_every_format_at_every_cut() {
    for format in FORMATS {
        assert!(format.cases.len() >= 8, "{}", format.name);
        for case in format.cases {
            let found = read_at_every_cut(|| parser(format, ""), case.output);
            let expected = Parsed {
                reasoning: String::new(),
                content: case.content.to_owned(),
                calls: case
                    .calls
                    .iter()
                    .map(|(name, arguments)| (name.to_string(), arguments.to_string()))
                    .collect(),
            };
            assert_eq!(found, expected, "{}: {}", format.name, case.what);
            let complete =
                !case.what.contains("truncated") && !["breaks", "malformed"].contains(&case.what);
            for (name, arguments) in case.calls.iter().filter(|_| complete) {
                let arguments = serde_json::from_str::<Value>(arguments);
                assert!(
                    arguments.is_ok_and(|arguments| arguments.is_object()),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn every_kind_of_case_is_there() {
    let mut missing = Vec::new();
    for format in FORMATS {
        let has = |what: &str| format.cases.iter().any(|case| case.what.contains(what));
        for what in [
            "parallel",
            "nested",
            "unicode",
            "empty arguments",
            "truncated",
            "malformed",
        ] {
            if !has(what) {
                missing.push(format!("{}: {what}", format.name));
            }
        }
        assert!(has("text around") || has("text before"), "{}", format.name);
        let texts = format.cases.iter().filter(|case| case.calls.is_empty());
        assert!(texts.count() >= 2, "{}: look-alikes", format.name);
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn without_tools_markup_is_content() {
    for format in FORMATS.iter().filter(|format| !format.channels) {
        let case = &format.cases[0];
        let output = OutputFormat {
            reasoning: None,
            tools: format,
        };
        let parsed = parse_with(
            OutputParser::new(&output.options("", &[]), output),
            [case.output],
        );
        assert_eq!(parsed.calls, []);
        assert!(parsed.content.contains("weather") && parsed.content.contains("Berlin"));
    }
}

#[test]
fn reasoning_in_all_its_forms() {
    let hermes = super::format_named("hermes");
    for format in reasoning::FORMATS {
        let ReasoningFormat { open, close, .. } = format;
        let expect = |prompt: &str, text: &str, reasoning: &str, content: &str| {
            let found = read_at_every_cut(|| parser_with(hermes, Some(format), prompt), text);
            let expected = Parsed {
                reasoning: reasoning.to_owned(),
                content: content.to_owned(),
                calls: Vec::new(),
            };
            assert_eq!(found, expected, "{}: {prompt:?} {text:?}", format.name);
        };
        let prompt = format!("<user>{open}");
        // Opened by the model, by the prompt, by both; never closed; not at all.
        expect(
            "",
            &format!("{open}\nBecause.\n{close}\n\nTwo"),
            "Because.",
            "Two",
        );
        expect(
            &prompt,
            &format!("Because.\n{close}\n\nTwo"),
            "Because.",
            "Two",
        );
        expect(
            &format!("{prompt}\n"),
            &format!("{open}Because.{close}Two"),
            "Because.",
            "Two",
        );
        expect(&prompt, &format!("{close}Two"), "", "Two");
        expect(&prompt, "Because.\n", "Because.", "");
        expect(
            "",
            &format!("{open}Because, {}", &close[..1]),
            &format!("Because, {}", &close[..1]),
            "",
        );
        expect("", "Two", "", "Two");
        let text = format!("The tags are {open} and {close}.");
        expect("", &text, "", &text);
    }
}

#[test]
fn channels() {
    let harmony = super::format_named("harmony");
    let read = |prompt: &str, text: &str| read_at_every_cut(|| parser(harmony, prompt), text);
    let both = read(
        "<|start|>user<|message|>Hi<|end|><|start|>assistant",
        "<|channel|>analysis<|message|>Because.\n<|end|><|start|>assistant<|channel|>final<|message|>Two<|return|>",
    );
    assert_eq!(
        (both.reasoning.as_str(), both.content.as_str()),
        ("Because.\n", "Two")
    );
    // A prompt that ends inside a message of the assistant.
    let continued = read(
        "<|start|>assistant<|channel|>final<|message|>One, ",
        "two.<|return|>",
    );
    assert_eq!(
        (continued.reasoning.as_str(), continued.content.as_str()),
        ("", "two.")
    );
    let thinking = read(
        "<|start|>assistant<|channel|>analysis<|message|>",
        "Because.<|end|><|start|>assistant<|channel|>final<|message|>Two",
    );
    assert_eq!(
        (thinking.reasoning.as_str(), thinking.content.as_str()),
        ("Because.", "Two")
    );
    let called = read(
        "<|start|>assistant",
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{ }",
    );
    assert_eq!(called.reasoning, "I look.");
    assert_eq!(called.calls, [("now".to_owned(), "{ }".to_owned())]);
}

#[test]
fn what_is_held_back_is_bounded_in_every_format() {
    const LENGTH: usize = 280_000;
    for format in FORMATS {
        let mark = format.call_marks().next().unwrap_or_default();
        for filler in ["x", "{\"a\": \""] {
            let text = mark.to_owned() + &filler.repeat(LENGTH / filler.len());
            let given: usize = parser(format, "")
                .push(&text)
                .iter()
                .map(|delta| match delta {
                    OutputDelta::Content(text) | OutputDelta::Reasoning(text) => text.len(),
                    OutputDelta::ToolCallArguments { text, .. } => text.len(),
                    OutputDelta::ToolCallStart { .. } => 0,
                })
                .sum();
            assert!(
                given > LENGTH * 9 / 10,
                "{}: {mark:?} {filler:?} {given}",
                format.name
            );
        }
    }
}

/// Texts made of the marks of a format, of pieces of its cases, and of anything.
fn output(format: &'static Format) -> impl Strategy<Value = String> {
    let marks: Vec<String> = format.marks().into_iter().map(String::from).collect();
    let marks = if marks.is_empty() {
        vec![
            "<|channel|>".to_owned(),
            "<|message|>".to_owned(),
            " to=functions.now".to_owned(),
            "<|end|>".to_owned(),
            "<|start|>".to_owned(),
        ]
    } else {
        marks
    };
    let pieces: Vec<String> = format
        .cases
        .iter()
        .flat_map(|case| {
            let middle = case
                .output
                .char_indices()
                .nth(case.output.chars().count() / 2);
            let (first, second) = case
                .output
                .split_at(middle.map_or(0, |(position, _)| position));
            [case.output, first, second].map(String::from)
        })
        .collect();
    let piece = prop_oneof![
        3 => proptest::sample::select(marks),
        2 => proptest::sample::select(pieces),
        2 => r#"[a-z{}\[\]():=,"'<>|/ \n🙂]{0,5}"#,
        1 => Just("now".to_owned()),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn any_output() -> impl Strategy<Value = (&'static Format, String)> {
    proptest::sample::select(FORMATS).prop_flat_map(|format| (Just(format), output(format)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn any_text_at_any_split_gives_the_same((format, text) in any_output(), cuts in proptest::collection::vec(0usize..600, 0..12)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).filter(|&cut| text.is_char_boundary(cut)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        let whole = parse_with(parser(format, ""), [text.as_str()]);
        prop_assert_eq!(parse_with(parser(format, ""), pieces), whole, "{}", format.name);
    }

    #[test]
    fn text_without_markup_is_content(index in 0..FORMATS.len(), text in r"[a-zA-Z0-9 .,!?\n🙂é]{0,80}") {
        let parsed = parse_with(parser(FORMATS[index], ""), [text.as_str()]);
        prop_assert_eq!(parsed.calls, []);
        prop_assert_eq!(parsed.content, text);
    }

    #[test]
    fn arbitrary_text_never_panics(index in 0..FORMATS.len(), text in any::<String>()) {
        let parsed = parse_with(parser(FORMATS[index], ""), [text.as_str()]);
        prop_assert!(parsed.content.len() <= text.len());
    }
}
