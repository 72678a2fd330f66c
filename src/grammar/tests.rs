use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::*;
use crate::ids::TokenId;
use crate::prompt::{PromptAssets, PromptFormat};

const VOCABULARY: usize = 2048;
/// `<|im_end|>` and `<|endoftext|>`.
const END: [TokenId; 2] = [TokenId(2039), TokenId(2037)];

pub(super) fn demo() -> PromptFormat {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    PromptFormat::new(PromptAssets {
        tokenizer: tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap(),
        chat_template: None,
        bos_token: None,
        eos_token: None,
        add_bos: None,
    })
    .unwrap()
}

struct Bench {
    format: PromptFormat,
    compiler: GrammarCompiler,
}

impl Bench {
    fn new() -> Self {
        Self {
            format: demo(),
            compiler: GrammarCompiler::new(&END),
        }
    }

    fn compile(&self, spec: &GrammarSpec) -> Result<Arc<Grammar>, GrammarError> {
        self.compiler
            .compile(spec, || self.format.vocabulary(VOCABULARY))
    }

    fn only(&self, source: GrammarSource) -> Result<Arc<Grammar>, GrammarError> {
        self.compile(&GrammarSpec::only(GrammarPart {
            field: "field".to_owned(),
            source,
        }))
    }

    fn schema(&self, schema: Value) -> Result<Arc<Grammar>, GrammarError> {
        self.only(GrammarSource::JsonSchema {
            schema,
            strict: true,
        })
    }

    /// The text of random allowed tokens, to the end of the grammar or `steps` tokens.
    fn walk(&self, grammar: &Arc<Grammar>, random: &mut StdRng, steps: usize) -> (String, bool) {
        let mut constraint = Constraint::new(Arc::clone(grammar));
        let mut detokenizer = self.format.detokenizer();
        let mut text = String::new();
        for _ in 0..steps {
            let mask = constraint.allowed().expect("a mask");
            let allowed: Vec<TokenId> = mask.tokens().collect();
            // Ends are rare among many; take them when there is one, every other time.
            let end = allowed.iter().find(|&&token| constraint.is_end(token));
            let token = match end {
                Some(&end) if random.random_bool(0.5) => end,
                _ => *allowed.choose(random).expect("a token is allowed"),
            };
            if constraint.is_end(token) {
                text.push_str(&detokenizer.finish());
                return (text, true);
            }
            text.push_str(&detokenizer.push(token));
            constraint.advance(token);
        }
        (text, false)
    }

    /// The text is one that the grammar lets through, up to its end.
    fn accepts(&self, grammar: &Arc<Grammar>, text: &str) -> bool {
        let mut constraint = Constraint::new(Arc::clone(grammar));
        for token in self.format.encode(text).unwrap() {
            if !constraint.allowed().unwrap().allows(token) {
                return false;
            }
            constraint.advance(token);
        }
        constraint.allowed().unwrap().allows(END[0])
    }
}

/// What a schema demands, said again by hand.
type IsValid = fn(&Value) -> bool;

