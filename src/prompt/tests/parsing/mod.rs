//! Output in all its forms, each cut at every possible place: here what the forms share, and a file for
//! each.

mod bare;
mod formats;
mod incremental;
mod random;
mod reasoning;
mod tagged;

use crate::prompt::OutputDelta;
use crate::prompt::output::{OutputFormat, OutputParser, ParserOptions};
use crate::prompt::reasoning::THINK;
use crate::prompt::tools::{FORMATS, Format, GENERIC};

/// An output read to its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Parsed {
    reasoning: String,
    content: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
}

fn parser(open: bool) -> OutputParser {
    let options = ParserOptions {
        tools: true,
        reasoning_open: open,
        ..ParserOptions::default()
    };
    OutputParser::new(&options, THINKING)
}

/// `<think>` and the generic form of calls.
const THINKING: OutputFormat = OutputFormat {
    reasoning: Some(THINK),
    tools: GENERIC,
};
/// The generic form of calls alone.
const PLAIN: OutputFormat = OutputFormat {
    reasoning: None,
    tools: GENERIC,
};

fn format_named(name: &str) -> &'static Format {
    FORMATS
        .iter()
        .find(|format| format.name == name)
        .expect("a known format")
}

fn collect(parsed: &mut Parsed, deltas: Vec<OutputDelta>) {
    for delta in deltas {
        match delta {
            OutputDelta::Content(text) => parsed.content += &text,
            OutputDelta::Reasoning(text) => {
                assert!(
                    parsed.content.is_empty() && parsed.calls.is_empty(),
                    "reasoning comes first"
                );
                parsed.reasoning += &text;
            }
            OutputDelta::ToolCallStart { index, name } => {
                assert_eq!(index, parsed.calls.len(), "calls are counted from 0");
                parsed.calls.push((name, String::new()));
            }
            OutputDelta::ToolCallArguments { index, text } => {
                assert_eq!(
                    index + 1,
                    parsed.calls.len(),
                    "arguments belong to the last call"
                );
                assert!(!text.is_empty());
                parsed.calls[index].1 += &text;
            }
        }
    }
}

fn parse<'a>(open: bool, pieces: impl IntoIterator<Item = &'a str>) -> Parsed {
    parse_with(parser(open), pieces)
}

fn parse_with<'a>(mut parser: OutputParser, pieces: impl IntoIterator<Item = &'a str>) -> Parsed {
    let mut parsed = Parsed::default();
    for piece in pieces {
        collect(&mut parsed, parser.push(piece));
    }
    collect(&mut parsed, parser.finish());
    assert_eq!(parser.tool_calls(), parsed.calls.len());
    assert_eq!(parser.finish(), []);
    parsed
}

/// Reads the text whole, in two pieces cut at each place, and character by character.
#[track_caller]
fn check(open: bool, text: &str, expected: &Parsed) {
    assert_eq!(&parse(open, [text]), expected, "whole: {text:?}");
    for cut in (1..text.len()).filter(|&cut| text.is_char_boundary(cut)) {
        let (first, second) = text.split_at(cut);
        assert_eq!(
            &parse(open, [first, second]),
            expected,
            "{first:?} + {second:?}"
        );
    }
    let characters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(
        &parse(open, characters.iter().map(String::as_str)),
        expected,
        "by characters: {text:?}"
    );
}

#[track_caller]
fn case(text: &str, content: &str, calls: &[(&str, &str)]) {
    let calls = calls
        .iter()
        .map(|(name, arguments)| (name.to_string(), arguments.to_string()))
        .collect();
    check(
        false,
        text,
        &Parsed {
            content: content.to_string(),
            calls,
            reasoning: String::new(),
        },
    );
}

const BERLIN: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\"}}\n</tool_call>";
const PARIS: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
