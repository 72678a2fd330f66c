//! The grammars of calls let through what the output parser reads as the calls that were meant, and no more.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::grammar::{
    Constraint, Grammar, GrammarCompiler, GrammarPart, GrammarSource, GrammarSpec,
};
use crate::ids::TokenId;
use crate::prompt::OutputDelta;
use crate::prompt::output::{OutputFormat, OutputParser};
use crate::prompt::tools::constraint::{self, CallableTool, Otherwise, Parts};
use crate::prompt::tools::{FORMATS, Format};
use crate::prompt::{
    AnswerRules, ContentRule, FormatChoice, PromptAssets, PromptEnd, PromptFormat,
};

/// `<|im_end|>`.
pub(super) const END: TokenId = TokenId(2039);

pub(super) fn demo() -> PromptFormat {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let template = std::fs::read_to_string(folder.join("chat_template.jinja")).unwrap();
    PromptFormat::new(PromptAssets {
        tokenizer: tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap(),
        chat_template: Some(template),
        bos_token: None,
        eos_token: None,
        add_bos: None,
    })
    .unwrap()
}

/// The demo model's text side with another form of calls.
pub(super) fn demo_with(tools: &str) -> PromptFormat {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let assets = PromptAssets {
        tokenizer: tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap(),
        // A template that does not know tools would have calls as Hermes writes them.
        chat_template: None,
        bos_token: None,
        eos_token: None,
        add_bos: None,
    };
    let choice = FormatChoice {
        tools: tools.parse().unwrap(),
        ..FormatChoice::default()
    };
    PromptFormat::with_formats(assets, choice).unwrap()
}

fn part(schema: Value) -> GrammarPart {
    GrammarPart {
        field: "field".to_owned(),
        source: GrammarSource::JsonSchema {
            schema,
            strict: true,
        },
    }
}

pub(super) fn compile(format: &PromptFormat, spec: &GrammarSpec) -> Arc<Grammar> {
    GrammarCompiler::new(&[END])
        .compile(spec, || format.vocabulary(2048))
        .unwrap_or_else(|error| panic!("{error} in {spec:?}"))
}

/// The whole text is let through, to its end.
pub(super) fn accepts(format: &PromptFormat, grammar: &Arc<Grammar>, text: &str) -> bool {
    let mut constraint = Constraint::new(Arc::clone(grammar));
    for token in format.encode(text).unwrap() {
        if !constraint.allowed().unwrap().allows(token) {
            return false;
        }
        constraint.advance(token);
    }
    constraint.allowed().unwrap().allows(END)
}

pub(super) fn named(name: &str) -> &'static Format {
    let found = FORMATS.iter().find(|format| format.name == name);
    found.expect("a known format")
}

fn city() -> GrammarPart {
    part(
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
    )
}

fn zone() -> GrammarPart {
    part(json!({"type": "object", "properties": {"zone": {"enum": ["UTC"]}}, "required": ["zone"]}))
}

fn grammar(
    format: &PromptFormat,
    calls: &str,
    several: bool,
    otherwise: &Otherwise,
) -> Arc<Grammar> {
    let tools =
        [("get_weather", city()), ("odd \"name\"", zone())].map(|(name, arguments)| CallableTool {
            name: name.to_owned(),
            arguments,
        });
    let mut parts = Parts::default();
    let rules = constraint::answer(named(calls), &tools, several, otherwise, &mut parts);
    let rules = rules.expect("rules");
    compile(format, &parts.spec(format!("start: answer\n{rules}")))
}

const WEATHER: &str =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Berlin\"}}\n</tool_call>";
const ZONE: &str = "<tool_call>\n{\"name\": \"odd \\\"name\\\"\", \"arguments\": {\"zone\":\"UTC\"}}\n</tool_call>";