/// Schemas whose instances are short.
fn bounded_schemas() -> Vec<(Value, IsValid)> {
    let text = json!({"type": "string", "maxLength": 8});
    vec![
        (
            json!({"type": "object", "properties": {"name": text, "city": text},
                "required": ["name", "city"], "additionalProperties": false}),
            |value| {
                members(value) == ["city", "name"]
                    && short_text(&value["name"])
                    && short_text(&value["city"])
            },
        ),
        (
            json!({"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 1200},
                "minItems": 1, "maxItems": 4}),
            |value| {
                let items = value.as_array().unwrap();
                (1..=4).contains(&items.len())
                    && items
                        .iter()
                        .all(|item| item.as_i64().is_some_and(|n| (-5..=1200).contains(&n)))
            },
        ),
        (
            json!({"anyOf": [{"type": "null"}, {"enum": ["red", "\"quoted\"", "größe", 17]}, {"const": [1, "x"]}]}),
            |value| {
                [
                    json!(null),
                    json!("red"),
                    json!("\"quoted\""),
                    json!("größe"),
                    json!(17),
                    json!([1, "x"]),
                ]
                .contains(value)
            },
        ),
        (
            json!({"type": "object", "additionalProperties": false, "required": ["kind", "tags"], "properties": {
                "kind": {"enum": ["a", "b"]},
                "tags": {"type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/tag"}},
                "when": {"type": "string", "format": "date"}},
                "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{1,5}$"}}}),
            |value| {
                let tags = value["tags"].as_array().unwrap();
                let names = members(value);
                (names == ["kind", "tags"]
                    || names == ["kind", "tags", "when"] && is_date(&value["when"]))
                    && (value["kind"] == "a" || value["kind"] == "b")
                    && tags.len() <= 3
                    && tags.iter().all(|tag| {
                        let tag = tag.as_str().unwrap();
                        (1..=5).contains(&tag.len())
                            && tag.bytes().all(|byte| byte.is_ascii_lowercase())
                    })
            },
        ),
        (
            json!({"type": "object", "additionalProperties": false, "required": ["value"], "properties": {
                "value": {"type": "number", "minimum": 0, "exclusiveMaximum": 10},
                "next": {"type": "object", "additionalProperties": false, "properties": {"flag": {"type": "boolean"}}}}}),
            |value| {
                let next = value.get("next");
                value["value"]
                    .as_f64()
                    .is_some_and(|number| (0.0..10.0).contains(&number))
                    && members(value)
                        .iter()
                        .all(|name| *name == "value" || *name == "next")
                    && next.is_none_or(|next| {
                        members(next).iter().all(|name| *name == "flag")
                            && next.get("flag").is_none_or(Value::is_boolean)
                    })
            },
        ),
    ]
}

/// The names of an object's members, in order.
fn members(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    names
}

fn short_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.chars().count() <= 8)
}

fn is_date(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| text.parse::<jiff::civil::Date>().is_ok())
}

#[test]
fn whatever_is_sampled_parses_and_validates() {
    let bench = Bench::new();
    let mut random = StdRng::seed_from_u64(11);
    for (schema, is_valid) in bounded_schemas() {
        let grammar = bench.schema(schema.clone()).unwrap();
        let mut complete = 0;
        for _ in 0..60 {
            let (text, ended) = bench.walk(&grammar, &mut random, 600);
            if !ended {
                continue;
            }
            complete += 1;
            let value: Value = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{error} in {text:?} for {schema}"));
            assert!(is_valid(&value), "{text:?} for {schema}");
        }
        assert!(complete >= 50, "{complete} of 60 walks ended for {schema}");
    }
}

#[test]
fn choices_and_expressions_are_matched_as_a_whole() {
    let bench = Bench::new();
    let mut random = StdRng::seed_from_u64(5);
    let choices = ["Paris", "Paris, France", "Rome \"the\" city\n", "日本"];
    let grammar = bench
        .only(GrammarSource::Choice(choices.map(str::to_owned).to_vec()))
        .unwrap();
    let expression = bench
        .only(GrammarSource::Regex("[0-9]{3}-[a-f]+/(x|y)".to_owned()))
        .unwrap();
    let lark = bench
        .only(GrammarSource::Lark(
            "start: item (\", \" item)*\nitem: /[a-z]{2}/ | NUMBER\nNUMBER: /[0-9]{1,3}/"
                .to_owned(),
        ))
        .unwrap();
    for choice in choices {
        assert!(bench.accepts(&grammar, choice), "{choice}");
    }
    for other in ["Par", "Paris,", "paris", "Paris, France!", ""] {
        assert!(!bench.accepts(&grammar, other), "{other}");
    }
    for _ in 0..40 {
        let (text, ended) = bench.walk(&grammar, &mut random, 100);
        assert!(ended && choices.contains(&text.as_str()), "{text:?}");
        let (text, ended) = bench.walk(&expression, &mut random, 100);
        if ended {
            let (number, rest) = text.split_once('-').unwrap();
            let (letters, last) = rest.split_once('/').unwrap();
            assert!(number.len() == 3 && number.bytes().all(|byte| byte.is_ascii_digit()));
            assert!(
                !letters.is_empty() && letters.bytes().all(|byte| (b'a'..=b'f').contains(&byte))
            );
            assert!(last == "x" || last == "y");
        }
        let (text, ended) = bench.walk(&lark, &mut random, 100);
        if ended {
            assert!(
                text.split(", ").all(|item| {
                    item.len() == 2 && item.bytes().all(|byte| byte.is_ascii_lowercase())
                        || item.parse::<u16>().is_ok_and(|number| number < 1000)
                }),
                "{text:?}"
            );
        }
    }
}

