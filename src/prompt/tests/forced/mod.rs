//! In every format: what a grammar of calls lets through is read as a call that the tool's schema allows, and
//! calls as the format writes them are let through.

mod random;
mod written;

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use self::random::{arguments_schema, is_valid, object_of, tools};
use self::written::{has_one_call, write};
use super::rules::{END, accepts, compile, demo, demo_with, named};
use crate::grammar::{Constraint, Grammar, GrammarPart, GrammarSource};
use crate::ids::TokenId;
use crate::prompt::output::{OutputFormat, OutputParser};
use crate::prompt::tools::FORMATS;
use crate::prompt::tools::constraint::{self, CallableTool, Otherwise, Parts};
use crate::prompt::{AnswerRules, OutputDelta, PromptEnd, PromptFormat};

/// The tools of one test: names and schemas of arguments.
type Tools = Vec<(String, Value)>;

fn callable(tools: &[(String, Value)]) -> Vec<CallableTool> {
    tools
        .iter()
        .map(|(name, schema)| CallableTool {
            name: name.clone(),
            arguments: GrammarPart {
                field: format!("{name}.parameters"),
                source: GrammarSource::JsonSchema {
                    schema: schema.clone(),
                    strict: true,
                },
            },
        })
        .collect()
}

fn forced(
    format: &PromptFormat,
    name: &str,
    tools: &[(String, Value)],
    several: bool,
) -> Arc<Grammar> {
    grammar(format, name, tools, several, &Otherwise::Nothing)
}

fn grammar(
    format: &PromptFormat,
    name: &str,
    tools: &[(String, Value)],
    several: bool,
    otherwise: &Otherwise,
) -> Arc<Grammar> {
    let mut parts = Parts::default();
    let rules = constraint::answer(
        named(name),
        &callable(tools),
        several,
        otherwise,
        &mut parts,
    )
    .unwrap_or_else(|error| panic!("{name}: {error}"));
    compile(format, &parts.spec(format!("start: answer\n{rules}")))
}

/// The calls in a text, or what else is in it.
fn read(name: &str, tools: &[(String, Value)], text: &str) -> Result<Vec<(String, Value)>, String> {
    let output = OutputFormat {
        reasoning: None,
        tools: named(name),
    };
    let declared: Vec<Value> = tools
        .iter()
        .map(|(name, schema)| json!({"type": "function", "function": {"name": name, "parameters": schema}}))
        .collect();
    let mut parser = OutputParser::new(&output.options("", &declared), output);
    let mut calls: Vec<(String, String)> = Vec::new();
    for delta in parser.push(text).into_iter().chain(parser.finish()) {
        match delta {
            OutputDelta::ToolCallStart { name, .. } => calls.push((name, String::new())),
            OutputDelta::ToolCallArguments { index, text } => calls[index].1 += &text,
            OutputDelta::Content(text) | OutputDelta::Reasoning(text) => {
                return Err(format!("text {text:?}"));
            }
        }
    }
    calls
        .into_iter()
        .map(|(name, text)| match serde_json::from_str(&text) {
            Ok(arguments) => Ok((name, arguments)),
            Err(error) => Err(format!("{error} in {text}")),
        })
        .collect()
}

