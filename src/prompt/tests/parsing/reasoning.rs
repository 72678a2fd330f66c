//! Reasoning before the answer.

use super::{BERLIN, Parsed, case, check};

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
