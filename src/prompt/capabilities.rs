//! Finding out what a template can take, and how its model writes, by trying it.
//!
//! Templates differ in what they expect, and their text does not say it in any one way. What they make of
//! small conversations does.

use serde_json::{Map, Value as Json, json};

use super::OutputDelta;
use super::conversation::{self, SpecialTokens};
use super::output::{OutputFormat, OutputParser};
use super::template::ChatTemplate;
use super::tools::{self, FORMATS, Format};

/// What a template can take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    /// Prints system messages. If not, they go into the first user message.
    pub(super) system_role: bool,
    /// Knows the role `developer`. If not, it is `system`.
    pub(super) developer_role: bool,
    /// Content must be a list of parts.
    pub(super) content_parts: bool,
    /// Wants an empty list where there are no tools. If not, None.
    pub(super) empty_tools: bool,
    /// Declares tools.
    pub(super) declares_tools: bool,
    /// Writes calls in the form of `tool_format`, which can be read back.
    pub(super) prints_calls: bool,
    /// Prints tools' results.
    pub(super) prints_results: bool,
    /// The form in which it writes calls, or in which the model is told to.
    pub(super) tool_format: &'static Format,
    /// An assistant message that has only calls has content null; else it is empty.
    pub(super) null_content: bool,
    pub(super) arguments: ArgumentsForm,
}

/// The form in which a template prints a call's arguments as they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArgumentsForm {
    /// A mapping (that remembers its text): most templates, also those that print key by key.
    Mapping,
    /// The JSON text: templates that put strings together.
    Text,
}

const TEXT: &str = "probe-user-text";
const SYSTEM: &str = "probe-system-text";
const TOOL: &str = "probe_tool";
const KEY: &str = "probe_key";
const VALUE: &str = "probe-value";
const RESULT: &str = "probe-result";
/// In a form that no serializer writes, so that text that was kept can be told from text made anew.
const ARGUMENTS: &str = "{\"probe_key\":   \"probe-value\"}";

impl Capabilities {
    /// Tries the template out. `wanted`: the configured tool format, if it is not to be found out.
    pub(super) fn of(
        template: &ChatTemplate,
        source: &str,
        tokens: SpecialTokens<'_>,
        wanted: Option<&'static Format>,
    ) -> Self {
        let mut found = Capabilities {
            system_role: true,
            developer_role: source.contains("developer"),
            content_parts: false,
            empty_tools: false,
            declares_tools: false,
            prints_calls: false,
            prints_results: false,
            tool_format: wanted.unwrap_or(tools::GENERIC),
            null_content: true,
            arguments: ArgumentsForm::Mapping,
        };
        let probe = Probe { template, tokens };
        let user = json!({ "role": "user", "content": TEXT });
        let prints = |found: &Capabilities, messages: &[Json], tools: &[Json], text: &str| {
            probe
                .render(found, messages, tools, true)
                .is_some_and(|rendered| rendered.contains(text))
        };
        let variants = [(false, false), (true, false), (false, true), (true, true)];
        for (content_parts, empty_tools) in variants {
            let tried = Capabilities {
                content_parts,
                empty_tools,
                ..found
            };
            if prints(&tried, std::slice::from_ref(&user), &[], TEXT) {
                found = tried;
                break;
            }
        }
        let system = json!({ "role": "system", "content": SYSTEM });
        found.system_role = prints(&found, &[system.clone(), user.clone()], &[], SYSTEM);

        let tools = [json!({ "type": "function", "function": {
            "name": TOOL,
            "description": "A tool.",
            "parameters": { "type": "object", "properties": { KEY: { "type": "string", "description": "A value." } }, "required": [KEY] },
        }})];
        found.declares_tools = prints(&found, std::slice::from_ref(&user), &tools, TOOL);
        let formats: &[&'static Format] = match &wanted {
            Some(format) => std::slice::from_ref(format),
            None => FORMATS,
        };
        // In order of preference.
        let forms = [
            (ArgumentsForm::Mapping, true),
            (ArgumentsForm::Text, true),
            (ArgumentsForm::Mapping, false),
            (ArgumentsForm::Text, false),
        ];
        for (arguments, verbatim) in forms {
            for null_content in [true, false] {
                let tried = Capabilities {
                    arguments,
                    null_content,
                    ..found
                };
                let messages = call_messages(null_content);
                let Some(rendered) = probe.render(&tried, &messages, &tools, true) else {
                    continue;
                };
                let kept = if verbatim {
                    rendered.contains(ARGUMENTS)
                } else {
                    rendered.contains(KEY) && rendered.contains(VALUE)
                };
                if !kept || rendered.contains("None") {
                    continue;
                }
                // What the model would have written, up to the end of the conversation.
                let written: Vec<(String, &str)> = [true, false]
                    .into_iter()
                    .filter_map(|generate| {
                        let prompt =
                            probe.render(&tried, std::slice::from_ref(&user), &tools, generate)?;
                        let written = rendered.strip_prefix(&prompt)?;
                        Some((prompt, written))
                    })
                    .collect();
                if let Some(tool_format) = best_reader(formats, &written, &rendered, &tools) {
                    // Without a declaration by the template the model is told how to call.
                    let told = !found.declares_tools && tool_format.written.is_none();
                    return Capabilities {
                        prints_calls: found.declares_tools,
                        prints_results: true,
                        tool_format: if told { tools::GENERIC } else { tool_format },
                        ..tried
                    };
                }
            }
        }
        // It prints no calls, or in a form that is not known.
        if found.declares_tools {
            let hinted = |format: &&&'static Format| {
                format.hints.iter().any(|hint| source.contains(hint)) && format.written.is_some()
            };
            if let Some(format) = FORMATS.iter().find(hinted).filter(|_| wanted.is_none()) {
                found.tool_format = format;
            } else if wanted.is_none() {
                // The model would be shown tools without being told how to call them.
                found.declares_tools = false;
            }
            let messages = [
                user,
                json!({ "role": "assistant", "content": TEXT }),
                json!({ "role": "tool", "tool_call_id": "probe0001", "name": TOOL, "content": RESULT }),
            ];
            found.prints_results = prints(&found, &messages, &tools, RESULT);
        } else if found.tool_format.written.is_none() {
            found.tool_format = tools::GENERIC;
        }
        found
    }
}

