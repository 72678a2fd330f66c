//! Real templates, where they are: which formats are chosen for them, and that what a template writes for a
//! message with calls is read back as exactly those calls.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::detokenizing::{format_of, reference, tokenizer};
use crate::prompt::{ChatInput, OutputDelta, PromptFormat};

fn templates() -> Vec<(String, PathBuf)> {
    let Some(folder) = reference("chat_templates") else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jinja")
        })
        .collect();
    paths.sort();
    let name = |path: &PathBuf| {
        path.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    paths.into_iter().map(|path| (name(&path), path)).collect()
}

fn format(path: &PathBuf) -> PromptFormat {
    let source = std::fs::read_to_string(path).expect("readable");
    format_of(
        tokenizer(&["<s>", "a"], &["<s>"], r#"{"type": "Fuse"}"#),
        Some(&source),
    )
}

fn tools() -> Vec<Value> {
    let tool = |name: &str, properties: Value| {
        json!({ "type": "function", "function": { "name": name, "description": "A tool.",
            "parameters": { "type": "object", "properties": properties, "required": [] } } })
    };
    vec![
        tool(
            "weather",
            json!({
                "city": { "type": "string", "description": "The city." },
                "days": { "type": "integer", "description": "How many." },
                "detailed": { "type": "boolean", "description": "All of it." },
                "sites": { "type": "array", "items": { "type": "string" }, "description": "Where." },
            }),
        ),
        tool("now", json!({})),
    ]
}

fn render(format: &PromptFormat, messages: &[Value], thinking: bool) -> Option<String> {
    let mut kwargs = Map::new();
    kwargs.insert("enable_thinking".to_owned(), thinking.into());
    kwargs.insert("thinking".to_owned(), thinking.into());
    let input = ChatInput {
        messages,
        tools: &tools(),
        template_kwargs: &kwargs,
        continue_final_message: false,
    };
    format.render(&input).ok()
}

/// The calls, and the rest, that the format's parser finds behind a prompt.
fn read(format: &PromptFormat, prompt: &str, written: &str) -> (Vec<(String, Value)>, String) {
    let mut parser = format.output_parser(&format.parser_options(prompt, &tools()));
    let (mut calls, mut rest) = (Vec::new(), String::new());
    for delta in parser.push(written).into_iter().chain(parser.finish()) {
        match delta {
            OutputDelta::Content(text) | OutputDelta::Reasoning(text) => rest += &text,
            OutputDelta::ToolCallStart { name, .. } => calls.push((name, String::new())),
            OutputDelta::ToolCallArguments { index, text } => calls[index].1 += &text,
        }
    }
    let calls = calls
        .into_iter()
        .map(|(name, arguments)| (name, serde_json::from_str(&arguments).expect("JSON")))
        .collect();
    (calls, rest)
}

#[test]
fn calls_that_templates_write_are_read_back() {
    let arguments =
        json!({ "city": "Zü\"r\\ich <b>\n🙂", "days": 3, "detailed": true, "sites": ["a", "b"] });
    let call = |id: &str, name: &str, arguments: &Value| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments.to_string() } });
    let first = call("call00001", "weather", &arguments);
    let second = call("call00002", "now", &json!({}));
    let user = json!({ "role": "user", "content": "Weather?" });
    let result = |id: &str, name: &str| json!({ "role": "tool", "tool_call_id": id, "name": name, "content": "21" });
    for (name, path) in templates() {
        let format = format(&path);
        let mut read_back = 0;
        for (calls, thinking) in [
            (vec![&first], false),
            (vec![&first, &second], false),
            (vec![&first], true),
            (vec![&second], true),
        ] {
            let mut messages = vec![user.clone()];
            messages.push(json!({ "role": "assistant", "content": null, "tool_calls": calls }));
            for call in &calls {
                let name = call["function"]["name"].as_str().expect("a name");
                messages.push(result(call["id"].as_str().expect("an id"), name));
            }
            // Some templates refuse several calls.
            let (Some(prompt), Some(rendered)) = (
                render(&format, &messages[..1], thinking),
                render(&format, &messages, thinking),
            ) else {
                continue;
            };
            let expected: Vec<(String, Value)> = calls
                .iter()
                .map(|call| {
                    let function = &call["function"];
                    let arguments = function["arguments"].as_str().expect("text");
                    let name = function["name"].as_str().expect("a name").to_owned();
                    (name, serde_json::from_str(arguments).expect("JSON"))
                })
                .collect();
            // Where the template rewrites the end of the prompt (an empty thought, for example), the common
            // beginning up to the last mark is what the model continues.
            let common = prompt
                .char_indices()
                .zip(rendered.chars())
                .find(|((_, one), other)| one != other)
                .map_or(prompt.len().min(rendered.len()), |((position, _), _)| {
                    position
                });
            let begin = if rendered.starts_with(&prompt) {
                prompt.len()
            } else {
                rendered[..common].rfind(['<', '[']).unwrap_or(common)
            };
            let (found, _) = read(
                &format,
                &prompt[..begin.min(prompt.len())],
                &rendered[begin..],
            );
            // A few templates print only the first of several calls.
            let printed = if rendered[begin..].contains("now") {
                expected.len()
            } else {
                1
            };
            assert_eq!(found, expected[..printed], "{name}: {}", &rendered[begin..]);
            read_back += 1;
        }
        // This one wants its functions in a variable of its own, and refuses messages without.
        assert!(read_back > 0 || name.contains("firefunction"), "{name}");
    }
}

/// The formats of the templates that are known, so that a change is seen. `docs/tool-formats.md` has them, too.
#[test]
fn the_formats_that_are_chosen() {
    let mut found = BTreeMap::new();
    for (name, path) in templates() {
        let (tools, reasoning, native) = {
            let format = format(&path);
            let (tools, reasoning) = format.format_names();
            (tools, reasoning, format.tool_support())
        };
        found.insert(name, format!("{tools} | {native} | {reasoning}"));
    }
    if found.is_empty() {
        return;
    }
    let table = include_str!("../../../docs/tool-formats.md");
    let rows = found
        .iter()
        .map(|(name, formats)| format!("| {name} | {formats} |"));
    let missing: Vec<String> = rows.filter(|row| !table.contains(row)).collect();
    assert!(
        missing.is_empty(),
        "docs/tool-formats.md lacks\n{}",
        missing.join("\n")
    );
}
