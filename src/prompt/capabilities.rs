//! Finding out what a template can take, by trying it.
//!
//! Templates differ in what they expect, and their text does not say it in any one way. What they make of
//! small conversations does.

use serde_json::{Map, Value as Json, json};

use super::OutputDelta;
use super::conversation::{self, SpecialTokens};
use super::output::{OutputParser, ParserOptions};
use super::template::ChatTemplate;
use super::tools::ToolFormat;

/// What a template can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Prints system messages. If not, they go into the first user message.
    pub(super) system_role: bool,
    /// Knows the role `developer`. If not, it is `system`.
    pub(super) developer_role: bool,
    /// Content must be a list of parts.
    pub(super) content_parts: bool,
    /// Wants an empty list where there are no tools. If not, None.
    pub(super) empty_tools: bool,
    /// Declares tools and writes calls in a form that can be read back.
    pub(super) native_tools: bool,
    /// The form in which it writes calls, or in which the model is told to.
    pub(super) tool_format: ToolFormat,
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
/// In a form that no serializer writes, so that text that was kept can be told from text made anew.
const ARGUMENTS: &str = "{\"probe_key\":   \"probe-value\"}";

impl Capabilities {
    /// Tries the template out.
    pub(super) fn of(
        template: &ChatTemplate,
        source: &str,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Self {
        let mut found = Capabilities {
            system_role: true,
            developer_role: source.contains("developer"),
            content_parts: false,
            empty_tools: false,
            native_tools: false,
            tool_format: ToolFormat::Tagged,
            null_content: true,
            arguments: ArgumentsForm::Mapping,
        };
        let probe = Probe {
            template,
            tokens: SpecialTokens { bos, eos },
        };
        let user = json!({ "role": "user", "content": TEXT });
        let prints = |found: &Capabilities, messages: &[Json], tools: &[Json], text: &str| {
            probe
                .render(found, messages, tools)
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
        let declares = prints(&found, std::slice::from_ref(&user), &tools, TOOL);
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
                let Some(rendered) = probe.render(&tried, &messages, &tools) else {
                    continue;
                };
                let kept = if verbatim {
                    rendered.contains(ARGUMENTS)
                } else {
                    rendered.contains(KEY) && rendered.contains(VALUE)
                };
                if kept && !rendered.contains("None") {
                    // What the model would have written, up to the end of the conversation.
                    let prompt = probe
                        .render(&tried, std::slice::from_ref(&user), &tools)
                        .unwrap_or_default();
                    let written = rendered.strip_prefix(&prompt).unwrap_or_default();
                    let format = if reads_back(&rendered, ToolFormat::Tagged) {
                        Some(ToolFormat::Tagged)
                    } else if reads_back(written, ToolFormat::Bare) {
                        Some(ToolFormat::Bare)
                    } else {
                        None
                    };
                    return match format {
                        Some(tool_format) if declares => Capabilities {
                            native_tools: true,
                            tool_format,
                            ..tried
                        },
                        _ => tried,
                    };
                }
            }
        }
        found
    }
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
        json!({ "role": "tool", "tool_call_id": "probe0001", "name": TOOL, "content": "probe-result" }),
    ]
}

/// The call in a rendered conversation is one that the parser finds.
fn reads_back(rendered: &str, format: ToolFormat) -> bool {
    let mut parser = OutputParser::new(
        &ParserOptions {
            tools: true,
            reasoning_open: false,
        },
        false,
        format,
    );
    let mut deltas = parser.push(rendered);
    deltas.extend(parser.finish());
    let call = deltas.iter().find_map(|delta| match delta {
        OutputDelta::ToolCallStart { index, name } if name == TOOL => Some(*index),
        _ => None,
    });
    deltas.iter().any(|delta| {
        matches!(delta, OutputDelta::ToolCallArguments { index, text } if Some(*index) == call && text.contains(VALUE))
    })
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
    ) -> Option<String> {
        let context = conversation::context(
            messages,
            tools,
            &Map::new(),
            true,
            self.tokens,
            capabilities,
        );
        self.template.render(context).ok()
    }
}
