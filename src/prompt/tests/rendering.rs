//! Conversations through whole formats. (Templates against Jinja2: scripts/check_templates.py.)

use serde_json::{Map, Value, json};

use super::detokenizing::{format_of, reference, tokenizer};
use crate::prompt::{
    ChatInput, ChatTemplate, OutputDelta, PromptAssets, PromptError, PromptFormat,
};

/// ChatML with tools, calls printed as they are.
const CHATML: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '<tools>' }}
    {%- for tool in tools %}{{- '\n' + tool|tojson }}{%- endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and tools and loop.first %}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- if not loop.first or message.content %}{{- '\n' }}{%- endif %}
            {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- ARGUMENTS }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"#;

/// No tools, no system role, strict alternation (Gemma 2's ways).
const STRICT: &str = r#"{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
    {{- '<' + message['role'] + '>' + message['content'] | trim + '</>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"#;

fn format(template: &str) -> PromptFormat {
    format_of(
        tokenizer(&["<s>", "a"], &["<s>"], r#"{"type": "Fuse"}"#),
        Some(template),
    )
}

fn chatml(arguments: &str) -> PromptFormat {
    format(&CHATML.replace("ARGUMENTS", arguments))
}

fn render(format: &PromptFormat, messages: Value, tools: Value) -> Result<String, PromptError> {
    render_with(format, messages, tools, json!({}), false)
}

fn render_with(
    format: &PromptFormat,
    messages: Value,
    tools: Value,
    kwargs: Value,
    continued: bool,
) -> Result<String, PromptError> {
    let empty = Vec::new();
    format.render(&ChatInput {
        messages: messages.as_array().unwrap_or(&empty),
        tools: tools.as_array().unwrap_or(&empty),
        template_kwargs: kwargs.as_object().unwrap_or(&Map::new()),
        continue_final_message: continued,
    })
}

fn weather() -> Value {
    json!([{ "type": "function", "function": { "name": "weather", "parameters": { "type": "object", "properties": { "city": { "type": "string" } } } } }])
}

fn call(arguments: Value) -> Value {
    json!({ "id": "call_1", "type": "function", "function": { "name": "weather", "arguments": arguments } })
}

/// Arguments as a model may write them and no serializer would.
const WRITTEN: &str = "{\"city\":\"Z\\u00fcrich\",  \"days\" : 1.50}";

#[test]
fn a_turn_is_rendered_as_the_model_wrote_it() {
    // Whether the template prints strings, makes JSON, or puts strings together: the tokens of a
    // conversation must be a prefix of its next turn.
    for arguments in [
        "call.function.arguments",
        "call.function.arguments | tojson",
        "call.function.arguments if call.function.arguments is string else call.function.arguments | tojson",
        "'' + call.function.arguments + ''",
        "call.function.arguments ~ ''",
    ] {
        let format = chatml(arguments);
        let user = json!({ "role": "user", "content": "Weather?" });
        let prompt = render(&format, json!([user]), weather()).expect("renders");
        let written = format!(
            "Let me see.\n<tool_call>\n{{\"name\": \"weather\", \"arguments\": {WRITTEN}}}\n</tool_call>"
        );
        let turns = json!([
            user,
            { "role": "assistant", "content": "Let me see.", "tool_calls": [call(json!(WRITTEN))] },
            { "role": "tool", "tool_call_id": "call_1", "content": "21" },
        ]);
        let next = render(&format, turns, weather()).expect("renders");
        assert!(
            next.starts_with(&(prompt + &written)),
            "{arguments}: {next}"
        );
    }
}

/// Real templates, where they are: the answer that a model writes in its own form, and that the parser
/// reads, is the beginning of the next turn's prompt.
#[test]
fn turns_of_real_templates_are_prefixes() {
    let tagged =
        format!("<tool_call>\n{{\"name\": \"weather\", \"arguments\": {WRITTEN}}}\n</tool_call>");
    let bare = format!("{{\"name\": \"weather\", \"parameters\": {WRITTEN}}}");
    for (path, written) in [
        ("models/demo/chat_template.jinja", &tagged),
        ("chat_templates/Qwen-Qwen2.5-7B-Instruct.jinja", &tagged),
        ("chat_templates/Qwen-Qwen3-0.6B.jinja", &tagged),
        ("chat_templates/ibm-granite-granite-4.0.jinja", &tagged),
        (
            "chat_templates/meta-llama-Llama-3.1-8B-Instruct.jinja",
            &bare,
        ),
        (
            "chat_templates/meta-llama-Llama-3.2-3B-Instruct.jinja",
            &bare,
        ),
        // Writes calls in a form of its own, so tools are declared in the generic one.
        ("chat_templates/google-gemma-2-2b-it.jinja", &tagged),
    ] {
        let Some(path) = reference(path) else {
            continue;
        };
        let format = format(&std::fs::read_to_string(&path).expect("readable"));
        let user = json!({ "role": "user", "content": "Weather?" });
        let prompt = render(&format, json!([user]), weather()).expect("renders");
        let mut parser = format
            .output_parser(&format.parser_options(&prompt, weather().as_array().expect("a list")));
        let (mut name, mut arguments) = (String::new(), String::new());
        for delta in parser.push(written).into_iter().chain(parser.finish()) {
            match delta {
                OutputDelta::ToolCallStart { name: given, .. } => name = given,
                OutputDelta::ToolCallArguments { text, .. } => arguments += &text,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            (name.as_str(), arguments.as_str()),
            ("weather", WRITTEN),
            "{path:?}"
        );
        let turns = json!([
            user,
            { "role": "assistant", "content": null, "tool_calls": [call(json!(arguments))] },
            { "role": "tool", "tool_call_id": "call_1", "content": "21" },
        ]);
        let next = render(&format, turns, weather()).expect("renders");
        assert!(next.starts_with(&(prompt + written)), "{path:?}: {next}");
    }
}

#[test]
fn arguments_that_are_no_json_text_still_render() {
    let format = chatml("call.function.arguments | tojson");
    let with = |arguments: Value| {
        let turns = json!([
            { "role": "user", "content": "x" },
            { "role": "assistant", "content": null, "tool_calls": [call(arguments)] },
        ]);
        render(&format, turns, weather()).expect("renders")
    };
    assert!(
        with(json!({ "b": 1, "a": [true] })).contains(r#""arguments": {"b": 1, "a": [true]}}"#)
    );
    assert!(with(json!("")).contains(r#""arguments": {}}"#));
    assert!(with(json!("{\"cut off")).contains(r#""arguments": "{\"cut off"}"#));
}

#[test]
fn contents_in_all_their_forms() {
    let format = chatml("call.function.arguments");
    let parts = json!([
        { "role": "developer", "content": [{ "type": "text", "text": "Be" }, { "type": "text", "text": "brief." }] },
        { "role": "user", "content": [{ "type": "text", "text": "Hello!" }] },
        { "role": "assistant", "content": null },
    ]);
    assert_eq!(
        render(&format, parts, json!([])).expect("renders"),
        "<|im_start|>system\nBe\nbrief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    );
    // A template that takes only parts gets parts.
    let only_parts = self::format(
        "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{{ part.text }}{% endfor %};{% endfor %}",
    );
    let text = render(
        &only_parts,
        json!([{ "role": "system", "content": "S" }, { "role": "user", "content": "U" }]),
        json!([]),
    );
    assert_eq!(text.expect("renders"), "system:S;user:U;");
}

#[test]
fn system_messages_where_there_is_no_such_role() {
    let format = format(STRICT);
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "One" },
        { "role": "assistant", "content": "Two" },
        { "role": "user", "content": "Three" },
    ]);
    assert_eq!(
        render(&format, messages, json!([])).expect("renders"),
        "<s><user>Be brief.\n\nOne</><assistant>Two</><user>Three</><assistant>"
    );
}

#[test]
fn tools_where_the_template_knows_none() {
    let format = format(STRICT);
    let user = json!({ "role": "user", "content": "Weather?" });
    let prompt = render(&format, json!([user]), weather()).expect("renders");
    assert!(prompt.contains(r#"{"name":"weather","#), "{prompt}");
    let written = format!(
        "Let me see.\n<tool_call>\n{{\"name\": \"weather\", \"arguments\": {WRITTEN}}}\n</tool_call>"
    );
    let turns = json!([
        user,
        { "role": "assistant", "content": "Let me see.", "tool_calls": [call(json!(WRITTEN))] },
        { "role": "tool", "tool_call_id": "call_1", "content": "21" },
        { "role": "tool", "tool_call_id": "call_2", "content": [{ "type": "text", "text": "25" }] },
        { "role": "user", "content": "And?" },
    ]);
    let next = render(&format, turns, weather()).expect("renders");
    assert!(next.starts_with(&(prompt + &written)), "{next}");
    assert!(
        next.ends_with("</><user><tool_response>\n21\n</tool_response>\n<tool_response>\n25\n</tool_response>\nAnd?</><assistant>"),
        "{next}"
    );
}

/// Llama 3's way: the call is the whole answer.
const BARE: &str = r#"{%- for message in messages %}
    {{- '<' + message.role + '>\n' }}
    {%- if loop.first and tools is not none %}{% for tool in tools %}{{ tool | tojson(indent=4) + '\n' }}{% endfor %}{% endif %}
    {%- if message.tool_calls is defined %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}
    {%- else %}{{ message.content }}{% endif %}
    {{- '</>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"#;

#[test]
fn a_call_that_is_the_whole_answer_is_native() {
    let format = format(BARE);
    let user = json!({ "role": "user", "content": "Weather?" });
    let prompt = render(&format, json!([user]), weather()).expect("renders");
    assert!(prompt.contains("    \"type\": \"function\","), "{prompt}");
    let written = format!("{{\"name\": \"weather\", \"parameters\": {WRITTEN}}}");
    let turns = json!([user, { "role": "assistant", "content": null, "tool_calls": [call(json!(WRITTEN))] }]);
    let next = render(&format, turns, weather()).expect("renders");
    assert!(next.starts_with(&(prompt.clone() + &written)), "{next}");
    let mut parser = format
        .output_parser(&format.parser_options(&prompt, weather().as_array().expect("a list")));
    let deltas = parser.push(&written);
    assert_eq!(
        deltas,
        [
            OutputDelta::ToolCallStart {
                index: 0,
                name: "weather".to_string()
            },
            OutputDelta::ToolCallArguments {
                index: 0,
                text: WRITTEN.to_string()
            },
        ]
    );
}

#[test]
fn a_template_that_needs_a_list_of_tools_gets_an_empty_one() {
    let format = format(
        "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}",
    );
    assert_eq!(
        render(
            &format,
            json!([{ "role": "user", "content": "x" }]),
            json!([])
        )
        .as_deref(),
        Ok("x")
    );
}

#[test]
fn templates_refuse_and_fail_with_a_reason() {
    let format = format(STRICT);
    let user = json!({ "role": "user", "content": "x" });
    let refused = render(&format, json!([user, user]), json!([]));
    assert_eq!(
        refused,
        Err(PromptError::Template("Roles must alternate".to_string()))
    );
    let failed = self::format("{{ messages[0].nothing.more }}");
    assert!(matches!(
        render(&failed, json!([user]), json!([])),
        Err(PromptError::TemplateFailed(_))
    ));
    let in_macro = self::format(
        "{% macro f() %}{{ raise_exception('no: ' ~ 1) }}{% endmacro %}{% for m in messages %}{{ f() }}{% endfor %}",
    );
    assert_eq!(
        render(&in_macro, json!([user]), json!([])),
        Err(PromptError::Template("no: 1".to_string()))
    );
}

#[test]
fn templates_cannot_run_away() {
    for endless in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a * b %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) %}{{ 'a text of some length, many times over' * 99 }}{% endfor %}",
    ] {
        let result = ChatTemplate::with_fuel(endless, 500_000)
            .expect("valid")
            .render_json(&Map::new());
        assert!(
            matches!(
                result,
                Err(PromptError::TemplateLimit(_) | PromptError::TemplateFailed(_))
            ),
            "{endless}: {result:?}"
        );
    }
}

#[test]
fn an_invalid_template_is_found_when_the_model_is_loaded() {
    let assets = PromptAssets {
        tokenizer: tokenizer(&["a"], &[], r#"{"type": "Fuse"}"#),
        chat_template: Some("{% for %}".to_string()),
        bos_token: None,
        eos_token: None,
        add_bos: None,
    };
    assert!(matches!(
        PromptFormat::new(assets),
        Err(PromptError::InvalidTemplate(_))
    ));
    let none = format_of(tokenizer(&["a"], &[], r#"{"type": "Fuse"}"#), None);
    assert!(!none.has_chat_template());
    assert_eq!(
        render(&none, json!([]), json!([])),
        Err(PromptError::NoTemplate)
    );
}

#[test]
fn variables_of_the_request() {
    let format = format(
        "{{ messages[0].content }}|{{ enable_thinking }}|{{ tools }}|{{ strftime_now('%Y') | length }}",
    );
    let user = json!([{ "role": "user", "content": "x" }]);
    let text = render_with(
        &format,
        user.clone(),
        json!([]),
        json!({ "enable_thinking": false }),
        false,
    );
    assert_eq!(text.expect("renders"), "x|False|None|4");
    let reserved = render_with(&format, user, json!([]), json!({ "messages": [] }), false);
    assert_eq!(
        reserved,
        Err(PromptError::ReservedVariable("messages".to_string()))
    );
}

#[test]
fn the_last_message_is_continued() {
    let format = chatml("call.function.arguments");
    let messages = |text: &str| json!([{ "role": "user", "content": "Count." }, { "role": "assistant", "content": text }]);
    let text = render_with(&format, messages("One, "), json!([]), json!({}), true);
    assert_eq!(
        text.expect("renders"),
        "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\nOne, "
    );
    let trimming = self::format(STRICT);
    let text = render_with(&trimming, messages("One, "), json!([]), json!({}), true);
    assert_eq!(text.expect("renders"), "<s><user>Count.</><assistant>One,");
    let none = render_with(&format, json!([]), json!([]), json!({}), true);
    assert!(matches!(none, Err(PromptError::NotContinuable(_))));
}

#[test]
fn python_in_templates() {
    for (template, expected) in [
        (
            "{{ [1, 2, 3][::-1] }} {{ 'abc'[1:] }} {{ [][::-1] }}",
            "[3, 2, 1] bc []",
        ),
        (
            "{{ none }} {{ true }} {{ 1.0 }} {{ 3 // 2 }} {{ 7 / 2 }} {{ 'a' ~ 1 ~ none }}",
            "None True 1.0 1 3.5 a1None",
        ),
        (
            "{{ {'a': none, 'b': 'it\\'s'} }}",
            "{'a': None, 'b': \"it's\"}",
        ),
        (
            "{{ 'a,b,,c'.split(',') }} {{ ' x '.strip() }}|{{ 'aXbX'.rstrip('X') }}",
            "['a', 'b', '', 'c'] x|aXb",
        ),
        (
            "{{ {'b': 1, 'a': [1.5, true, none, 'ü<&>\"']} | tojson }}",
            "{\"b\": 1, \"a\": [1.5, true, null, \"ü<&>\\\"\"]}",
        ),
        (
            "{{ {'b': [], 'a': {'c': 1}} | tojson(indent=2) }}",
            "{\n  \"b\": [],\n  \"a\": {\n    \"c\": 1\n  }\n}",
        ),
        (
            "{{ {'b': 1, 'a': 'ü'} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
            "{\"a\":\"\\u00fc\",\"b\":1}",
        ),
        (
            "{{ '%s is %d' | format('a', 3) }} {{ '{} {}'.format(1, 'b') }}",
            "a is 3 1 b",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% if i == 1 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        (
            "{{ x is defined }} {{ x }}{{ x | default('d') }} {{ {} is mapping }} {{ 'a' is sequence }} {{ none is iterable }} {{ true is number }}",
            "False d True True False True",
        ),
        (
            "{% generation %}{% set y = 1 %}in{% endgeneration %} {{ y is defined }}",
            "in False",
        ),
    ] {
        let format = format(template);
        let text = render(
            &format,
            json!([{ "role": "user", "content": "x" }]),
            json!([]),
        );
        assert_eq!(text.as_deref(), Ok(expected), "{template}");
    }
}
