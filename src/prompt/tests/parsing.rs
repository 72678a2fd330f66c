//! Output in all its forms, each cut at every possible place.

use proptest::prelude::*;
use serde_json::Value;

use crate::prompt::output::{OutputParser, ParserOptions};
use crate::prompt::tools::ToolFormat;
use crate::prompt::{OutputDelta, StopMatcher};

/// An output read to its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Parsed {
    reasoning: String,
    content: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
}

fn parser(open: bool) -> OutputParser {
    OutputParser::new(
        &ParserOptions {
            tools: true,
            reasoning_open: open,
        },
        true,
        ToolFormat::Tagged,
    )
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

#[track_caller]
fn thinking(open: bool, text: &str, reasoning: &str, content: &str, calls: &[(&str, &str)]) {
    let calls = calls
        .iter()
        .map(|(name, arguments)| (name.to_string(), arguments.to_string()))
        .collect();
    check(
        open,
        text,
        &Parsed {
            content: content.to_string(),
            calls,
            reasoning: reasoning.to_string(),
        },
    );
}

const BERLIN: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\"}}\n</tool_call>";
const PARIS: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";

#[test]
fn a_call() {
    case(BERLIN, "", &[("weather", r#"{"city": "Berlin"}"#)]);
    case(
        "<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\":\"Berlin\"}}</tool_call>",
        "",
        &[("weather", r#"{"city":"Berlin"}"#)],
    );
    case(
        "<tool_call>\n\n { \"name\" : \"a\" , \"arguments\" :  { \"x\" :1 } } \n\n</tool_call>\n",
        "",
        &[("a", r#"{ "x" :1 }"#)],
    );
}

#[test]
fn several_calls() {
    let both = [
        ("weather", r#"{"city": "Berlin"}"#),
        ("weather", r#"{"city": "Paris"}"#),
    ];
    case(&format!("{BERLIN}\n{PARIS}"), "", &both);
    case(&format!("{BERLIN}{PARIS}"), "", &both);
    case(&format!("\n\n{BERLIN}\n\n\n{PARIS}\n"), "", &both);
    let in_one = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\"}}\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    case(in_one, "", &both);
    case(
        &in_one.replace("\n{\"name\"", "\n<tool_call>{\"name\""),
        "<tool_call>",
        &both,
    );
}

#[test]
fn text_around_calls() {
    let call = [("weather", r#"{"city": "Berlin"}"#)];
    case(&format!("Let me see.\n{BERLIN}"), "Let me see.", &call);
    case(&format!("Let me see.\n\n{BERLIN}"), "Let me see.\n", &call);
    case(
        &format!("Let me see. {BERLIN} Done.\n"),
        "Let me see.  Done.\n",
        &call,
    );
    case(&format!("{BERLIN}\nDone."), "\nDone.", &call);
    let both = [call[0], ("weather", r#"{"city": "Paris"}"#)];
    case(&format!("A\n{BERLIN}\nB\n{PARIS}\nC"), "A\nB\nC", &both);
}

#[test]
fn arguments_as_they_are_written() {
    for arguments in [
        r#"{}"#,
        r#"{ }"#,
        r#"{"a":{"b":[1,{"c":"}]"}],"d":null},"e":-1.5E+3}"#,
        r#"{"quoted": "say \"hi\" \\ \/ \u00e9 \ud83d\ude00", "raw": "é 漢 🙂"}"#,
        r#"{"markup": "<tool_call>{\"name\": \"x\"}</tool_call> <think> </think>"}"#,
        r#"{"code": "if (a) {\n\treturn [1];\n}"}"#,
        r#"{"name": "inner", "arguments": {"name": "deeper"}}"#,
    ] {
        assert!(serde_json::from_str::<Value>(arguments).is_ok());
        case(
            &format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>"),
            "",
            &[("f", arguments)],
        );
        case(
            &format!("<tool_call>{{\"arguments\":{arguments},\"name\":\"f\"}}</tool_call>"),
            "",
            &[("f", arguments)],
        );
    }
}

#[test]
fn fields_in_other_forms() {
    case(
        "<tool_call>{\"name\": \"f\", \"parameters\": {\"a\": 1}}</tool_call>",
        "",
        &[("f", r#"{"a": 1}"#)],
    );
    case(
        "<tool_call>{\"name\": \"f\"}</tool_call>",
        "",
        &[("f", "{}")],
    );
    case(
        "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>",
        "",
        &[("f", "{}")],
    );
    case(
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"\\u00fc\\\"}\"}</tool_call>",
        "",
        &[("f", r#"{"a": "ü"}"#)],
    );
    case(
        "<tool_call>{\"id\": 7, \"name\": \"f\\u002dg\", \"x\": [{}], \"arguments\": {\"a\": 1}, \"y\": 1.5}</tool_call>",
        "",
        &[("f-g", r#"{"a": 1}"#)],
    );
    // Raw control characters in strings are escaped, so that the arguments are JSON.
    case(
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"1\n2\t3\u{1}\"}}</tool_call>",
        "",
        &[("f", "{\"a\": \"1\\n2\\t3\\u0001\"}")],
    );
    // The first of several fields counts.
    case(
        "<tool_call>{\"name\": \"f\", \"name\": \"g\", \"arguments\": {}, \"parameters\": {\"a\": 1}}</tool_call>",
        "",
        &[("f", "{}")],
    );
}

#[test]
fn cut_off_by_the_end_of_the_output() {
    case(
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n",
        "",
        &[("f", r#"{"a": 1}"#)],
    );
    case(
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_",
        "",
        &[("f", r#"{"a": 1}"#)],
    );
    case(
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"x",
        "",
        &[("f", "{\"a\": \"x")],
    );
    case("<tool_call>\n{\"name\": \"f\"", "", &[("f", "")]);
    case(
        "<tool_call>\n{\"name\": \"we",
        "<tool_call>\n{\"name\": \"we",
        &[],
    );
    case("Hello <tool_c", "Hello <tool_c", &[]);
    case("Hello <tool_call>", "Hello <tool_call>", &[]);
    case("Hello\n", "Hello\n", &[]);
    case(" \n", " \n", &[]);
    case("", "", &[]);
}

#[test]
fn what_is_no_call_is_text() {
    for text in [
        "<tool_call>\nnot json\n</tool_call>",
        "<tool_call>{\"nam",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
        "<tool_call>{name: \"f\"}</tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>{\"arguments\": 1, \"name\": \"f\"}</tool_call>",
        "<tool_call>{\"arguments\": \"text\", \"name\": \"f\"}</tool_call>",
        "The tag <tool_call> opens a call, </tool_call> closes it.",
        "<tool_calls> <tool_call <<tool_cal> < tool_call> <TOOL_CALL>",
        "</tool_call> {\"name\": \"f\", \"arguments\": {}}",
        "a < b <t <to",
    ] {
        case(text, text, &[]);
    }
}

#[test]
fn a_call_after_what_is_none() {
    let call = [("weather", r#"{"city": "Berlin"}"#)];
    case(&format!("<tool_call> {BERLIN}"), "<tool_call> ", &call);
    case(
        &format!("<tool_call>{{\"x\": {BERLIN}"),
        "<tool_call>{\"x\": ",
        &call,
    );
    case(&format!("<{BERLIN}"), "<", &call);
    case(
        &format!("<tool_call<tool_call>oops</tool_call>{BERLIN}"),
        "<tool_call<tool_call>oops</tool_call>",
        &call,
    );
}

#[test]
fn a_call_that_breaks_stays_as_far_as_it_was_given_out() {
    case(
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1,, \"b\": 2}}</tool_call>ok",
        ", \"b\": 2}}ok",
        &[("f", "{\"a\": 1,")],
    );
    case(
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}}\n</tool_call>ok",
        "}ok",
        &[("f", "{\"a\": 1}")],
    );
    case(
        &format!("<tool_call>{{\"name\": \"f\", \"arguments\": [1]}}</tool_call>{BERLIN}"),
        "[1]}",
        &[("f", ""), ("weather", r#"{"city": "Berlin"}"#)],
    );
}

/// A model that writes the object alone.
#[track_caller]
fn bare(text: &str, content: &str, calls: &[(&str, &str)]) {
    let options = ParserOptions {
        tools: true,
        reasoning_open: false,
    };
    let expected = Parsed {
        content: content.to_string(),
        calls: calls
            .iter()
            .map(|(name, arguments)| (name.to_string(), arguments.to_string()))
            .collect(),
        reasoning: String::new(),
    };
    for cut in (0..=text.len()).filter(|&cut| text.is_char_boundary(cut)) {
        let (first, second) = text.split_at(cut);
        let parsed = parse_with(
            OutputParser::new(&options, false, ToolFormat::Bare),
            [first, second],
        );
        assert_eq!(parsed, expected, "{first:?} + {second:?}");
    }
}

#[test]
fn a_call_that_is_the_whole_answer() {
    let call = [("weather", r#"{"city": "Berlin"}"#)];
    bare(
        r#"{"name": "weather", "parameters": {"city": "Berlin"}}"#,
        "",
        &call,
    );
    bare(
        " \n{\"type\": \"function\", \"name\": \"weather\", \"parameters\": {\"city\": \"Berlin\"}}\n",
        "",
        &call,
    );
    bare(
        r#"{"parameters": {"city": "Berlin"}, "name": "weather"}"#,
        "",
        &call,
    );
    let two = r#"{"name": "weather", "parameters": {"city": "Berlin"}}; {"name": "now", "parameters": {}}"#;
    bare(two, "", &[call[0], ("now", "{}")]);
    bare(
        r#"{"name": "weather", "parameters": {"city": "Ber"#,
        "",
        &[("weather", r#"{"city": "Ber"#)],
    );
    bare(
        r#"{"name": "weather", "parameters": {"city": "Berlin"}} Done."#,
        " Done.",
        &call,
    );
}

#[test]
fn an_answer_in_json_is_no_call() {
    for text in [
        r#"{"name": "Ada", "age": 36}"#,
        r#"{"name": "Ada"}"#,
        r#"{"a": [1, {"name": "weather", "parameters": {}}]}"#,
        r#"Sure: {"name": "weather", "parameters": {}}"#,
        r#"[{"name": "weather", "parameters": {}}]"#,
        "{ not json }\n{\"name\": \"weather\", \"parameters\": {}}",
        "<tool_call>{\"name\": \"weather\", \"arguments\": {}}</tool_call>",
        "{",
    ] {
        bare(text, text, &[]);
    }
}

#[test]
fn reasoning_opened_by_the_model() {
    thinking(
        false,
        "<think>\nBecause.\n</think>\n\nTwo",
        "Because.",
        "Two",
        &[],
    );
    thinking(
        false,
        "\n<think>Because.</think>Two",
        "Because.",
        "Two",
        &[],
    );
    thinking(false, "<think>\n\n</think>\n\nTwo", "", "Two", &[]);
    thinking(
        false,
        "<think>a\n\nb < c </thin> </think>\n  Two\n",
        "a\n\nb < c </thin> ",
        "  Two\n",
        &[],
    );
    thinking(false, "<think>a<</think>b", "a<", "b", &[]);
    thinking(
        false,
        &format!("<think>\nI look.\n</think>\n\n{BERLIN}"),
        "I look.",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    );
    thinking(
        false,
        &format!("<think>\nI look.\n</think>\n\nSo:\n{BERLIN}"),
        "I look.",
        "So:",
        &[("weather", r#"{"city": "Berlin"}"#)],
    );
}

#[test]
fn reasoning_opened_by_the_prompt() {
    thinking(true, "Because.\n</think>\n\nTwo", "Because.", "Two", &[]);
    thinking(
        true,
        "\nBecause.</think>Two </think> three",
        "Because.",
        "Two </think> three",
        &[],
    );
    thinking(
        true,
        &format!("I look.\n</think>\n\n{BERLIN}"),
        "I look.",
        "",
        &[("weather", r#"{"city": "Berlin"}"#)],
    );
    thinking(true, "</think>\n\nTwo", "", "Two", &[]);
}

#[test]
fn reasoning_that_is_never_closed() {
    thinking(true, "Because.\n", "Because.", "", &[]);
    thinking(
        false,
        "<think>\nBecause.\nSo </thi",
        "Because.\nSo </thi",
        "",
        &[],
    );
    thinking(
        true,
        &format!("I may call {BERLIN}"),
        &format!("I may call {BERLIN}"),
        "",
        &[],
    );
    thinking(false, "<think>", "", "", &[]);
}

#[test]
fn look_alikes_of_reasoning_are_text() {
    case(
        "The tag <think> opens reasoning, </think> closes it.",
        "The tag <think> opens reasoning, </think> closes it.",
        &[],
    );
    case("<thinking>no</thinking>", "<thinking>no</thinking>", &[]);
    case("<thi", "<thi", &[]);
    case("  \n <think", "  \n <think", &[]);
}

#[test]
fn names_and_arguments_are_given_out_as_soon_as_they_are_known() {
    let mut parser = parser(false);
    assert_eq!(
        parser.push("Hi\n<tool_call>\n{\"name\": \"weather"),
        [OutputDelta::Content("Hi".into())]
    );
    assert_eq!(
        parser.push("\""),
        [OutputDelta::ToolCallStart {
            index: 0,
            name: "weather".into()
        }]
    );
    assert_eq!(parser.push(", \"arguments\": "), []);
    assert_eq!(
        parser.push("{\"ci"),
        [OutputDelta::ToolCallArguments {
            index: 0,
            text: "{\"ci".into()
        }]
    );
    assert_eq!(
        parser.push("ty\": 1}"),
        [OutputDelta::ToolCallArguments {
            index: 0,
            text: "ty\": 1}".into()
        }]
    );
    assert_eq!(parser.push("}\n</tool_call>\n"), []);
    assert_eq!(parser.finish(), []);
}

#[test]
fn without_tools_or_reasoning_all_is_content() {
    let text = format!("<think>a</think>{BERLIN}");
    let mut plain = OutputParser::new(&ParserOptions::default(), false, ToolFormat::Tagged);
    assert_eq!(plain.push(&text), [OutputDelta::Content(text.clone())]);
    let mut no_tools = OutputParser::new(&ParserOptions::default(), true, ToolFormat::Tagged);
    assert_eq!(
        no_tools.push(&text),
        [
            OutputDelta::Reasoning("a".into()),
            OutputDelta::Content(BERLIN.into())
        ]
    );
}

#[test]
fn what_is_held_back_is_bounded() {
    // White space, newlines in reasoning, a call whose name never comes: all are given out at last.
    let spaces = " ".repeat(10_000);
    assert_eq!(parse(false, [spaces.as_str()]).content, spaces);
    let mut parser = parser(true);
    let held: usize = 10_000
        - parser
            .push(&("x".to_string() + &"\n".repeat(10_000)))
            .iter()
            .map(|delta| match delta {
                OutputDelta::Reasoning(text) => text.len(),
                _ => 0,
            })
            .sum::<usize>();
    assert!(held < 1000, "{held}");
    let endless = format!(
        "<tool_call>{{\"arguments\": {{\"a\": \"{}",
        "x".repeat(300_000)
    );
    let mut given = 0;
    let mut parser = super::super::output::OutputParser::new(
        &ParserOptions {
            tools: true,
            reasoning_open: false,
        },
        false,
        ToolFormat::Tagged,
    );
    for delta in parser.push(&endless) {
        if let OutputDelta::Content(text) = delta {
            given += text.len();
        }
    }
    assert_eq!(given, endless.len());
    // Tags in tags: reading again and again stays linear.
    let nested = "<tool_call>{\"a\":\"".repeat(20_000);
    assert_eq!(parse(false, [nested.as_str()]).content, nested);
}

/// The same reading, of the whole text at once, by other means.
fn naive(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let mut rest = text;
    let trimmed = text.trim_start();
    if let Some(inner) = trimmed.strip_prefix("<think>") {
        let (reasoning, answer) = match inner.split_once("</think>") {
            Some((reasoning, answer)) => (reasoning, answer.trim_start_matches('\n')),
            None => (inner, ""),
        };
        parsed.reasoning = reasoning.trim_matches('\n').to_string();
        rest = answer;
    }
    // Text between calls, joined; a call's tags and the newline before it are no text.
    let mut between = String::new();
    while let Some(start) = rest.find("<tool_call>") {
        let inside = &rest[start + "<tool_call>".len()..];
        let mut values = serde_json::Deserializer::from_str(inside)
            .into_iter::<serde_json::Map<String, Value>>();
        let call = match values.next() {
            Some(Ok(object)) => object["name"]
                .as_str()
                .map(|name| (name.to_string(), object["arguments"].to_string())),
            _ => None,
        };
        match call {
            Some(call) => {
                between.push_str(&rest[..start]);
                push_text(&mut parsed, &between, true);
                between.clear();
                parsed.calls.push(call);
                rest = &inside[values.byte_offset()..];
                let closed = rest.trim_start();
                rest = closed.strip_prefix("</tool_call>").unwrap_or(rest);
            }
            None => {
                between.push_str(&rest[..start + "<tool_call>".len()]);
                rest = inside;
            }
        }
    }
    between.push_str(rest);
    push_text(&mut parsed, &between, false);
    parsed
}

fn push_text(parsed: &mut Parsed, text: &str, before_call: bool) {
    let is_space = text.trim().is_empty();
    if is_space && (before_call || !parsed.calls.is_empty()) {
        return;
    }
    parsed.content += if before_call {
        text.strip_suffix('\n').unwrap_or(text)
    } else {
        text
    };
}

/// Pieces of output: well-formed calls, texts, and things that look like markup.
fn output() -> impl Strategy<Value = String> {
    let json = prop_oneof![
        Just("1".to_string()),
        Just("-2.5".to_string()),
        Just("null".to_string()),
        "[a-z<>{}é ]{0,6}".prop_map(|text| Value::from(text).to_string()),
        Just("[1,{\"x\":[]}]".to_string()),
    ];
    let call = (
        "[a-z]{1,4}",
        proptest::collection::vec(("[a-z\"]{0,3}", json), 0..3),
    )
        .prop_map(|(name, fields)| {
            let fields: serde_json::Map<String, Value> = fields
                .into_iter()
                .map(|(key, value)| (key, serde_json::from_str(&value).unwrap_or_default()))
                .collect();
            format!(
                "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {}}}\n</tool_call>",
                Value::from(fields)
            )
        });
    let piece = prop_oneof![
        3 => call,
        2 => "[a-z \n🙂]{0,6}",
        1 => Just("<tool_call>".to_string()),
        1 => Just("<tool_".to_string()),
        1 => Just("<".to_string()),
        1 => Just("</think>".to_string()),
    ];
    let opening = prop_oneof![3 => Just(String::new()), 1 => "[a-z\n<]{0,6}".prop_map(|text| format!("<think>\n{text}\n</think>\n\n"))];
    (opening, proptest::collection::vec(piece, 0..6))
        .prop_map(|(opening, pieces)| opening + &pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn equals_reading_the_whole_text(text in output(), cuts in proptest::collection::vec(0usize..400, 0..12)) {
        // Behind the last call, `<tool_call>` could only be told from text by rules of the parser itself.
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).filter(|&cut| text.is_char_boundary(cut)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        prop_assert_eq!(parse(false, pieces), naive(&text));
    }

    #[test]
    fn any_text_at_any_split_gives_the_same(text in r#"[<>/toolcathink_{}":,nameargu1\\ \n]{0,60}"#, open in any::<bool>(), cuts in proptest::collection::vec(0usize..64, 0..8)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        prop_assert_eq!(parse(open, pieces), parse(open, [text.as_str()]));
    }
}

#[test]
fn a_stop_string_ends_the_raw_text_before_it_is_parsed() {
    let mut stop = StopMatcher::new(&["</tool_call>"]);
    let mut parser = parser(false);
    let outcome = stop.push(&format!("{BERLIN} and more"));
    assert!(outcome.stopped);
    let mut parsed = Parsed::default();
    collect(&mut parsed, parser.push(&outcome.text));
    collect(&mut parsed, parser.finish());
    assert_eq!(
        parsed.calls,
        [("weather".to_string(), r#"{"city": "Berlin"}"#.to_string())]
    );
    assert_eq!(parsed.content, "");
}