#[test]
fn every_format_can_be_forced() {
    let format = demo();
    let tools: Tools = vec![(
        "weather".to_owned(),
        json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"]}),
    )];
    for name in FORMATS.iter().map(|format| format.name) {
        let grammar = forced(&format, name, &tools, true);
        for turn in 0..2 {
            let text = |arguments: Value| write(name, &[("weather".to_owned(), arguments)], turn);
            for good in [
                json!({"city": "Berlin"}),
                json!({"city": "Zürich\n<b>\"q\" \\ 🙂", "days": -3}),
                json!({"city": ""}),
            ] {
                let text = text(good.clone());
                let expected = vec![("weather".to_owned(), good)];
                assert_eq!(read(name, &tools, &text), Ok(expected), "{name}: {text}");
                assert!(accepts(&format, &grammar, &text), "{name}: {text}");
            }
            let good = text(json!({"city": "Berlin"}));
            for bad in [
                text(json!({})),
                text(json!({"days": 3})),
                text(json!({"city": "Berlin", "days": 1.5})),
                text(json!({"city": "Berlin", "days": "x"})),
                text(json!({"city": "Berlin", "town": "x"})),
                text(json!({"days": 3, "city": "Berlin"})),
                good.replace("weather", "time"),
                format!("Well. {good}"),
                format!("{good} Done."),
                String::new(),
                "Hello".to_owned(),
            ] {
                assert!(!accepts(&format, &grammar, &bad), "{name}: {bad}");
            }
        }
    }
}

/// Where a call is only allowed, text comes instead of it or, where the format has that, before it.
#[test]
fn calls_beside_text() {
    let format = demo();
    let tools: Tools = vec![(
        "now".to_owned(),
        json!({"type": "object", "properties": {}}),
    )];
    for name in FORMATS.iter().map(|format| format.name) {
        let grammar = grammar(&format, name, &tools, true, &Otherwise::Text);
        let text = |text: &str| match name {
            "harmony" => format!("<|channel|>final<|message|>{text}"),
            _ => text.to_owned(),
        };
        for plain in ["Hello <b>, {there} and [there].\n", "3"] {
            let plain = text(plain);
            assert!(accepts(&format, &grammar, &plain), "{name}: {plain}");
        }
        for turn in 0..2 {
            let call = write(name, &[("now".to_owned(), json!({}))], turn);
            let other = write(name, &[("then".to_owned(), json!({}))], turn);
            assert!(accepts(&format, &grammar, &call), "{name}: {call}");
            let bare = ["llama3", "harmony"].contains(&name) || (name == "pythonic" && turn == 0);
            if !bare {
                let call = format!("Let me see.\n{call}");
                assert!(accepts(&format, &grammar, &call), "{name}: {call}");
                let other = format!("Let me see.\n{other}");
                assert!(!accepts(&format, &grammar, &other), "{name}: {other}");
            }
            assert!(!accepts(&format, &grammar, &other), "{name}: {other}");
        }
    }
}

/// What only some forms have trouble with.
#[test]
fn names_and_keys_that_a_form_cannot_hold() {
    let format = demo();
    let with = |key: &str, required: bool| -> Tools {
        let required = if required { json!([key]) } else { json!([]) };
        let schema =
            json!({"type": "object", "properties": {key: {"enum": ["x"]}}, "required": required});
        vec![("f".to_owned(), schema)]
    };
    let rules = |name: &str, tools: &[(String, Value)]| {
        let tools = callable(tools);
        constraint::answer(
            named(name),
            &tools,
            false,
            &Otherwise::Nothing,
            &mut Parts::default(),
        )
    };
    for name in ["pythonic", "gemma3", "lfm2"] {
        let error = rules(name, &with("a b", true)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("\"f\""), "{error}");
    }
    for name in [
        "qwen3_coder",
        "glm4",
        "minimax_m2",
        "dsml",
        "kimi_k3",
        "minicpm",
    ] {
        assert!(rules(name, &with("a>b", true)).is_err(), "{name}");
        assert!(rules(name, &with("a b", true)).is_ok(), "{name}");
    }
    // What is optional is left out; another tool is left.
    let grammar = forced(&format, "pythonic", &with("a b", false), false);
    assert!(accepts(&format, &grammar, "[f()]"));
    let mut tools = with("a b", true);
    tools.push(("g".to_owned(), json!({"type": "object", "properties": {}})));
    let grammar = forced(&format, "pythonic", &tools, false);
    assert!(accepts(&format, &grammar, "[g()]") && !accepts(&format, &grammar, "[f()]"));
    let odd = [(
        "a name".to_owned(),
        json!({"type": "object", "properties": {}}),
    )];
    assert!(rules("functionary", &odd).is_err() && rules("hermes", &odd).is_ok());
}

