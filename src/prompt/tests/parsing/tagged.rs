//! Calls between tags.

use serde_json::Value;

use super::{BERLIN, PARIS, case};

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
