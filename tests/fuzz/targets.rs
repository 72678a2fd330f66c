//! What is fuzzed: one function for each parser of outside data. They panic if a property does not hold.
//!
//! Used by the tests beside this file and by the libFuzzer targets in `fuzz/`.
#![allow(dead_code)] // Each libFuzzer target uses one of them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use trunkline::engine::loader::{
    EMBEDDED_NAME, FileLocation, LoadError, LoadedModel, ModelFiles, ModelSource, load, resolve,
};
use trunkline::engine::loader::{HubOptions, hub};
use trunkline::http::error::ApiError;
use trunkline::http::request::chat::ChatRequest;
use trunkline::http::request::completion::CompletionRequest;
use trunkline::http::request::parse_json;
use trunkline::prompt::{
    ChatInput, ChatTemplate, OutputDelta, PromptAssets, PromptFormat, StopMatcher,
};

/// Bodies that are understood.
pub const REQUESTS: &[&str] = &[
    r#"{"model":"demo","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"What's the weather in Berlin?"}]},{"role":"assistant","content":null,"reasoning_content":"Hm.","tool_calls":[{"id":"call_1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Berlin\"}"}}]},{"role":"tool","tool_call_id":"call_1","content":"sunny"}],"tools":[{"type":"function","function":{"name":"weather","description":"w","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}],"tool_choice":"auto","stream":true,"stream_options":{"include_usage":true},"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"seed":7,"stop":["END","\n\n"],"max_tokens":9,"logit_bias":{"50":-100},"frequency_penalty":0.1,"presence_penalty":-0.1,"repetition_penalty":1.1,"chat_template_kwargs":{"enable_thinking":false},"user":"u","metadata":{"a":"b"},"n":1}"#,
    r#"{"prompt":["Once upon","a time"],"max_tokens":5,"echo":true,"stop":"x","temperature":0,"stream":false,"logprobs":null,"best_of":1,"n":1,"suffix":null}"#,
    r#"{"prompt":[[1,2,3],[4,5]],"max_completion_tokens":1}"#,
    r#"{"messages":[{"role":"user","content":"Extract the name and city as JSON: Anna lives in Rome."}],"response_format":{"type":"json_schema","json_schema":{"name":"person","strict":true,"schema":{"type":"object","properties":{"name":{"type":"string"},"city":{"type":"string"}},"required":["name","city"],"additionalProperties":false}}},"tool_choice":"none","parallel_tool_calls":false,"reasoning_effort":"low","logprobs":true,"top_logprobs":2}"#,
];

/// Outputs of models, by the formats that are parsed.
pub const OUTPUTS: &[&str] = &[
    "<think>\nHm.\n</think>\n\nThe answer is 4.",
    "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\", \"n\": [1, 2.5e3, {\"a\": null}]}}\n</tool_call>\n<tool_call>{\"arguments\":{},\"name\":\"f\"}</tool_call> done",
    "{\"name\": \"weather\", \"parameters\": {\"city\": \"Z\u{fc}rich \\u00e9 \\\" \\n\"}}",
];
/// Pieces of markup and of JSON.
pub const OUTPUT_WORDS: &[&str] = &[
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<",
    "</",
    "tool_call>",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "\\u00e9",
    "\\ud83d",
    "\\ude00",
    "\\u",
    "\"name\"",
    "\"arguments\"",
    "\"parameters\"",
    "\"weather\"",
    "{\"name\": \"f\", \"arguments\": {}}",
    "null",
    "true",
    "-1.5e+9",
    "0",
    " ",
    "\n",
    "\n\n",
    "\t",
    "text",
    "\u{1f600}",
    "\u{e9}",
    "<|python_tag|>",
    "<function=f>",
    "<parameter=x>",
    "</parameter>",
    "</function>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|channel|>",
    "analysis",
    "final",
    "<|message|>",
    "<|call|>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "```tool_code\n",
    "```",
    "[f(a=1, b='x')]",
    "<minimax:tool_call>",
    "<invoke name=\"f\">",
    "</invoke>",
];