#[test]
fn tagged_calls() {
    let format = demo();
    let one = grammar(&format, "hermes", false, &Otherwise::Nothing);
    let several = grammar(&format, "hermes", true, &Otherwise::Nothing);
    let both = format!("{WEATHER}\n{ZONE}");
    assert!(accepts(&format, &one, WEATHER) && accepts(&format, &one, ZONE));
    assert!(accepts(&format, &several, WEATHER) && accepts(&format, &several, &both));
    assert!(!accepts(&format, &one, &both));
    let many = vec![WEATHER; 16].join("\n");
    assert!(accepts(&format, &several, &many));
    assert!(!accepts(&format, &several, &format!("{many}\n{WEATHER}")));
    for wrong in [
        "",
        "Hello",
        "<tool_call>",
        &WEATHER.replace("get_weather", "get_time"),
        &WEATHER.replace("city", "town"),
        &WEATHER.replace("\"Berlin\"", "7"),
        &format!("Well. {WEATHER}"),
        &format!("{WEATHER}\nDone."),
        WEATHER.trim_end_matches("</tool_call>"),
    ] {
        assert!(!accepts(&format, &one, wrong), "{wrong}");
    }
}

#[test]
fn text_beside_tagged_calls() {
    let format = demo();
    let free = grammar(&format, "hermes", true, &Otherwise::Text);
    for text in [
        "",
        "Hello there.\nHow <b>are</b> you? <tool",
        WEATHER,
        &format!("Let me see.\n{WEATHER}"),
        &format!("Let me see.\n{WEATHER}\n{ZONE}"),
    ] {
        assert!(accepts(&format, &free, text), "{text}");
    }
    let other = WEATHER.replace("get_weather", "get_time");
    for text in [
        other.as_str(),
        &format!("Let me see.\n{other}"),
        "Hello <tool_call> there",
    ] {
        assert!(!accepts(&format, &free, text), "{text}");
    }
    let or_else = Otherwise::Grammar(part(json!({"type": "boolean"})));
    let either = grammar(&format, "hermes", false, &or_else);
    assert!(accepts(&format, &either, "true") && accepts(&format, &either, WEATHER));
    assert!(!accepts(&format, &either, "Hello"));
}

#[test]
fn bare_calls() {
    let format = demo();
    let call = r#"{"name": "get_weather", "parameters": {"city": "Berlin"}}"#;
    let one = grammar(&format, "llama3", true, &Otherwise::Nothing);
    let free = grammar(&format, "llama3", true, &Otherwise::Text);
    assert!(accepts(&format, &one, call) && accepts(&format, &free, call));
    assert!(accepts(&format, &free, "Hello {there}") && !accepts(&format, &one, "Hello"));
    for wrong in [
        call.replace("get_weather", "get_time"),
        call.replace("Berlin\"", ""),
        format!("{call} {call}"),
    ] {
        assert!(!accepts(&format, &one, &wrong), "{wrong}");
        assert!(!accepts(&format, &free, &wrong), "{wrong}");
    }
}

#[test]
fn reasoning_comes_before_the_rules() {
    let format = demo();
    let rules = AnswerRules {
        content: ContentRule::Grammar(part(json!({"type": "boolean"}))),
        ..AnswerRules::default()
    };
    let grammar = |end| compile(&format, &format.answer_grammar(&rules, end).unwrap());
    let plain = grammar(PromptEnd::Answer);
    assert!(accepts(&format, &plain, "true") && !accepts(&format, &plain, "<think>a</think>true"));
    let inside = grammar(PromptEnd::InReasoning);
    for text in [
        "</think>true",
        "It is <so>.\n</think>\n\nfalse",
        "a</think>\ntrue",
    ] {
        assert!(accepts(&format, &inside, text), "{text}");
    }
    for text in [
        "true",
        "a</think>\n\n\n\ntrue",
        "a</think>b</think>true",
        "a</think>",
    ] {
        assert!(!accepts(&format, &inside, text), "{text}");
    }
    let before = grammar(PromptEnd::BeforeReasoning);
    assert!(
        accepts(&format, &before, "true")
            && accepts(&format, &before, "<think>\na\n</think>\n\ntrue")
    );
    assert!(!accepts(&format, &before, "<think>true"));
}