/// Schemas that are more than a list of properties.
#[test]
fn schemas_in_other_shapes() {
    let format = demo();
    let root = json!({
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"$ref": "#/properties/tree"}}}],
        "type": "object", "properties": {"tree": {"type": "object", "properties": {
            "next": {"$ref": "#/properties/tree"}, "text": {"type": "string", "pattern": "^[a-c]{2}$|z"}}}},
        "$defs": {"base": {"type": "object", "properties": {"a": {"type": "string", "format": "date"}},
            "required": ["a"]}},
    });
    let tools: Tools = vec![("f".to_owned(), root)];
    for name in FORMATS.iter().map(|format| format.name) {
        // The order of properties differs with the form; it is not what is asked here.
        let grammar = forced(&format, name, &tools, false);
        let text = |arguments: Value| write(name, &[("f".to_owned(), arguments)], 0);
        let good = text(json!({"a": "2024-02-28"}));
        assert!(accepts(&format, &grammar, &good), "{name}: {good}");
        for bad in [json!({"a": "2024-02-30"}), json!({"a": 3}), json!({})] {
            let bad = text(bad);
            assert!(!accepts(&format, &grammar, &bad), "{name}: {bad}");
        }
    }
    let nested =
        |text: &str| json!({"a": "2024-12-31", "tree": {"next": {"text": text}, "text": "ab"}});
    for name in ["gemma4", "pythonic", "glm4", "kimi_k3"] {
        let grammar = forced(&format, name, &tools, false);
        let text = |text: &str| {
            let mut arguments = nested(text);
            let members = arguments.as_object_mut().unwrap();
            // As declared: those of the schema itself, or those of what it is combined with.
            let swapped = Value::Object(members.clone().into_iter().rev().collect());
            [arguments, swapped].map(|arguments| write(name, &[("f".to_owned(), arguments)], 0))
        };
        let any = |texts: [String; 2]| texts.iter().any(|text| accepts(&format, &grammar, text));
        assert!(any(text("xz")) && any(text("cc")), "{name}");
        assert!(!any(text("xy")) && !any(text("ccc")), "{name}");
    }
}

/// An answer in channels: thoughts may come before a call, and no other call in them.
#[test]
fn thoughts_before_a_call_in_channels() {
    let format = demo_with("harmony");
    let schema = json!({"type": "object", "properties": {"x": {"enum": [1]}}, "required": ["x"]});
    let tools = callable(&[("f".to_owned(), schema)]);
    let rules = AnswerRules {
        tools: tools
            .into_iter()
            .map(|tool| (tool.name, tool.arguments))
            .collect(),
        ..AnswerRules::default()
    };
    let spec = format
        .answer_grammar(&rules, PromptEnd::InReasoning)
        .unwrap();
    let grammar = compile(&format, &spec);
    let call = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"x\": 1}";
    let think =
        |text: &str| format!("<|channel|>analysis<|message|>{text}<|end|><|start|>assistant");
    for good in [call.to_owned(), think("Hm <b>.\n") + call, think("") + call] {
        assert!(accepts(&format, &grammar, &good), "{good}");
    }
    for bad in [
        think("Hm.") + "<|channel|>final<|message|>Hello",
        think(&call.replace("\"x\"", "\"y\"")) + call,
        think("Hm."),
        think("<|channel|>final<|message|>x") + call,
        call.replace(": 1", ": 2"),
    ] {
        assert!(!accepts(&format, &grammar, &bad), "{bad}");
    }
}