/// Chat templates.
pub const TEMPLATES: &[&str] = &[
    "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% for message in messages[::-1] %}<|im_start|>{{ message.role }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% set ns = namespace(found=false, n=0) %}{% macro show(x, depth=2) %}{% if x is mapping %}{% for k, v in x.items() %}{{ k }}: {{ show(v) }}{% endfor %}{% else %}{{ x }}{% endif %}{% endmacro %}{% for m in messages %}{% if m.role == 'user' and not ns.found %}{% set ns.found = true %}{{ show(m) }}{% endif %}{{ m.content.split('\n')[-1].strip().startswith('a') }}{{ loop.index0 % 2 }}{% endfor %}{{ raise_exception('no') if ns.n > 3 }}",
    "{%- for m in messages %}{{ '%s %d' % (m.role, loop.index) }}{{ m.content[1:-1] }}{{ strftime_now('%d %b %Y') }}{{ m | tojson }}{% generation %}x{% endgeneration %}{% endfor %}",
];
/// Pieces of Jinja.
pub const TEMPLATE_WORDS: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{%-",
    "-%}",
    "{#",
    "#}",
    "for",
    " in ",
    "endfor",
    "if ",
    "else",
    "elif ",
    "endif",
    "set ",
    "macro f(x)",
    "endmacro",
    "f(x)",
    "f(f)",
    "messages",
    "message",
    "tools",
    ".content",
    "['content']",
    "[",
    "]",
    "[::-1]",
    "[1:]",
    "[:999999999999]",
    "(",
    ")",
    "|",
    "tojson",
    "trim",
    "length",
    "join(',')",
    "range(1000000000)",
    "loop.index",
    "loop.cycle",
    "namespace()",
    "ns.a",
    "+",
    "-",
    "*",
    "**",
    "~",
    "/",
    "//",
    "%",
    "==",
    "<",
    " is ",
    "defined",
    "not ",
    "'a'",
    "\"",
    "'",
    "'a' * 99999999",
    "1",
    "0",
    "-1",
    "99999999999999999999",
    "1.5",
    "true",
    "none",
    "{",
    "}",
    ":",
    ",",
    "\n",
    " ",
    "raise_exception('x')",
    "strftime_now('%Y')",
    "strftime_now('%')",
    ".split(',')",
    ".replace('a','b')",
    ".items()",
    ".upper()",
    "{% raw %}",
    "{% endraw %}",
    "{% generation %}",
    "{% endgeneration %}",
    "recursive",
    "dict(a=1)",
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "\u{e9}",
];

/// An error that a client reads names its field and shows nothing of the server's insides.
fn check(error: &ApiError) {
    assert_eq!(error.status().as_u16() / 100, 4, "{error}");
    let message = error.to_string();
    assert!(!message.is_empty());
    for inside in [
        ".rs:",
        "panicked",
        "RUST_BACKTRACE",
        env!("CARGO_MANIFEST_DIR"),
    ] {
        assert!(!message.contains(inside), "{message}");
    }
    let body = error.body();
    for member in ["message", "type", "param", "code"] {
        assert!(body["error"].get(member).is_some(), "{body}");
    }
}

fn demo_format() -> PromptFormat {
    let demo = trunkline_demo();
    PromptFormat::new(PromptAssets {
        tokenizer: demo.text.tokenizer,
        chat_template: demo.text.chat_template,
        bos_token: demo.text.bos_token,
        eos_token: demo.text.eos_token,
        add_bos: None,
    })
    .expect("the demo model's template")
}

fn trunkline_demo() -> LoadedModel {
    let source = ModelSource::parse(EMBEDDED_NAME).expect("the demo's name");
    let offline = HubOptions::offline(PathBuf::new());
    load(&resolve(&source, &offline, &hub::Silent).expect("the demo")).expect("the demo")
}

thread_local! {
    static DEMO: PromptFormat = demo_format();
}

/// A request's body: it is refused with a clear error, or it can be rendered and encoded.
pub fn request(data: &[u8]) {
    let body = match parse_json(data) {
        Ok(body) => body,
        Err(error) => return check(&error),
    };
    if let Err(error) = CompletionRequest::parse(&body) {
        check(&error);
    }
    let chat = match ChatRequest::parse(&body) {
        Ok(chat) => chat,
        Err(error) => return check(&error),
    };
    let rendered = DEMO.with(|format| {
        let text = format.render(&ChatInput {
            messages: &chat.messages,
            tools: &chat.tools,
            template_kwargs: &chat.template_arguments,
            continue_final_message: false,
        })?;
        format.encode(&text)
    });
    if let Err(error) = rendered {
        check(&error.into());
    }
}

/// A model's output: parsed the same however it is cut, and without markup nothing is lost.
pub fn output(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    DEMO.with(|format| {
        let declared = [json!({"type": "function", "function": {
            "name": "f",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}, "a": {"type": "string"}}},
        }})];
        for options in [
            format.parser_options("<|im_start|>assistant\n", &declared),
            format.parser_options("<|im_start|>assistant\n<think>\n", &declared),
            format.parser_options("<|im_start|>assistant\n", &[]),
        ] {
            let parse = |pieces: &mut dyn Iterator<Item = &str>| {
                let mut parser = format.output_parser(&options);
                let mut deltas: Vec<OutputDelta> = Vec::new();
                for piece in pieces {
                    deltas.extend(parser.push(piece));
                }
                deltas.extend(parser.finish());
                joined(deltas)
            };
            let whole = parse(&mut std::iter::once(&*text));
            let by_character = parse(
                &mut text
                    .char_indices()
                    .map(|(at, character)| &text[at..at + character.len_utf8()]),
            );
            assert_eq!(whole, by_character, "{text:?} {options:?}");
            if !text.contains(['<', '{']) && !options.reasoning_open && !text.trim().is_empty() {
                assert_eq!(whole, [OutputDelta::Content(text.to_string())]);
            }
        }
    });
}