/// Qwen3's template leaves reasoning to the model, unless it is switched off; so does one that says nothing
/// of it but prints it; the demo's opens it or not.
#[test]
fn where_reasoning_is_expected() {
    let closed = "{%- if enable_thinking is defined and not enable_thinking -%}<think>\n\n</think>\n\n{%- endif -%}";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let with = |template: &str| {
        PromptFormat::new(PromptAssets {
            tokenizer: tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap(),
            chat_template: Some(format!("{{{{ messages[0].content }}}}{template}")),
            bos_token: None,
            eos_token: None,
            add_bos: None,
        })
        .unwrap()
    };
    let qwen = with(closed);
    // Thoughts of earlier turns are printed, and nothing switches them off.
    let shown =
        "{%- if messages[0].reasoning -%}<think>{{ messages[0].reasoning }}</think>{%- endif -%}";
    let by_itself = with(shown);
    let switched = with(&format!(
        "{shown}{{%- if thinking -%}}Think.{{%- endif -%}}"
    ));
    let end = |format: &PromptFormat, prompt: &str| {
        format.prompt_end(&format.parser_options(prompt, &[]), prompt)
    };
    assert_eq!(end(&qwen, "Hello"), PromptEnd::BeforeReasoning);
    assert_eq!(
        end(&qwen, "Hello<think>\n\n</think>\n\n"),
        PromptEnd::Answer
    );
    assert_eq!(end(&qwen, "Hello<think>\n"), PromptEnd::InReasoning);
    assert_eq!(end(&by_itself, "Hello"), PromptEnd::BeforeReasoning);
    assert_eq!(end(&by_itself, "Hello<think></think>"), PromptEnd::Answer);
    assert_eq!(end(&switched, "Hello"), PromptEnd::Answer);
    assert_eq!(end(&with(""), "Hello"), PromptEnd::Answer);
    assert_eq!(end(&demo(), "Hello"), PromptEnd::Answer);
    assert_eq!(end(&demo(), "Hello<think>\n"), PromptEnd::InReasoning);
}

/// What the rules let through is what the format's parser reads.
#[test]
fn calls_of_other_formats() {
    let format = demo();
    for (name, call) in [
        (
            "granite",
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Berlin\"}}]",
        ),
        (
            "phi4",
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Berlin\"}}]<|/tool_call|>",
        ),
        (
            "nemotron",
            "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Berlin\"}}]</TOOLCALL>",
        ),
        (
            "functionary",
            "<function=get_weather>{\"city\": \"Berlin\"}</function>",
        ),
        (
            "deepseek_v3",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Berlin\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            "deepseek_v31",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Berlin\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Berlin\"}<|tool_call_end|><|tool_calls_section_end|>",
        ),
    ] {
        let forced = grammar(&format, name, true, &Otherwise::Nothing);
        assert!(accepts(&format, &forced, call), "{name}");
        assert!(!accepts(&format, &forced, "Hello"), "{name}");
        assert!(
            !accepts(&format, &forced, &call.replace("city", "town")),
            "{name}"
        );
        let free = grammar(&format, name, true, &Otherwise::Text);
        assert!(
            accepts(&format, &free, call) && accepts(&format, &free, "Hello <b>"),
            "{name}"
        );
        assert!(
            accepts(&format, &free, &format!("Let me see. {call}")),
            "{name}"
        );
        let output = OutputFormat {
            reasoning: None,
            tools: named(name),
        };
        let mut parser = OutputParser::new(
            &output.options("", &[json!({"name": "get_weather"})]),
            output,
        );
        let mut deltas = parser.push(call);
        deltas.extend(parser.finish());
        assert_eq!(
            deltas,
            [
                OutputDelta::ToolCallStart {
                    index: 0,
                    name: "get_weather".to_owned()
                },
                OutputDelta::ToolCallArguments {
                    index: 0,
                    text: "{\"city\": \"Berlin\"}".to_owned()
                },
            ],
            "{name}"
        );
    }
}