/// The mask holds exactly those tokens that llguidance's matcher takes one by one.
#[test]
fn masks_are_those_of_the_matcher() {
    use llguidance::api::TopLevelGrammar;
    let bench = Bench::new();
    let schema = bounded_schemas().remove(3).0;
    let grammar = bench.schema(schema.clone()).unwrap();
    let environment =
        vocabulary::token_environment(&bench.format.vocabulary(VOCABULARY).unwrap(), &END).unwrap();
    let factory = llguidance::ParserFactory::new_simple(&environment).unwrap();
    let prepared = schema::prepare(&schema, "field", true).unwrap();
    let parser = factory.create_parser(TopLevelGrammar::from_json_schema(prepared));
    let mut matcher = llguidance::Matcher::new(parser);
    let mut constraint = Constraint::new(grammar);
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..40 {
        let mask = constraint.allowed().unwrap();
        for id in 0..VOCABULARY as u32 {
            let token = TokenId(id);
            let taken = if END.contains(&token) {
                matcher.is_accepting().unwrap()
            } else {
                matcher.validate_tokens(&[id]).unwrap() == 1
            };
            assert_eq!(mask.allows(token), taken, "token {id}");
        }
        let allowed: Vec<TokenId> = mask.tokens().filter(|token| !END.contains(token)).collect();
        let Some(&token) = allowed.choose(&mut random) else {
            break;
        };
        matcher.consume_token(token.0).unwrap();
        constraint.advance(token);
    }
}

#[test]
fn white_space_is_flexible_and_bounded() {
    let bench = Bench::new();
    let grammar = bench.schema(bounded_schemas().remove(0).0).unwrap();
    for text in [
        r#"{"name":"a","city":"b"}"#,
        r#"{"name": "a", "city": "b"}"#,
        "{\n  \"name\": \"a\",\n  \"city\": \"b\"\n}",
    ] {
        assert!(bench.accepts(&grammar, text), "{text}");
    }
    for text in [
        "{  \"name\": \"a\", \"city\": \"b\"}",
        "{\n\n\"name\": \"a\", \"city\": \"b\"}",
        " {\"name\": \"a\", \"city\": \"b\"}",
    ] {
        assert!(!bench.accepts(&grammar, text), "{text}");
    }
}

#[test]
fn control_tokens_are_never_text() {
    let bench = Bench::new();
    let any = bench
        .only(GrammarSource::Regex("(?s:.*)".to_owned()))
        .unwrap();
    let mask = Constraint::new(any).allowed().unwrap();
    let start = bench.format.encode("<|im_start|>").unwrap();
    assert_eq!(start.len(), 1);
    assert!(!mask.allows(start[0]));
    assert!(mask.allows(END[0]) && mask.allows(END[1]));
    // Marks of calls are text.
    assert!(mask.allows(bench.format.encode("<tool_call>").unwrap()[0]));
}