/// Neighbouring pieces of the same kind in one.
fn joined(deltas: Vec<OutputDelta>) -> Vec<OutputDelta> {
    let mut all: Vec<OutputDelta> = Vec::new();
    for delta in deltas {
        match (all.last_mut(), &delta) {
            (Some(OutputDelta::Content(text)), OutputDelta::Content(more))
            | (Some(OutputDelta::Reasoning(text)), OutputDelta::Reasoning(more)) => {
                text.push_str(more)
            }
            (
                Some(OutputDelta::ToolCallArguments { index, text }),
                OutputDelta::ToolCallArguments {
                    index: same,
                    text: more,
                },
            ) if index == same => text.push_str(more),
            _ => all.push(delta),
        }
    }
    all
}

/// A chat template from a model's files: refused, or rendered, or failing with a message, within its limits.
pub fn template(data: &[u8]) {
    let Ok(template) = ChatTemplate::new(&String::from_utf8_lossy(data)) else {
        return;
    };
    let context: Map<String, Value> = match json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "abc\nd"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "add_generation_prompt": true,
        "bos_token": "<s>",
    }) {
        Value::Object(context) => context,
        _ => return,
    };
    if let Err(error) = template.render_json(&context) {
        check(&error.into());
    }
}

/// Stop strings (separated by zero bytes, the text last): found as a search in the whole text finds them.
pub fn stop_strings(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(rest);
    let mut parts: Vec<&str> = text.splitn(usize::from(count % 4) + 2, '\0').collect();
    let Some(text) = parts.pop() else { return };
    parts.retain(|part| !part.is_empty());
    let mut matcher = StopMatcher::new(&parts);
    let (mut output, mut stopped) = (String::new(), false);
    for (at, character) in text.char_indices() {
        let outcome = matcher.push(&text[at..at + character.len_utf8()]);
        output.push_str(&outcome.text);
        stopped |= outcome.stopped;
    }
    if !stopped {
        output.push_str(&matcher.finish());
    }
    // The first to be complete, of those the longest.
    let ends = parts
        .iter()
        .filter_map(|part| text.find(part).map(|start| (start + part.len(), start)));
    match ends.min() {
        Some((_, start)) => assert!(
            stopped && output == text[..start],
            "{parts:?} {text:?} {output:?}"
        ),
        None => assert!(!stopped && output == text, "{parts:?} {text:?} {output:?}"),
    }
}

/// Loads what lies in `location` and reads from it.
fn open(location: FileLocation) -> Result<(), LoadError> {
    let model = load(&ModelFiles {
        id: "fuzz".to_owned(),
        location,
    })?;
    for name in [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.norm.weight",
    ] {
        // A tensor may be missing or damaged; it must only not panic.
        let _ = model.weights.get(name);
    }
    let _ = model
        .text
        .tokenizer
        .encode_fast("Hello, w\u{f6}rld 123 <|im_end|>", true);
    Ok(())
}

/// A folder to write inputs to, kept for the thread's lifetime.
fn scratch() -> PathBuf {
    thread_local! {
        static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
    }
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| tempfile::tempdir().expect("a temporary folder"));
        folder.path().to_path_buf()
    })
}

/// A GGUF file.
pub fn gguf(data: &[u8]) {
    let path = scratch().join("fuzz.gguf");
    std::fs::write(&path, data).expect("a writable folder");
    if let Err(error) = open(FileLocation::Gguf(path)) {
        assert!(!error.to_string().is_empty());
    }
}

/// A checkpoint's folder in which one file is the input.
fn folder_with(checkpoint: &str, file: &str, data: &[u8]) {
    let folder = scratch().join(checkpoint);
    if !folder.is_dir() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(FIXTURES)
            .join(checkpoint);
        std::fs::create_dir_all(&folder).expect("a writable folder");
        for name in [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
        ] {
            std::fs::copy(from.join(name), folder.join(name)).expect("a fixture");
        }
    }
    std::fs::write(folder.join(file), data).expect("a writable folder");
    if let Err(error) = open(FileLocation::Directory(folder)) {
        assert!(!error.to_string().is_empty());
    }
}

/// Below the manifest of the crate that runs the targets: this one's, or the one in `fuzz/`.
const FIXTURES: &str = if cfg!(fuzzing) {
    "../tests/fixtures/reference"
} else {
    "tests/fixtures/reference"
};

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    folder_with("qwen2", "model.safetensors", data);
}

/// A `config.json`.
pub fn model_configuration(data: &[u8]) {
    folder_with("qwen3", "config.json", data);
}

/// A `tokenizer.json`.
pub fn tokenizer(data: &[u8]) {
    folder_with("llama3", "tokenizer.json", data);
}
