//! Calls as the formats write them, said again by hand.

use serde_json::{Value, json};

fn object(name: &str, arguments: &Value, keys: [&str; 2]) -> String {
    let (name, [first, second]) = (json!(name), keys);
    format!("{{\"{first}\": {name}, \"{second}\": {arguments}}}")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(python).collect::<Vec<_>>().join(", ")
            )
        }
        Value::Object(members) => {
            let member =
                |(key, value): (&String, &Value)| format!("{}: {}", json!(key), python(value));
            format!(
                "{{{}}}",
                members.iter().map(member).collect::<Vec<_>>().join(", ")
            )
        }
        other => other.to_string(),
    }
}

fn gemma(value: &Value) -> String {
    match value {
        Value::String(text) => format!("<|\"|>{text}<|\"|>"),
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(gemma).collect::<Vec<_>>().join(",")
            )
        }
        Value::Object(members) => {
            let member = |(key, value): (&String, &Value)| format!("{key}:{}", gemma(value));
            format!(
                "{{{}}}",
                members.iter().map(member).collect::<Vec<_>>().join(",")
            )
        }
        other => other.to_string(),
    }
}

pub(super) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A text with these calls; each format that has another form has it by turns.
pub(super) fn write(format: &str, calls: &[(String, Value)], turn: usize) -> String {
    let parameters = |arguments: &Value, one: &dyn Fn(&str, &Value) -> String| -> String {
        let arguments = arguments.as_object().expect("an object");
        arguments
            .iter()
            .map(|(key, value)| one(key, value))
            .collect()
    };
    let each = |one: &dyn Fn(usize, &str, &Value) -> String, between: &str| -> String {
        let calls = calls.iter().enumerate();
        let texts: Vec<String> = calls
            .map(|(index, (name, arguments))| one(index, name, arguments))
            .collect();
        texts.join(between)
    };
    let list = |keys: [&str; 2], between: &str| {
        each(&|_, name, arguments| object(name, arguments, keys), between)
    };
    let usual = ["name", "arguments"];
    let python_calls = |between: &str| {
        each(
            &|_, name, arguments| {
                let arguments = arguments.as_object().expect("an object");
                let arguments = arguments.iter();
                let arguments: Vec<String> = arguments
                    .map(|(key, value)| format!("{key}={}", python(value)))
                    .collect();
                format!("{name}({})", arguments.join(", "))
            },
            between,
        )
    };
    let odd = turn % 2 == 1;
    match format {
        "hermes" => each(
            &|_, name, arguments| {
                format!(
                    "<tool_call>\n{}\n</tool_call>",
                    object(name, arguments, usual)
                )
            },
            "\n",
        ),
        "granite" => format!("<|tool_call|>[{}]", list(usual, ", ")),
        "phi4" if odd => format!("functools[{}]", list(usual, ", ")),
        "phi4" => format!("<|tool_call|>[{}]<|/tool_call|>", list(usual, ", ")),
        "nemotron" => format!("<TOOLCALL>[{}]</TOOLCALL>", list(usual, ", ")),
        "tool_calls" if odd => format!("<tool_calls>\n{}\n</tool_calls>", list(usual, "\n")),
        "tool_calls" => format!("<tool_calls>[{}]</tool_calls>", list(usual, ", ")),
        "gigachat" if odd => format!(
            "<|message_sep|>\n\nfunction call<|role_sep|>\n{}",
            object(&calls[0].0, &calls[0].1, usual)
        ),
        "gigachat" => format!("<|function_call|>{}", list(usual, "<|function_call|>")),
        "llama3" => object(&calls[0].0, &calls[0].1, ["name", "parameters"]),
        "functionary" => each(
            &|_, name, arguments| format!("<function={name}>{arguments}</function>"),
            "",
        ),
        "deepseek_v3" => format!(
            "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>",
            each(
                &|_, name, arguments| format!(
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"
                ),
                "\n"
            )
        ),
        "deepseek_v31" => format!(
            "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>",
            each(
                &|_, name, arguments| format!(
                    "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"
                ),
                ""
            )
        ),
        "kimi_k2" => format!(
            "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>",
            each(
                &|index, name, arguments| format!(
                    "<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"
                ),
                ""
            )
        ),
        "mistral" if odd => format!("[TOOL_CALLS][{}]", list(usual, ", ")),
        "mistral" => each(
            &|_, name, arguments| format!("[TOOL_CALLS]{name}[ARGS]{arguments}"),
            "",
        ),
        "cohere" if odd => format!(
            "Action: ```json\n[\n    {}\n]```",
            each(
                &|_, name, arguments| format!(
                    "{{\n        \"tool_name\": {},\n        \"parameters\": {arguments}\n    }}",
                    json!(name)
                ),
                ",\n    "
            )
        ),
        "cohere" => format!(
            "<|START_ACTION|>[\n    {}\n]<|END_ACTION|>",
            each(
                &|index, name, arguments| format!(
                    "{{\"tool_call_id\": \"{index}\", \"tool_name\": {}, \"parameters\": {arguments}}}",
                    json!(name)
                ),
                ",\n    "
            )
        ),
        "solar" => format!(
            "{}<|tool_calls|>{}",
            if odd { "<|begin|>assistant" } else { "" },
            each(
                &|index, name, arguments| format!(
                    "<|tool_call:begin|>call-{index}<|tool_call:name|>{name}<|tool_call:args|>{arguments}<|tool_call:end|>"
                ),
                ""
            )
        ),
        "harmony" if odd => format!(
            " to=functions.{}<|channel|>commentary json<|message|>{}",
            calls[0].0, calls[0].1
        ),
        "harmony" => format!(
            "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}",
            calls[0].0, calls[0].1
        ),
        "qwen3_coder" => each(
            &|_, name, arguments| {
                let one = |key: &str, value: &Value| {
                    format!("<parameter={key}>\n{}\n</parameter>\n", plain(value))
                };
                let parameters = parameters(arguments, &one);
                format!("<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>")
            },
            "\n",
        ),
        "glm4" => each(
            &|_, name, arguments| {
                let gap = if odd { "" } else { "\n" };
                let one = |key: &str, value: &Value| {
                    let value = plain(value);
                    format!("<arg_key>{key}</arg_key>{gap}<arg_value>{value}</arg_value>{gap}")
                };
                format!(
                    "<tool_call>{name}{gap}{}</tool_call>",
                    parameters(arguments, &one)
                )
            },
            "\n",
        ),
        "minimax_m2" => format!(
            "<minimax:tool_call>\n{}</minimax:tool_call>",
            each(
                &|_, name, arguments| {
                    let one = |key: &str, value: &Value| {
                        format!("<parameter name=\"{key}\">{}</parameter>\n", plain(value))
                    };
                    let parameters = parameters(arguments, &one);
                    format!("<invoke name=\"{name}\">\n{parameters}</invoke>\n")
                },
                ""
            )
        ),
        "dsml" => {
            let section = if odd { "function_calls" } else { "tool_calls" };
            let calls = each(
                &|_, name, arguments| {
                    let one = |key: &str, value: &Value| {
                        let (is_text, value) = (value.is_string(), plain(value));
                        format!(
                            "<｜DSML｜parameter name=\"{key}\" string=\"{is_text}\">{value}</｜DSML｜parameter>\n"
                        )
                    };
                    let parameters = parameters(arguments, &one);
                    format!("<｜DSML｜invoke name=\"{name}\">\n{parameters}</｜DSML｜invoke>\n")
                },
                "",
            );
            format!("<｜DSML｜{section}>\n{calls}</｜DSML｜{section}>")
        }
        "kimi_k3" => format!(
            "<|open|>tools<|sep|>{}<|close|>tools<|sep|>",
            each(
                &|index, name, arguments| {
                    let one = |key: &str, value: &Value| {
                        format!(
                            "<|open|>argument key=\"{key}\" type=\"{}\"<|sep|>{}<|close|>argument<|sep|>",
                            json_type(value),
                            plain(value)
                        )
                    };
                    format!(
                        "<|open|>call tool=\"{name}\" index=\"{}\"<|sep|>{}<|close|>call<|sep|>",
                        index + 1,
                        parameters(arguments, &one)
                    )
                },
                ""
            )
        ),
        "minicpm" => each(
            &|_, name, arguments| {
                let one = |key: &str, value: &Value| match value {
                    Value::String(text) if odd || text.contains("</param>") => {
                        format!("<param name=\"{key}\"><![CDATA[{text}]]></param>")
                    }
                    value => format!("<param name=\"{key}\">{}</param>", plain(value)),
                };
                format!(
                    "<function name=\"{name}\">{}</function>",
                    parameters(arguments, &one)
                )
            },
            "\n",
        ),
        "pythonic" if odd => format!("<|python_start|>[{}]<|python_end|>", python_calls(", ")),
        "pythonic" => format!("[{}]", python_calls(", ")),
        "lfm2" => format!(
            "<|tool_call_start|>[{}]<|tool_call_end|>",
            python_calls(", ")
        ),
        "gemma3" => format!("```tool_code\n{}\n```", python_calls("\n")),
        "gemma4" => each(
            &|_, name, arguments| {
                format!("<|tool_call>call:{name}{}<tool_call|>", gemma(arguments))
            },
            "",
        ),
        other => panic!("no way to write {other}"),
    }
}

/// Formats in which an answer has one call.
pub(super) fn has_one_call(format: &str, turn: usize) -> bool {
    ["llama3", "harmony"].contains(&format) || (format == "gigachat" && turn % 2 == 1)
}
