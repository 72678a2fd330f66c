//! The formats, a file for each: its table, and the cases that it must read at every cut.

mod cohere;
mod deepseek_v3;
mod deepseek_v31;
mod dsml;
mod functionary;
mod gemma3;
mod gemma4;
mod gigachat;
mod glm4;
mod granite;
mod harmony;
pub(super) mod hermes;
mod kimi_k2;
mod kimi_k3;
mod lfm2;
mod llama3;
mod minicpm;
mod minimax_m2;
mod mistral;
mod nemotron;
mod phi4;
mod pythonic;
mod qwen3_coder;
mod solar;
mod tool_calls;

use super::item::{Format, Item};

/// All formats. Of two that read a template's calls equally well, the first is taken.
pub(in crate::prompt) const FORMATS: &[&Format] = &[
    &hermes::FORMAT,
    &qwen3_coder::FORMAT,
    &glm4::FORMAT,
    &llama3::FORMAT,
    &pythonic::FORMAT,
    &mistral::FORMAT,
    &deepseek_v3::FORMAT,
    &deepseek_v31::FORMAT,
    &dsml::FORMAT,
    &kimi_k2::FORMAT,
    &kimi_k3::FORMAT,
    &minimax_m2::FORMAT,
    &gemma3::FORMAT,
    &gemma4::FORMAT,
    &granite::FORMAT,
    &phi4::FORMAT,
    &cohere::FORMAT,
    &nemotron::FORMAT,
    &lfm2::FORMAT,
    &tool_calls::FORMAT,
    &functionary::FORMAT,
    &gigachat::FORMAT,
    &minicpm::FORMAT,
    &solar::FORMAT,
    &harmony::FORMAT,
];

/// A call as an object.
const OBJECT: &[Item] = &[
    Item::Space,
    Item::Object {
        needs_arguments: false,
    },
];
/// The first call of a list of objects.
const LIST: &[Item] = &[
    Item::Text("["),
    Item::Space,
    Item::Object {
        needs_arguments: false,
    },
];
/// A list of objects, or one object.
const LIST_OR_OBJECT: &[Item] = &[
    Item::Space,
    Item::When(&[('[', LIST)]),
    Item::Object {
        needs_arguments: false,
    },
];
