//! The form of calls, as rules of a grammar (llguidance's Lark) that output can be made to follow.
//!
//! The rules are one family's markup around the arguments, which are grammars of their own: the rules refer
//! to them by name.

use serde_json::Value;

use super::{CLOSE, OPEN};

/// Most calls in one answer that must follow the rules: a model that only repeats itself comes to an end.
const MOST_CALLS: usize = 16;

/// A way of writing calls that can be put into rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::prompt) enum CallForm {
    /// `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`, several set off by newlines.
    Tagged,
    /// `{"name": …, "parameters": {…}}` as the whole answer.
    Bare,
}

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::prompt) struct CallableTool {
    pub(in crate::prompt) name: String,
    /// A reference to the grammar of its arguments, a JSON object: `@name`.
    pub(in crate::prompt) arguments: String,
}

/// What an answer may be besides calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::prompt) enum Otherwise {
    Nothing,
    /// Text without calls; also before a call, where the format has that.
    Text,
    /// What the grammar of this name says: `@name`.
    Grammar(String),
}

/// Rules for `answer`: one call of one of `tools`, or several where the form has them and `several` says
/// so, or what `otherwise` says.
pub(in crate::prompt) fn answer(
    form: CallForm,
    tools: &[CallableTool],
    several: bool,
    otherwise: &Otherwise,
) -> String {
    match form {
        CallForm::Tagged => tagged(tools, several, otherwise),
        CallForm::Bare => bare(tools, otherwise),
    }
}

fn tagged(tools: &[CallableTool], several: bool, otherwise: &Otherwise) -> String {
    let (open, next) = (literal(OPEN), literal(&format!("\n{OPEN}")));
    let more = match several {
        true => format!(" ({next} call){{0,{}}}", MOST_CALLS - 1),
        false => String::new(),
    };
    let answer = match otherwise {
        Otherwise::Nothing => format!("answer: {open} call{more}\n"),
        // The text before a call ends with the call's own tag.
        Otherwise::Text => format!(
            "answer: TEXT? | before call{more}\n\
             TEXT: /(?s:.+)/ & ~/(?s:.*){OPEN}(?s:.*)/\n\
             before[suffix={open}]: /(?s:.*)/\n"
        ),
        Otherwise::Grammar(name) => format!("answer: {name} | {open} call{more}\n"),
    };
    answer + &call(tools, "\n", "arguments", &format!("\n{CLOSE}"))
}

fn bare(tools: &[CallableTool], otherwise: &Otherwise) -> String {
    let answer = match otherwise {
        Otherwise::Nothing => "answer: call\n".to_owned(),
        // An answer that begins with a brace could be read as a call.
        Otherwise::Text => "answer: TEXT? | call\nTEXT: /[^{\\s](?s:.*)/\n".to_owned(),
        Otherwise::Grammar(name) => format!("answer: {name} | call\n"),
    };
    answer + &call(tools, "", "parameters", "")
}

/// The rule `call`: an object with name and arguments, between `before` and `after`.
fn call(tools: &[CallableTool], before: &str, arguments: &str, after: &str) -> String {
    let alternatives: Vec<String> = tools
        .iter()
        .map(|tool| {
            let name = Value::from(tool.name.as_str());
            let head = literal(&format!("{before}{{\"name\": {name}, \"{arguments}\": "));
            let tail = literal(&format!("}}{after}"));
            format!("{head} {} {tail}", tool.arguments)
        })
        .collect();
    format!("call: {}\n", alternatives.join("\n    | "))
}

/// A string of Lark.
pub(in crate::prompt) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
