//! The grammars that the rules of an answer refer to.

use std::collections::HashMap;

use serde_json::Value;

use crate::grammar::{GrammarPart, GrammarSource, GrammarSpec, escaped};

/// Collects a grammar's rules and parts.
#[derive(Debug, Default)]
pub(in crate::prompt) struct Parts {
    parts: Vec<GrammarPart>,
    checked: Vec<GrammarPart>,
    rules: String,
    count: usize,
    /// Names of rules by what they stand for.
    named: HashMap<String, String>,
}

impl Parts {
    /// The name by which rules refer to a grammar. The same grammar has one name.
    pub(in crate::prompt) fn add(&mut self, part: GrammarPart) -> String {
        let found = self
            .parts
            .iter()
            .position(|known| known.source == part.source);
        let index = found.unwrap_or_else(|| {
            self.parts.push(part);
            self.parts.len() - 1
        });
        GrammarSpec::reference(index)
    }

    /// A schema that is only looked through, to find what is wrong in it.
    pub(super) fn check(&mut self, part: &GrammarPart) {
        self.checked.push(part.clone());
    }

    /// A JSON value as this schema says.
    pub(super) fn json(&mut self, schema: Value, place: &Place<'_>) -> String {
        self.add(GrammarPart {
            field: place.field.clone(),
            source: GrammarSource::JsonSchema {
                schema: with_definitions(schema, place.root),
                strict: place.strict,
            },
        })
    }

    /// The name of the rule for `meaning`, if there is one already.
    pub(super) fn known(&self, meaning: &str) -> Option<String> {
        self.named.get(meaning).cloned()
    }

    /// A name for the rule for `meaning`, which is yet to be given.
    pub(super) fn name(&mut self, meaning: String) -> String {
        self.count += 1;
        let name = format!("rule_{}", self.count);
        self.named.insert(meaning, name.clone());
        name
    }

    /// Gives a rule, or a terminal, what it stands for.
    pub(super) fn rule(&mut self, name: &str, body: &str) {
        self.rules.push_str(&format!("{name}: {body}\n"));
    }

    /// A new rule with this body.
    pub(super) fn new_rule(&mut self, body: &str) -> String {
        if let Some(name) = self.known(body) {
            return name;
        }
        let name = self.name(body.to_owned());
        self.rule(&name, body);
        name
    }

    /// Rules made so far.
    pub(super) fn rules(&self) -> usize {
        self.count
    }

    /// The grammar with this root besides the rules that were collected.
    pub(in crate::prompt) fn spec(self, root: String) -> GrammarSpec {
        GrammarSpec {
            root: Some(root + &self.rules),
            parts: self.parts,
            checked: self.checked,
        }
    }

    /// The grammar that consists of the parts alone.
    pub(in crate::prompt) fn without_root(self) -> GrammarSpec {
        GrammarSpec {
            root: None,
            parts: self.parts,
            checked: self.checked,
        }
    }
}

/// Where a schema stands.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    /// In the request, for errors.
    pub(super) field: String,
    /// What references in it refer to.
    pub(super) root: &'a Value,
    pub(super) strict: bool,
}

impl Place<'_> {
    pub(super) fn at(&self, key: &str) -> Self {
        Place {
            field: format!("{}.{key}", self.field),
            ..self.clone()
        }
    }
}

/// A schema out of another one, with what its references refer to.
fn with_definitions(schema: Value, root: &Value) -> Value {
    let mut references = Vec::new();
    collect_references(&schema, &mut references);
    let Value::Object(mut map) = schema else {
        return schema;
    };
    if references.is_empty() {
        return Value::Object(map);
    }
    collect_references(root, &mut references);
    let usual = |reference: &String| {
        ["#/$defs/", "#/definitions/"]
            .iter()
            .any(|start| reference.starts_with(start))
    };
    if references.iter().all(usual) {
        for keyword in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(keyword) {
                map.insert(keyword.to_owned(), definitions.clone());
            }
        }
        return Value::Object(map);
    }
    let mut moved = root.clone();
    let mut schema = Value::Object(map);
    move_references(&mut moved);
    move_references(&mut schema);
    if let Value::Object(map) = &mut schema {
        map.insert("$defs".to_owned(), serde_json::json!({ MOVED: moved }));
    }
    schema
}

/// Where a whole schema goes that something in one of its parts refers to.
const MOVED: &str = "arguments";

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (keyword, value) in map {
                match value {
                    Value::String(reference) if keyword == "$ref" => found.push(reference.clone()),
                    _ => collect_references(value, found),
                }
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|value| collect_references(value, found)),
        _ => {}
    }
}

fn move_references(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (keyword, value) in map.iter_mut() {
                match value {
                    Value::String(reference) if keyword == "$ref" => {
                        if let Some(pointer) = reference.strip_prefix('#') {
                            let pointer = pointer.trim_end_matches('/');
                            *reference = format!("#/$defs/{MOVED}{pointer}");
                        }
                    }
                    _ => move_references(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(move_references),
        _ => {}
    }
}

/// A string of Lark.
pub(super) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression of Lark.
pub(super) fn expression(text: &str) -> String {
    format!("/{}/", text.replace('/', "\\/").replace('\n', "\\n"))
}

/// A regular expression for text in which these are.
pub(super) fn containing(texts: &[&str]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| escaped(text)).collect();
    expression(&format!("(?s:.*)(?:{})(?s:.*)", texts.join("|")))
}

/// Some things in order, each maybe optional, with this between them. None: there is nothing.
///
/// Takes rules in proportion to the number of things.
pub(super) fn in_order(
    items: &[(String, bool)],
    separator: &str,
    parts: &mut Parts,
) -> Option<String> {
    let optional = |text: &str, required: bool| match required {
        true => text.to_owned(),
        false => format!("({text})?"),
    };
    if items.is_empty() {
        return None;
    }
    if separator.is_empty() {
        let items: Vec<String> = items
            .iter()
            .map(|(item, required)| optional(item, *required))
            .collect();
        return Some(items.join(" "));
    }
    let separator = literal(separator);
    let after = |item: &str| format!("{separator} {item}");
    if let Some(first) = items.iter().position(|(_, required)| *required) {
        let mut text = String::new();
        for (item, _) in &items[..first] {
            text.push_str(&format!("({item} {separator})? "));
        }
        text.push_str(&items[first].0);
        for (item, required) in &items[first + 1..] {
            text.push(' ');
            text.push_str(&optional(&after(item), *required));
        }
        return Some(text);
    }
    // Any of them may be the first: what may follow it is a rule of its own.
    let mut rest: Option<String> = None;
    let mut ways = Vec::new();
    for (item, _) in items.iter().rev() {
        let tail = rest.as_deref().unwrap_or_default();
        ways.push(format!("{item} {tail}").trim().to_owned());
        let body = format!("({})? {tail}", after(item)).trim().to_owned();
        rest = Some(parts.new_rule(&body));
    }
    ways.reverse();
    Some(format!("({})?", ways.join(" | ")))
}