#[test]
fn the_mask_of_logits() {
    let bench = Bench::new();
    let grammar = bench
        .only(GrammarSource::Choice(vec!["7".to_owned()]))
        .unwrap();
    let mask = Constraint::new(grammar).allowed().unwrap();
    let mut logits = vec![0.5f32; VOCABULARY + 40];
    mask.apply(&mut logits);
    for (id, logit) in logits.iter().enumerate() {
        let allowed = mask.allows(TokenId(id as u32));
        assert_eq!(*logit, if allowed { 0.5 } else { f32::NEG_INFINITY });
    }
    assert!(mask.tokens().count() >= 1);
}

#[test]
fn a_grammar_is_compiled_once_whatever_the_field() {
    let bench = Bench::new();
    let spec = |field: &str, schema: Value| {
        GrammarSpec::only(GrammarPart {
            field: field.to_owned(),
            source: GrammarSource::JsonSchema {
                schema,
                strict: true,
            },
        })
    };
    let first = bench
        .compile(&spec("a", json!({"type": "object"})))
        .unwrap();
    let second = bench
        .compile(&spec("b", json!({"type": "object"})))
        .unwrap();
    let other = bench.compile(&spec("a", json!({"type": "array"}))).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert!(first != other);
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let bench = Bench::new();
    let property = |schema: Value| json!({"type": "object", "properties": {"x": schema}});
    let mut deep = json!({"type": "string"});
    for _ in 0..120 {
        deep = json!({"type": "array", "items": deep});
    }
    for (schema, field, part) in [
        (
            property(json!({"not": {}})),
            "properties.x.not",
            "not supported",
        ),
        (
            property(json!({"if": {}})),
            "properties.x.if",
            "not supported",
        ),
        (
            property(json!({"type": "array", "uniqueItems": true})),
            "properties.x.uniqueItems",
            "not supported",
        ),
        (
            property(json!({"type": "array", "contains": {}})),
            "properties.x.contains",
            "not supported",
        ),
        (
            property(json!({"type": "text"})),
            "properties.x.type",
            "must be one of",
        ),
        (
            property(json!({"type": ["string", 1]})),
            "properties.x.type[1]",
            "must be one of",
        ),
        (
            property(json!({"minLength": -1})),
            "properties.x.minLength",
            "at least 0",
        ),
        (
            property(json!({"minLength": "a"})),
            "properties.x.minLength",
            "an integer",
        ),
        (
            property(json!({"maxItems": 1e12})),
            "properties.x.maxItems",
            "at most",
        ),
        (
            property(json!({"minimum": "1"})),
            "properties.x.minimum",
            "a number",
        ),
        (
            property(json!({"enum": []})),
            "properties.x.enum",
            "at least one",
        ),
        (
            property(json!({"anyOf": []})),
            "properties.x.anyOf",
            "at least one",
        ),
        (
            property(json!({"anyOf": [{}, {"type": "?"}]})),
            "properties.x.anyOf[1].type",
            "must be one of",
        ),
        (
            property(json!({"required": "a"})),
            "properties.x.required",
            "array of strings",
        ),
        (property(json!(7)), "properties.x", "an object or a boolean"),
        (json!({"properties": []}), "properties", "an object"),
        (
            property(json!({"type": "string", "format": "zip"})),
            "properties.x.format",
            "known: date-time",
        ),
        (
            property(json!({"type": "string", "pattern": "(?=a)b"})),
            "properties.x.pattern",
            "look-around",
        ),
        (
            property(json!({"type": "string", "pattern": "(("})),
            "properties.x.pattern",
            "unclosed group",
        ),
        (
            property(json!({"type": "string", "pattern": 1})),
            "properties.x.pattern",
            "a string",
        ),
        (
            property(
                json!({"oneOf": [{"type": "string", "minLength": 2}, {"type": "string", "maxLength": 4}]}),
            ),
            "properties.x.oneOf",
            "oneOf",
        ),
        (
            property(json!({"$ref": "https://example.com/schema"})),
            "properties.x.$ref",
            "into the schema itself",
        ),
        (
            property(json!({"$ref": "other.json#/a"})),
            "properties.x.$ref",
            "into the schema itself",
        ),
        (
            property(json!({"$ref": "#anchor"})),
            "properties.x.$ref",
            "into the schema itself",
        ),
        (
            property(json!({"$ref": "#/$defs/missing"})),
            "properties.x.$ref",
            "does not have",
        ),
        (
            property(json!({"$ref": 1})),
            "properties.x.$ref",
            "a string",
        ),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"not": {}}}}),
            "$defs.a.not",
            "not supported",
        ),
        (
            json!({"type": "object", "required": ["x"], "properties": {"x": {"type": "integer", "minimum": 5, "maximum": 1}}}),
            "properties.x",
            "",
        ),
        (deep, "items", "nested more than"),
        (json!(false), "", "cannot be enforced"),
    ] {
        let error = bench.schema(schema.clone()).map(|_| ());
        let Err(GrammarError::Invalid {
            field: found,
            message,
        }) = error
        else {
            panic!("{schema} gives {error:?}");
        };
        let expected = if field.is_empty() {
            "field".to_owned()
        } else {
            format!("field.{field}")
        };
        assert!(
            found.starts_with(&expected),
            "{schema} is blamed on {found}: {message}"
        );
        assert!(message.contains(part), "{schema}: {message}");
        assert!(
            !message.contains("backtrace") && message.len() < 500,
            "{message}"
        );
    }
    for (source, part) in [
        (GrammarSource::Regex("(a".to_owned()), "unclosed group"),
        (GrammarSource::Regex(String::new()), "must not be empty"),
        (GrammarSource::Regex("a".repeat(20_000)), "at most 16384"),
        (
            GrammarSource::Lark("start: missing".to_owned()),
            "unknown name",
        ),
        (
            GrammarSource::Lark("this is { no grammar".to_owned()),
            "not a valid grammar",
        ),
        (GrammarSource::Lark(String::new()), "not a valid grammar"),
        (GrammarSource::Lark("a".repeat(70_000)), "at most 65536"),
    ] {
        let error = bench.only(source.clone()).map(|_| ());
        let Err(GrammarError::Invalid { field, message }) = error else {
            panic!("{source:?} gives {error:?}");
        };
        assert_eq!(field, "field");
        assert!(message.contains(part), "{message}");
    }
}

