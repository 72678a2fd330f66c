//! The form of calls, as rules of a grammar (llguidance's Lark) that output can be made to follow.
//!
//! The rules are one family's markup around the arguments, which are grammars of their own: the rules refer
//! to them by name.

use serde_json::Value;

use super::Format;

/// Most calls in one answer that must follow the rules: a model that only repeats itself comes to an end.
const MOST_CALLS: usize = 16;

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

/// One family's markup around names and arguments.
struct Form {
    /// Begins the calls.
    opening: &'static str,
    /// Between two calls. None: there is only one.
    between: Option<&'static str>,
    /// Before, between and behind a call's name and its arguments.
    call: [&'static str; 3],
    /// The name is a JSON string.
    quoted: bool,
    /// Ends the calls.
    closing: &'static str,
}

/// Calls as objects of a list.
const LIST: Form = Form {
    opening: "",
    between: Some(", "),
    call: ["{\"name\": ", ", \"arguments\": ", "}"],
    quoted: true,
    closing: "]",
};

impl Form {
    fn of(format: &Format) -> Option<Form> {
        Some(match format.name {
            "hermes" => Form {
                opening: "<tool_call>",
                between: Some("\n<tool_call>"),
                call: ["\n{\"name\": ", ", \"arguments\": ", "}\n</tool_call>"],
                quoted: true,
                closing: "",
            },
            "granite" => Form {
                opening: "<|tool_call|>[",
                ..LIST
            },
            "phi4" => Form {
                opening: "<|tool_call|>[",
                closing: "]<|/tool_call|>",
                ..LIST
            },
            "nemotron" => Form {
                opening: "<TOOLCALL>[",
                closing: "]</TOOLCALL>",
                ..LIST
            },
            "functionary" => Form {
                opening: "<function=",
                between: Some("<function="),
                call: ["", ">", "</function>"],
                quoted: false,
                closing: "",
            },
            "deepseek_v3" => Form {
                opening: "<｜tool▁calls▁begin｜>",
                between: Some("\n"),
                call: [
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
                    "\n```json\n",
                    "\n```<｜tool▁call▁end｜>",
                ],
                quoted: false,
                closing: "<｜tool▁calls▁end｜>",
            },
            "deepseek_v31" => Form {
                opening: "<｜tool▁calls▁begin｜>",
                between: Some(""),
                call: [
                    "<｜tool▁call▁begin｜>",
                    "<｜tool▁sep｜>",
                    "<｜tool▁call▁end｜>",
                ],
                quoted: false,
                closing: "<｜tool▁calls▁end｜>",
            },
            // Further calls would have to be counted.
            "kimi_k2" => Form {
                opening: "<|tool_calls_section_begin|>",
                between: None,
                call: [
                    "<|tool_call_begin|>functions.",
                    ":0<|tool_call_argument_begin|>",
                    "<|tool_call_end|>",
                ],
                quoted: false,
                closing: "<|tool_calls_section_end|>",
            },
            _ => return None,
        })
    }
}

/// Rules for `answer`: one call of one of `tools`, or several where the format has them and `several` says
/// so, or what `otherwise` says. None: this format's calls cannot be put into rules.
pub(in crate::prompt) fn answer(
    format: &Format,
    tools: &[CallableTool],
    several: bool,
    otherwise: &Otherwise,
) -> Option<String> {
    if format.name == "llama3" {
        return Some(bare(tools, otherwise));
    }
    Form::of(format).map(|form| marked(&form, tools, several, otherwise))
}

/// Calls between marks.
fn marked(form: &Form, tools: &[CallableTool], several: bool, otherwise: &Otherwise) -> String {
    let open = literal(form.opening);
    let more = match form.between.filter(|_| several) {
        Some("") => format!(" call{{0,{}}}", MOST_CALLS - 1),
        Some(between) => format!(" ({} call){{0,{}}}", literal(between), MOST_CALLS - 1),
        None => String::new(),
    };
    let close = match form.closing {
        "" => String::new(),
        closing => format!(" {}", literal(closing)),
    };
    let answer = match otherwise {
        Otherwise::Nothing => format!("answer: {open} call{more}{close}\n"),
        // The text before a call ends with the call's own mark.
        Otherwise::Text => format!(
            "answer: TEXT? | before call{more}{close}\n\
             TEXT: /(?s:.+)/ & ~/(?s:.*){}(?s:.*)/\n\
             before[suffix={open}]: /(?s:.*)/\n",
            expression(form.opening)
        ),
        Otherwise::Grammar(name) => format!("answer: {name} | {open} call{more}{close}\n"),
    };
    answer + &call(tools, form.call, form.quoted)
}

/// `{"name": …, "parameters": …}` as the whole answer.
fn bare(tools: &[CallableTool], otherwise: &Otherwise) -> String {
    let answer = match otherwise {
        Otherwise::Nothing => "answer: call\n".to_owned(),
        // An answer that begins with a brace could be read as a call.
        Otherwise::Text => "answer: TEXT? | call\nTEXT: /[^{\\s](?s:.*)/\n".to_owned(),
        Otherwise::Grammar(name) => format!("answer: {name} | call\n"),
    };
    let call_form = ["{\"name\": ", ", \"parameters\": ", "}"];
    answer + &call(tools, call_form, true)
}

/// The rule `call`: a name and arguments, with these before, between and behind them.
fn call(tools: &[CallableTool], form: [&str; 3], quoted: bool) -> String {
    let [before, between, after] = form;
    let alternatives: Vec<String> = tools
        .iter()
        .map(|tool| {
            let name = match quoted {
                true => Value::from(tool.name.as_str()).to_string(),
                false => tool.name.clone(),
            };
            let head = literal(&format!("{before}{name}{between}"));
            format!("{head} {} {}", tool.arguments, literal(after))
        })
        .collect();
    format!("call: {}\n", alternatives.join("\n    | "))
}

/// A regular expression for this text.
fn expression(text: &str) -> String {
    let special = |character: char| "|[](){}.*+?^$\\/&~".contains(character);
    let escaped = |character: char| match special(character) {
        true => format!("\\{character}"),
        false => character.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// A string of Lark.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