/// Random arguments for random schemas, as the format writes them, are let through and read back.
#[test]
fn written_calls_are_let_through_and_read_back() {
    let format = demo();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let tools = tools(&mut random);
        for name in FORMATS.iter().map(|format| format.name) {
            let grammar = forced(&format, name, &tools, true);
            for turn in 0..8 {
                let most = if has_one_call(name, turn) { 1 } else { 3 };
                let calls: Vec<(String, Value)> = (0..random.random_range(1..=most))
                    .map(|_| {
                        let (name, schema) = tools.choose(&mut random).unwrap();
                        (name.clone(), object_of(schema, schema, &mut random))
                    })
                    .collect();
                let text = write(name, &calls, turn);
                // Some strings have no form: those with the mark that ends them, or that look like JSON
                // where that is allowed, too.
                if read(name, &tools, &text) != Ok(calls.clone()) {
                    continue;
                }
                *counts.entry(name).or_default() += 1;
                assert!(
                    accepts(&format, &grammar, &text),
                    "{name}: {text}\n{tools:?}"
                );
            }
        }
    }
    for name in FORMATS.iter().map(|format| format.name) {
        assert!(counts[name] > 70, "{name}: {counts:?}");
    }
}

/// Whatever a grammar lets through is a call that the schema allows.
#[test]
fn what_is_let_through_is_a_valid_call() {
    let format = demo();
    for seed in 0..6 {
        let mut random = StdRng::seed_from_u64(100 + seed);
        let tools = tools(&mut random);
        for name in FORMATS.iter().map(|format| format.name) {
            let grammar = forced(&format, name, &tools, false);
            for _ in 0..6 {
                let text = walk(&format, &grammar, &mut random);
                let calls = read(name, &tools, &text);
                let calls =
                    calls.unwrap_or_else(|error| panic!("{name}: {error}: {text}\n{tools:?}"));
                assert_eq!(calls.len(), 1, "{name}: {text}");
                for (called, arguments) in calls {
                    let (_, schema) = tools
                        .iter()
                        .find(|(name, _)| *name == called)
                        .expect("known");
                    assert!(
                        is_valid(schema, schema, &arguments),
                        "{name}: {arguments}: {text}\n{schema}"
                    );
                }
            }
        }
    }
}

/// As many tools as large agents declare stay within the limits of grammars.
#[test]
fn many_tools() {
    let format = demo();
    let mut random = StdRng::seed_from_u64(77);
    let tools: Tools = (0..60)
        .map(|number| {
            let mut schema = arguments_schema(&mut random);
            let more = arguments_schema(&mut random)["properties"].clone();
            for (key, property) in more.as_object().unwrap() {
                schema["properties"][format!("{key}_{number}")] = property.clone();
            }
            (format!("tool_{number}"), schema)
        })
        .collect();
    for name in ["qwen3_coder", "kimi_k3", "pythonic", "gemma4", "hermes"] {
        let grammar = forced(&format, name, &tools, true);
        let (called, schema) = tools.choose(&mut random).unwrap();
        let call = (called.clone(), object_of(schema, schema, &mut random));
        let text = write(name, &[call], 0);
        let is_readable = read(name, &tools, &text).is_ok();
        assert!(
            !is_readable || accepts(&format, &grammar, &text),
            "{name}: {text}"
        );
        let walked = walk(&format, &forced(&format, name, &tools, false), &mut random);
        assert!(read(name, &tools, &walked).is_ok(), "{name}: {walked}");
    }
}

/// Text of random tokens up to the end of the grammar.
fn walk(format: &PromptFormat, grammar: &Arc<Grammar>, random: &mut StdRng) -> String {
    let mut constraint = Constraint::new(Arc::clone(grammar));
    let mut detokenizer = format.detokenizer();
    let mut text = String::new();
    for _ in 0..4000 {
        let mask = constraint.allowed().expect("a mask");
        let allowed: Vec<TokenId> = mask.tokens().collect();
        let token = match allowed.contains(&END) {
            true => END,
            false => *allowed.choose(random).expect("a token is allowed"),
        };
        if token == END {
            text.push_str(&detokenizer.finish());
            return text;
        }
        text.push_str(&detokenizer.push(token));
        constraint.advance(token);
    }
    panic!("no end: {text}");
}