/// Nobody can make compiling take long, run out of stack or panic the server.
#[test]
fn hostile_grammars_are_refused_or_compiled() {
    let bench = Bench::new();
    let mut chain = serde_json::Map::new();
    for index in 0..5_000 {
        let next = format!("#/$defs/d{}", index + 1);
        chain.insert(format!("d{index}"), json!({"$ref": next}));
    }
    chain.insert("d5000".to_owned(), json!({"type": "string"}));
    let wide = |count: usize| -> Vec<Value> {
        (0..count)
            .map(|index| json!({"type": "object", "properties": {format!("p{index}"): {"type": "string"}}}))
            .collect()
    };
    let properties: serde_json::Map<String, Value> = (0..3_000)
        .map(|index| (format!("p{index}"), json!({"type": "string"})))
        .collect();
    let rules: String = (0..4_000)
        .map(|index| format!("r{index}: r{}\n", index + 1))
        .collect();
    let tokens: String = (0..4_000)
        .map(|index| format!("T{index}: T{}\n", index + 1))
        .collect();
    let schemas = [
        json!({"$ref": "#/$defs/d0", "$defs": chain}),
        json!({"allOf": [{"anyOf": wide(100)}, {"anyOf": wide(100)}, {"anyOf": wide(100)}]}),
        json!({"type": "object", "properties": properties}),
        json!({"type": "array", "items": {"type": "string"}, "minItems": 100_000}),
        json!({"type": "string", "minLength": 100_000, "maxLength": 100_000}),
        json!({"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"}),
        json!({"$ref": "#"}),
        json!({"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
    ];
    for schema in schemas {
        // Either is fine; what matters is that it comes back.
        let _ = bench.schema(schema);
    }
    for source in [
        GrammarSource::Regex("(".repeat(10_000)),
        GrammarSource::Regex("((a*)*)*b".to_owned()),
        GrammarSource::Regex("(x{1,500}){1,500}".to_owned()),
        GrammarSource::Regex(format!("({})", "a|".repeat(5_000))),
        GrammarSource::Lark(format!(
            "start: {}a{}",
            "(".repeat(20_000),
            ")".repeat(20_000)
        )),
        GrammarSource::Lark(format!("start: r0\n{rules}r4000: \"a\"")),
        GrammarSource::Lark(format!("start: T0\n{tokens}T4000: \"a\"")),
        GrammarSource::Lark("start: start start | \"a\" | \"\"".to_owned()),
        GrammarSource::Lark(format!("start: \"a\"{}", "?".repeat(5_000))),
        GrammarSource::Lark("start: %json {\"$ref\": \"http://example.com\"}".to_owned()),
        GrammarSource::Lark("start: @part_0".to_owned()),
        GrammarSource::Choice((0..4_000).map(|index| format!("choice {index}")).collect()),
    ] {
        if let Ok(grammar) = bench.only(source) {
            let mut random = StdRng::seed_from_u64(1);
            let mut constraint = Constraint::new(grammar);
            for _ in 0..30 {
                let Ok(mask) = constraint.allowed() else {
                    break;
                };
                let allowed: Vec<TokenId> = mask.tokens().collect();
                let token = *allowed.choose(&mut random).expect("a token is allowed");
                if constraint.is_end(token) {
                    break;
                }
                constraint.advance(token);
            }
        }
    }
}

#[test]
fn a_model_without_end_tokens_has_no_grammars() {
    let format = demo();
    let compiler = GrammarCompiler::new(&[]);
    let spec = GrammarSpec::only(GrammarPart {
        field: "field".to_owned(),
        source: GrammarSource::Regex("a".to_owned()),
    });
    let error = compiler
        .compile(&spec, || format.vocabulary(VOCABULARY))
        .map(|_| ());
    assert!(
        matches!(error, Err(GrammarError::Unavailable(_))),
        "{error:?}"
    );
    let error = GrammarCompiler::new(&END).compile(&spec, || Err("of its tokenizer".to_owned()));
    assert!(
        error
            .map(|_| ())
            .unwrap_err()
            .to_string()
            .contains("of its tokenizer")
    );
}

/// A root may refer to parts, and what is wrong in one is blamed on its field.
#[test]
fn parts_of_a_root() {
    let bench = Bench::new();
    let spec = |second: Value| GrammarSpec {
        root: Some(format!(
            "start: \"A:\" {} | \"B:\" {}",
            GrammarSpec::reference(0),
            GrammarSpec::reference(1)
        )),
        checked: Vec::new(),
        parts: vec![
            GrammarPart {
                field: "one".to_owned(),
                source: GrammarSource::Choice(vec!["x".to_owned()]),
            },
            GrammarPart {
                field: "two".to_owned(),
                source: GrammarSource::JsonSchema {
                    schema: second,
                    strict: true,
                },
            },
        ],
    };
    let grammar = bench.compile(&spec(json!({"type": "boolean"}))).unwrap();
    assert!(bench.accepts(&grammar, "A:x") && bench.accepts(&grammar, "B:true"));
    assert!(!bench.accepts(&grammar, "A:true") && !bench.accepts(&grammar, "B:x"));
    let bad = spec(json!({"type": "string", "pattern": "("}));
    let error = bench.compile(&bad).map(|_| ()).unwrap_err();
    assert!(
        matches!(&error, GrammarError::Invalid { field, .. } if field == "two.pattern"),
        "{error}"
    );
}
