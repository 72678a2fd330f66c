//! A call that is the whole answer, without tags.

use super::{Parsed, format_named, parse_with};
use crate::prompt::output::{OutputFormat, OutputParser, ParserOptions};

/// A model that writes the object alone.
#[track_caller]
fn bare(text: &str, content: &str, calls: &[(&str, &str)]) {
    let options = ParserOptions {
        tools: true,
        ..ParserOptions::default()
    };
    let format = OutputFormat {
        reasoning: None,
        tools: format_named("llama3"),
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
        let parsed = parse_with(OutputParser::new(&options, format), [first, second]);
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
