//! What is fuzzed: one function for each parser of outside data. They panic if a property does not hold.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

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
    ChatInput, ChatTemplate, FormatChoice, OutputDelta, PromptAssets, PromptFormat, StopMatcher,
};

/// Bodies that are understood.
pub const REQUESTS: &[&str] = &[
    r#"{"model":"demo","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"What's the weather in Berlin?"}]},{"role":"assistant","content":null,"reasoning_content":"Hm.","tool_calls":[{"id":"call_1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Berlin\"}"}}]},{"role":"tool","tool_call_id":"call_1","content":"sunny"}],"tools":[{"type":"function","function":{"name":"weather","description":"w","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}],"tool_choice":"auto","stream":true,"stream_options":{"include_usage":true},"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"seed":7,"stop":["END","\n\n"],"max_tokens":9,"logit_bias":{"50":-100},"frequency_penalty":0.1,"presence_penalty":-0.1,"repetition_penalty":1.1,"chat_template_kwargs":{"enable_thinking":false},"user":"u","metadata":{"a":"b"},"n":1}"#,
    r#"{"prompt":["Once upon","a time"],"max_tokens":5,"echo":true,"stop":"x","temperature":0,"stream":false,"logprobs":null,"best_of":1,"n":1,"suffix":null}"#,
    r#"{"prompt":[[1,2,3],[4,5]],"max_completion_tokens":1}"#,
    r#"{"messages":[{"role":"user","content":"Extract the name and city as JSON: Anna lives in Rome."}],"response_format":{"type":"json_schema","json_schema":{"name":"person","strict":true,"schema":{"type":"object","properties":{"name":{"type":"string"},"city":{"type":"string"}},"required":["name","city"],"additionalProperties":false}}},"tool_choice":"none","parallel_tool_calls":false,"reasoning_effort":"low","logprobs":true,"top_logprobs":2}"#,
];

