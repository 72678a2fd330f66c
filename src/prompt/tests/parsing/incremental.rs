//! What is given out when, and what is held back.

use super::{BERLIN, PLAIN, Parsed, THINKING, collect, parse, parser};
use crate::prompt::output::{OutputParser, ParserOptions};
use crate::prompt::{OutputDelta, StopMatcher};

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
    let mut plain = OutputParser::new(&ParserOptions::default(), PLAIN);
    assert_eq!(plain.push(&text), [OutputDelta::Content(text.clone())]);
    let mut no_tools = OutputParser::new(&ParserOptions::default(), THINKING);
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
    let mut parser = OutputParser::new(
        &ParserOptions {
            tools: true,
            ..ParserOptions::default()
        },
        PLAIN,
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
