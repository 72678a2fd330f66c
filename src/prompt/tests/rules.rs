//! The grammars of calls let through what the output parser reads as the calls that were meant, and no more.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::grammar::{
    Constraint, Grammar, GrammarCompiler, GrammarPart, GrammarSource, GrammarSpec,
};
use crate::ids::TokenId;
use crate::prompt::tools::constraint::{self, CallForm, CallableTool, Otherwise};
use crate::prompt::{
    AnswerRules, ContentRule, ParserOptions, PromptAssets, PromptEnd, PromptFormat,
};

/// `<|im_end|>`.
const END: TokenId = TokenId(2039);

fn demo() -> PromptFormat {
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

fn part(schema: Value) -> GrammarPart {
    GrammarPart {
        field: "field".to_owned(),
        source: GrammarSource::JsonSchema {
            schema,
            strict: true,
        },
    }
}

fn compile(format: &PromptFormat, spec: &GrammarSpec) -> Arc<Grammar> {
    GrammarCompiler::new(&[END])
        .compile(spec, || format.vocabulary(2048))
        .unwrap_or_else(|error| panic!("{error} in {spec:?}"))
}

/// The whole text is let through, to its end.
fn accepts(format: &PromptFormat, grammar: &Arc<Grammar>, text: &str) -> bool {
    let mut constraint = Constraint::new(Arc::clone(grammar));
    for token in format.encode(text).unwrap() {
        if !constraint.allowed().unwrap().allows(token) {
            return false;
        }
        constraint.advance(token);
    }
    constraint.allowed().unwrap().allows(END)
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
    calls: CallForm,
    several: bool,
    otherwise: &Otherwise,
) -> Arc<Grammar> {
    let tools = [("get_weather", 0), ("odd \"name\"", 1)].map(|(name, index)| CallableTool {
        name: name.to_owned(),
        arguments: GrammarSpec::reference(index),
    });
    let rules = constraint::answer(calls, &tools, several, otherwise);
    let spec = GrammarSpec {
        root: Some(format!("start: answer\n{rules}")),
        parts: vec![city(), zone(), part(json!({"type": "boolean"}))],
    };
    compile(format, &spec)
}

const WEATHER: &str =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Berlin\"}}\n</tool_call>";
const ZONE: &str = "<tool_call>\n{\"name\": \"odd \\\"name\\\"\", \"arguments\": {\"zone\":\"UTC\"}}\n</tool_call>";

#[test]
fn tagged_calls() {
    let format = demo();
    let one = grammar(&format, CallForm::Tagged, false, &Otherwise::Nothing);
    let several = grammar(&format, CallForm::Tagged, true, &Otherwise::Nothing);
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
    let free = grammar(&format, CallForm::Tagged, true, &Otherwise::Text);
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
    let or_else = Otherwise::Grammar(GrammarSpec::reference(2));
    let either = grammar(&format, CallForm::Tagged, false, &or_else);
    assert!(accepts(&format, &either, "true") && accepts(&format, &either, WEATHER));
    assert!(!accepts(&format, &either, "Hello"));
}

#[test]
fn bare_calls() {
    let format = demo();
    let call = r#"{"name": "get_weather", "parameters": {"city": "Berlin"}}"#;
    let one = grammar(&format, CallForm::Bare, true, &Otherwise::Nothing);
    let free = grammar(&format, CallForm::Bare, true, &Otherwise::Text);
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

/// Qwen3's template leaves reasoning to the model, unless it is switched off; the demo's opens it or not.
#[test]
fn where_reasoning_is_expected() {
    let closed = "{%- if enable_thinking is defined and not enable_thinking -%}<think>\n\n</think>\n\n{%- endif -%}";
    let template = format!("{{{{ messages[0].content }}}}{closed}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let qwen = PromptFormat::new(PromptAssets {
        tokenizer: tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap(),
        chat_template: Some(template),
        bos_token: None,
        eos_token: None,
        add_bos: None,
    })
    .unwrap();
    let end = |format: &PromptFormat, prompt: &str| {
        format.prompt_end(&ParserOptions::for_prompt(prompt, false), prompt)
    };
    assert_eq!(end(&qwen, "Hello"), PromptEnd::BeforeReasoning);
    assert_eq!(
        end(&qwen, "Hello<think>\n\n</think>\n\n"),
        PromptEnd::Answer
    );
    assert_eq!(end(&qwen, "Hello<think>\n"), PromptEnd::InReasoning);
    assert_eq!(end(&demo(), "Hello"), PromptEnd::Answer);
    assert_eq!(end(&demo(), "Hello<think>\n"), PromptEnd::InReasoning);
}
