//! Counts above which a request is refused, so that none can make the server do unbounded work.

/// Messages in a conversation.
pub const MESSAGES: usize = 16_384;
/// Parts of one message's content.
pub const CONTENT_PARTS: usize = 4_096;
/// Declared tools.
pub const TOOLS: usize = 1_024;
/// Tool calls in one assistant message.
pub const TOOL_CALLS: usize = 1_024;
/// Stop strings.
pub const STOP_STRINGS: usize = 16;
/// Bytes of one stop string: what the stream may have to hold back.
pub const STOP_STRING_BYTES: usize = 1_024;
/// Entries of `logit_bias`.
pub const LOGIT_BIAS: usize = 1_024;
/// Prompts in one text completion request.
pub const PROMPTS: usize = 64;
/// Choices in `guided_choice`.
pub const CHOICES: usize = 4_096;
/// Bytes of `response_format.json_schema.name`.
pub const SCHEMA_NAME_BYTES: usize = 64;
/// `n`, and all sequences of one request together.
pub const SEQUENCES: i64 = 128;
/// `best_of`, as with OpenAI.
pub const BEST_OF: i64 = 20;
/// `top_logprobs` of a chat request.
pub const TOP_LOGPROBS: i64 = 20;
/// `logprobs` of a text completion.
pub const COMPLETION_LOGPROBS: i64 = 5;
/// Bytes of a tool's or participant's name.
pub const NAME_BYTES: usize = 256;
