//! Tests of the prompt layer as a whole; what belongs to one file is tested in it.

mod detokenizing;
mod forced;
mod parsing;
mod rendering;
mod rules;
mod templates;
