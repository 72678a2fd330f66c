//! What a format's table is made of.

use super::constraint::form::Way;
use super::parameters::Parameters;
use super::written::Written;

/// A family's way of writing calls.
#[derive(Debug)]
pub(in crate::prompt) struct Format {
    /// Its name in the configuration.
    pub(in crate::prompt) name: &'static str,
    /// What begins calls.
    pub(super) opens: &'static [Mark],
    /// What begins a further call right after one, besides `opens`.
    pub(super) again: &'static [Mark],
    /// How a further call right after one begins that is set off by nothing: with a letter.
    pub(super) again_word: Option<Program>,
    /// What may follow a call and belongs to it: in this order, each at most once.
    pub(super) closes: &'static [&'static str],
    /// Markup around the answer's text, which is no part of it.
    pub(super) noise: &'static [&'static str],
    /// Only names of declared tools make calls: for formats whose marks are also found in plain text.
    pub(super) declared_only: bool,
    /// Calls are written in channels, as [`crate::prompt::harmony`] reads them.
    pub(in crate::prompt) channels: bool,
    /// What only templates of models with this format contain: to recognize those that declare tools but
    /// print no calls.
    pub(in crate::prompt) hints: &'static [&'static str],
    /// How calls are written for a template that prints none. None: as in the generic form.
    pub(in crate::prompt) written: Option<Written>,
    /// How calls are written in answers that must be calls.
    pub(super) ways: &'static [Way],
    /// Tokens that end a turn in this format, whatever the model's files say.
    pub(in crate::prompt) end_tokens: &'static [&'static str],
    #[cfg(test)]
    pub(in crate::prompt) cases: &'static [Case],
}

impl Format {
    /// With nothing in it.
    pub(super) const EMPTY: Format = Format {
        name: "",
        opens: &[],
        again: &[],
        again_word: None,
        closes: &[],
        noise: &[],
        declared_only: false,
        channels: false,
        hints: &[],
        written: None,
        ways: &[],
        end_tokens: &[],
        #[cfg(test)]
        cases: &[],
    };

    /// The marks that begin calls in a text.
    pub(in crate::prompt) fn call_marks(&self) -> impl Iterator<Item = &'static str> {
        self.opens.iter().map(|mark| mark.text)
    }

    /// All text by which calls are recognized, where it could be special tokens.
    pub(in crate::prompt) fn marks(&self) -> Vec<&'static str> {
        let mut marks: Vec<&'static str> = Vec::new();
        marks.extend(self.closes);
        marks.extend(self.noise);
        for mark in self.opens.iter().chain(self.again) {
            marks.push(mark.text);
            collect(mark.then, &mut marks);
        }
        marks
    }
}

fn collect(program: Program, marks: &mut Vec<&'static str>) {
    for item in program {
        match item {
            Item::Text(text) => marks.push(text),
            Item::When(ways) => ways.iter().for_each(|(_, then)| collect(then, marks)),
            Item::Name(NameRule { ends, .. }) | Item::Skip(ends) => {
                for (end, then) in *ends {
                    marks.push(end);
                    collect(then, marks);
                }
            }
            Item::Parameters(parameters) | Item::ParametersAtKey(parameters) => {
                marks.extend(parameters.marks());
            }
            Item::Gemma => marks.push(super::literal::GEMMA_QUOTE),
            Item::Space | Item::Object { .. } | Item::Arguments | Item::Python => {}
        }
    }
}

/// Text that begins a call, and what follows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) text: &'static str,
    /// The mark itself is the beginning of what `then` reads.
    pub(super) kept: bool,
    /// Counts only as the first text of the answer.
    pub(super) at_start: bool,
    pub(super) then: Program,
}

impl Mark {
    pub(super) const fn new(text: &'static str, then: Program) -> Self {
        Mark {
            text,
            kept: false,
            at_start: false,
            then,
        }
    }

    /// The mark is the beginning of what `then` reads.
    pub(super) const fn kept(text: &'static str, then: Program) -> Self {
        Mark {
            kept: true,
            ..Mark::new(text, then)
        }
    }

    /// Only as the first text of the answer.
    pub(super) const fn at_start(self) -> Self {
        Mark {
            at_start: true,
            ..self
        }
    }
}

/// What a call consists of, in order. Where it branches, the branch replaces the rest.
pub(super) type Program = &'static [Item];

/// One thing that a call consists of.
#[derive(Debug)]
pub(super) enum Item {
    /// White space, or none.
    Space,
    /// This text.
    Text(&'static str),
    /// Goes on as the next character says; if none of these, with the next item.
    When(&'static [(char, Program)]),
    /// The function's name, up to one of the rule's ends.
    Name(&'static NameRule),
    /// Text without meaning here (a call's id), up to one of these.
    Skip(&'static [(&'static str, Program)]),
    /// A JSON object with the name and the arguments.
    Object {
        /// One without arguments is no call.
        needs_arguments: bool,
    },
    /// A JSON object: the arguments.
    Arguments,
    /// Parameters between tags, to the tag behind the last one.
    Parameters(&'static Parameters),
    /// The same, from behind the tag that opens the first key.
    ParametersAtKey(&'static Parameters),
    /// `name(key=value, …)`.
    Python,
    /// `key:value, …}` in Gemma's notation, from behind the opening brace.
    Gemma,
}

/// How a name is written.
#[derive(Debug)]
pub(super) struct NameRule {
    /// What may come before it, as a namespace.
    pub(super) prefix: &'static str,
    /// A colon and a number may follow it.
    pub(super) numbered: bool,
    pub(super) ends: &'static [(&'static str, Program)],
}

/// An output and what must be read in it, whole and at every cut. The tools are [`DECLARED`].
#[cfg(test)]
#[derive(Debug)]
pub(in crate::prompt) struct Case {
    pub(in crate::prompt) what: &'static str,
    pub(in crate::prompt) output: &'static str,
    pub(in crate::prompt) content: &'static str,
    /// Names, and arguments as their exact text.
    pub(in crate::prompt) calls: &'static [(&'static str, &'static str)],
}

#[cfg(test)]
impl Case {
    pub(super) const fn new(
        what: &'static str,
        output: &'static str,
        content: &'static str,
        calls: &'static [(&'static str, &'static str)],
    ) -> Self {
        Case {
            what,
            output,
            content,
            calls,
        }
    }

    /// What looks like a call and is none.
    pub(super) const fn text(what: &'static str, output: &'static str) -> Self {
        Case::new(what, output, output, &[])
    }
}

/// The tools that the cases declare.
#[cfg(test)]
pub(in crate::prompt) const DECLARED: &str = r##"[
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}}}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "edit", "parameters": {"type": "object", "properties": {
        "text": {"type": "string"}, "count": {"type": "integer"}, "ratio": {"type": "number"},
        "flag": {"type": "boolean"}, "list": {"type": "array"}, "object": {"type": "object"},
        "maybe": {"type": ["string", "null"]}, "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "kind": {"enum": ["a", "b"]}, "link": {"$ref": "#/$defs/link"}},
        "$defs": {"link": {"type": "string"}}}}}
]"##;