/// Outputs of models: reasoning, and calls in each of the formats. Two letters before the text choose formats.
pub const OUTPUTS: &[&str] = &[
    "<think>\nHm.\n</think>\n\nThe answer is 4.",
    "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\", \"n\": [1, 2.5e3, {\"a\": null}]}}\n</tool_call>",
    "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": {\"city\": \"Berlin\"}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"now\", \"parameters\": {}}\n]<|END_ACTION|>",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Berlin\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Berlin\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "<｜DSML｜tool_calls><｜DSML｜invoke name=\"edit\"><｜DSML｜parameter name=\"x\" string=\"false\">{\"a\": [1, {\"b\": \"</x>\"}]}</｜DSML｜parameter><｜DSML｜parameter name=\"y\" string=\"true\">3 \"q\" \\\n</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜tool_calls>",
    r#"<function=edit>{"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}</function>"#,
    "```tool_code\nedit(object={'a': [1, {\"b\": ')```'}]}, text='say \"hi\" \\\\')\n```",
    r#"<|tool_call>call:edit{flag:true,list:[<|"|>a "}]<|"|>,{b:1.5}],object:{c:{},d:null},text:<|"|>\ <tool_call|><|"|>}<tool_call|>"#,
    r#"<|function_call|>{"name": "weather", "arguments": {"city": "Berlin"}}<|function_call|>{"name": "now", "arguments": {}}"#,
    "<tool_call>edit\n<arg_key>text</arg_key>\n<arg_value>\na \"b\" \\ 3\n</arg_value>\n<arg_key>object</arg_key>\n<arg_value>{\"a\": [1, {\"b\": \"</x>\"}]}</arg_value>\n<arg_key>flag</arg_key>\n<arg_value>true</arg_value>\n</tool_call>",
    r#"<|tool_call|>[{"name": "edit", "arguments": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}}]"#,
    r#"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Berlin"}<|call|><|start|>assistant<|channel|>commentary to=functions.now<|message|>{}<|call|>"#,
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Berlin\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"city\": \"Berlin\"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    "<|open|>tools<|sep|><|open|>call tool=\"weather\" index=\"1\"<|sep|><|open|>argument key=\"city\" type=\"string\"<|sep|>Berlin<|close|>argument<|sep|><|open|>argument key=\"days\" type=\"number\"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
    r#"<|tool_call_start|>[edit(object={'a': [1, {"b": ')]'}]}, text='say "hi" \\')]<|tool_call_end|>"#,
    r#"{"name": "edit", "parameters": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\ \u00e9"}}"#,
    r#"<function name="edit"><param name="object">{"a": [1, {"b": "c"}]}</param><param name="list">['a', {'b': 1.5}]</param><param name="flag">True</param></function>"#,
    "<minimax:tool_call><invoke name=\"edit\"><parameter name=\"object\">{\"a\": [1, {\"b\": \"</x>\"}]}</parameter><parameter name=\"text\">\n\"q\" \\ 3</parameter></invoke></minimax:tool_call>",
    r#"[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Berlin"}}, {"name": "now", "arguments": {}}]"#,
    r#"<TOOLCALL>[{"name": "edit", "arguments": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}}]</TOOLCALL>"#,
    r#"functools[{"name": "edit", "arguments": {"object": {"a": [1, {"b": "}]"}]}, "text": "say \"hi\" \\"}}]"#,
    r#"[edit(object={'a': [1, {"b": ')]'}], 'c': None}, text='say "hi" \\ it\'s', list=[])]"#,
    "<function=edit><parameter=count>\n3\n</parameter><parameter=ratio>-1.5e3</parameter><parameter=flag>True</parameter><parameter=list>['a', {'b': None}]</parameter><parameter=object>\n{\"a\": [1,\n 2]}\n</parameter><parameter=kind>a</parameter><parameter=link>1</parameter></function>",
    "<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>weather<|tool_call:args|>{\"city\": \"Berlin\"}<|tool_call:end|><|tool_call:begin|>b<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|><|calls|>",
    r#"<tool_calls>[{"name": "weather", "arguments": {"city": "Berlin"}, "id": "a"}, {"name": "now", "arguments": {}, "id": "b"}]</tool_calls>"#,
];
/// Pieces of markup, of JSON and of Python.
pub const OUTPUT_WORDS: &[&str] = &[
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
    "'",
    "(",
    ")",
    "=",
    "\"name\"",
    "\"arguments\"",
    "\"parameters\"",
    "weather",
    "f",
    "city",
    "x",
    "a",
    "null",
    "true",
    "None",
    "True",
    "-1.5e+9",
    "0",
    " ",
    "\n",
    "\n\n",
    "\t",
    "text",
    "\u{1f600}",
    "\u{e9}",
    "<",
    "</",
    ">",
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<|channel>thought\n",
    "<channel|>",
    "<|START_THINKING|>",
    "<|END_THINKING|>",
    "Here is my thought process:",
    "Here is my response:",
    "analysis",
    "final",
    "commentary",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|call|>",
    "<|constrain|>",
    "to=functions.f",
    ":#<|tool_call_argument_begin|>",
    "<![CDATA[",
    "</TOOLCALL>",
    "</arg_key>",
    "</arg_value>",
    "</function>",
    "</invoke>",
    "</minimax:tool_call>",
    "</param>",
    "</parameter>",
    "</response>",
    "</tool_call>",
    "</tool_calls>",
    "</｜DSML｜function_calls>",
    "</｜DSML｜invoke>",
    "</｜DSML｜parameter>",
    "</｜DSML｜tool_calls>",
    "<SPECIAL_12>",
    "<TOOLCALL>",
    "<arg_key>",
    "<arg_value>",
    "<end_of_turn>",
    "<function name=\"",
    "<function=",
    "<invoke name=\"",
    "<minimax:tool_call>",
    "<param name=\"",
    "<parameter name=\"",
    "<parameter=",
    "<response>",
    "<tool_call>",
    "<tool_calls>",
    "<tool_call|>",
    "<turn|>",
    "<|/tool_call|>",
    "<|/tool|>",
    "<|END_ACTION|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|END_RESPONSE|>",
    "<|END_TEXT|>",
    "<|START_ACTION|>",
    "<|START_RESPONSE|>",
    "<|START_TEXT|>",
    "<|begin|>assistant",
    "<|calls|>",
    "<|call|>",
    "<|channel|>analysis",
    "<|close|>argument<|sep|>",
    "<|close|>call<|sep|>",
    "<|close|>message<|sep|>",
    "<|close|>response<|sep|>",
    "<|close|>tools<|sep|>",
    "<|content|>",
    "<|end_of_msg|>",
    "<|end|>",
    "<|eom_id|>",
    "<|eom|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|function_call|>",
    "<|im_end|>",
    "<|message_sep|>",
    "<|message_sep|>\n\nfunction call<|role_sep|>\n",
    "<|observation|>",
    "<|open|>argument key=\"",
    "<|open|>call tool=\"",
    "<|open|>response<|sep|>",
    "<|open|>tools<|sep|>",
    "<|python_end|>",
    "<|python_start|>",
    "<|python_tag|>",
    "<|return|>",
    "<|sep|>",
    "<|tool_call:args|>",
    "<|tool_call:begin|>",
    "<|tool_call:end|>",
    "<|tool_call:name|>",
    "<|tool_call>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_begin|>functions.",
    "<|tool_call_end|>",
    "<|tool_call_start|>",
    "<|tool_call_start|>[",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_calls|>",
    "<|tool_call|>",
    "<|tool_list_start|>",
    "<|tool_response>",
    "<|user|>",
    "<｜DSML｜function_calls>",
    "<｜DSML｜invoke name=\"",
    "<｜DSML｜parameter name=\"",
    "<｜DSML｜tool_calls>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "Action: ```json",
    "Action:```json",
    "[",
    "[ARGS]",
    "[CALL_ID]",
    "[TOOL_CALLS]",
    "[e~[",
    "[func_name1(params_name1=params_value1",
    "\" type=\"array\"<|sep|>",
    "\" type=\"boolean\"<|sep|>",
    "\" type=\"null\"<|sep|>",
    "\" type=\"number\"<|sep|>",
    "\" type=\"object\"<|sep|>",
    "\" type=\"string\"<|sep|>",
    "\"<|sep|>",
    "\n```",
    "\n```<｜tool▁call▁end｜>",
    "\n```json\n",
    "]<|tool_call_end|>",
    "]]></param>",
    "```",
    "```json",
    "```tool_code",
    "```tool_code\n",
    "function call<|role_sep|>\n",
    "function<｜tool▁sep｜>",
    "{",
    "|>text<|",
];
/// The formats of calls, by their names in the configuration.
pub const TOOL_FORMATS: &[&str] = &[
    "hermes",
    "qwen3_coder",
    "glm4",
    "llama3",
    "pythonic",
    "mistral",
    "deepseek_v3",
    "deepseek_v31",
    "dsml",
    "kimi_k2",
    "kimi_k3",
    "minimax_m2",
    "gemma3",
    "gemma4",
    "granite",
    "phi4",
    "cohere",
    "nemotron",
    "lfm2",
    "tool_calls",
    "functionary",
    "gigachat",
    "minicpm",
    "solar",
    "harmony",
];
/// The forms of reasoning, by their names in the configuration.
pub const REASONING_FORMATS: &[&str] = &[
    "auto", "none", "mistral", "cohere", "gemma4", "kimi_k3", "solar", "seed", "granite", "apriel",
    "think",
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
    format_of("auto", "auto")
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

/// The demo model's text in these formats.
fn format_of(tools: &str, reasoning: &str) -> PromptFormat {
    let text = trunkline_demo().text;
    let assets = PromptAssets {
        tokenizer: text.tokenizer,
        chat_template: text.chat_template,
        bos_token: text.bos_token,
        eos_token: text.eos_token,
        add_bos: None,
    };
    let choice = FormatChoice {
        tools: tools.parse().expect("a tool format"),
        reasoning: reasoning.parse().expect("a reasoning format"),
    };
    PromptFormat::with_formats(assets, choice).expect("the demo model's template")
}

/// A model's output in any format: parsed the same however it is cut, and without markup nothing is lost.
///
/// The first two bytes choose the formats of calls and of reasoning.
pub fn output(data: &[u8]) {
    thread_local! {
        static FORMATS: RefCell<HashMap<(usize, usize), Rc<PromptFormat>>> = RefCell::default();
    }
    let (tools, reasoning) = match data {
        [first, second, ..] => (
            usize::from(*first) % TOOL_FORMATS.len(),
            usize::from(*second) % REASONING_FORMATS.len(),
        ),
        _ => return,
    };
    let format = FORMATS.with_borrow_mut(|formats| {
        let made = || Rc::new(format_of(TOOL_FORMATS[tools], REASONING_FORMATS[reasoning]));
        Rc::clone(formats.entry((tools, reasoning)).or_insert_with(made))
    });
    let text = String::from_utf8_lossy(data);
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
        let names = (TOOL_FORMATS[tools], REASONING_FORMATS[reasoning]);
        assert_eq!(whole, by_character, "{names:?} {text:?} {options:?}");
        let plain = text
            .chars()
            .all(|character| character.is_alphanumeric() || character == ' ');
        if plain
            && names == ("hermes", "think")
            && !options.reasoning_open
            && !text.trim().is_empty()
        {
            assert_eq!(whole, [OutputDelta::Content(text.to_string())]);
        }
    }
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
            .join("tests/fixtures/reference")
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