/// Of the formats that find the probe's call in what was written behind a prompt, the one that leaves the
/// least of it as text.
fn best_reader(
    formats: &[&'static Format],
    written: &[(String, &str)],
    rendered: &str,
    tools: &[Json],
) -> Option<&'static Format> {
    let mut best: Option<(usize, &'static Format)> = None;
    for &format in formats {
        let behind_prompts = written
            .iter()
            .filter_map(|(prompt, written)| text_beside_call(format, prompt, written, tools));
        // A template may rewrite what precedes the answer; the whole text has it all the same.
        let left = behind_prompts
            .min()
            .or_else(|| text_beside_call(format, "", rendered, tools));
        if let Some(left) = left
            && best.is_none_or(|(least, _)| left < least)
        {
            best = Some((left, format));
        }
    }
    best.map(|(_, format)| format)
}

/// How much text there is beside the probe's call, if that is exactly what this format reads.
fn text_beside_call(
    format: &'static Format,
    prompt: &str,
    written: &str,
    tools: &[Json],
) -> Option<usize> {
    let output_format = OutputFormat {
        reasoning: None,
        tools: format,
    };
    let mut parser = OutputParser::new(&output_format.options(prompt, tools), output_format);
    let mut deltas = parser.push(written);
    deltas.extend(parser.finish());
    let (mut left, mut found) = (0, String::new());
    for delta in deltas {
        match delta {
            OutputDelta::Content(text) | OutputDelta::Reasoning(text) => left += text.len(),
            OutputDelta::ToolCallStart { index: 0, name } if name == TOOL => {}
            OutputDelta::ToolCallStart { .. } => return None,
            OutputDelta::ToolCallArguments { text, .. } => found.push_str(&text),
        }
    }
    let found: Json = serde_json::from_str(&found).ok()?;
    (found == json!({ KEY: VALUE })).then_some(left)
}

/// A conversation with one call.
fn call_messages(null_content: bool) -> [Json; 3] {
    let content = if null_content {
        Json::Null
    } else {
        Json::from("")
    };
    [
        json!({ "role": "user", "content": TEXT }),
        json!({ "role": "assistant", "content": content, "tool_calls": [
            { "id": "probe0001", "type": "function", "function": { "name": TOOL, "arguments": ARGUMENTS } },
        ]}),
        json!({ "role": "tool", "tool_call_id": "probe0001", "name": TOOL, "content": RESULT }),
    ]
}

struct Probe<'a> {
    template: &'a ChatTemplate,
    tokens: SpecialTokens<'a>,
}

impl Probe<'_> {
    fn render(
        &self,
        capabilities: &Capabilities,
        messages: &[Json],
        tools: &[Json],
        generate: bool,
    ) -> Option<String> {
        let context = conversation::context(
            messages,
            tools,
            &Map::new(),
            generate,
            self.tokens,
            capabilities,
        );
        self.template.render(context).ok()
    }
}
