//! Tokens to text, one at a time.

use std::collections::HashSet;
use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::grammar::TokenBytes;
use crate::ids::TokenId;

/// Turns a sequence's tokens into text as they come: whole characters only, special tokens left out.
///
/// The pieces together are what the tokenizer's own `decode` gives for all the tokens at once, with one
/// difference: where a run of SentencePiece byte tokens is not valid UTF-8, `decode` turns the whole run
/// into replacement characters and this only its invalid bytes. Each token costs the same, however long
/// the text has become.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokens: Arc<TokenTexts>,
    /// Bytes that do not yet make a whole character (byte-level), or the open run of byte tokens.
    bytes: Vec<u8>,
    /// How many leading characters may still be stripped from the text.
    strip_left: usize,
    /// No token has been seen yet that was not left out.
    first: bool,
    /// For [`Scheme::Window`].
    window: Window,
}

/// What a tokenizer's decoder does, as far as it can be told token by token. Shared by all detokenizers
/// of a model.
#[derive(Debug)]
pub(super) struct TokenTexts {
    tokenizer: Arc<Tokenizer>,
    scheme: Scheme,
    /// Special tokens that are not part of the text.
    hidden: HashSet<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Scheme {
    /// GPT-2's byte-to-character alphabet.
    ByteLevel,
    /// SentencePiece-like: replacements in each token, byte tokens, characters stripped at the start.
    Pieces {
        replacements: Vec<(String, String)>,
        byte_tokens: bool,
        strip: Option<(char, usize)>,
    },
    /// A space for each marker, none in the first token.
    Metaspace { marker: char, drop_in_first: bool },
    /// Any other decoder: decode a short window of tokens each time and take what is new.
    Window,
}

/// The last tokens, for decoders that cannot be followed token by token: those whose text was given out
/// only serve as context for the rest.
#[derive(Debug, Clone, Default)]
struct Window {
    tokens: Vec<u32>,
    given: usize,
}

/// A window that never shows a whole character is given out after this many tokens.
const WINDOW_LIMIT: usize = 64;

impl TokenTexts {
    /// `keep`: texts that mark tool calls or reasoning. Special tokens in them are part of the text all the
    /// same.
    pub(super) fn new(tokenizer: Arc<Tokenizer>, keep: &[&str]) -> Self {
        let hidden = tokenizer
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special && !is_in(&token.content, keep))
            .map(|(id, _)| *id)
            .collect();
        let scheme = match tokenizer.get_decoder() {
            Some(decoder) => match serde_json::to_value(decoder) {
                Ok(description) => Scheme::of(&description),
                Err(_) => Scheme::Window,
            },
            None => Scheme::Window,
        };
        TokenTexts {
            tokenizer,
            scheme,
            hidden,
        }
    }

    /// What a token adds to a text, not at its start. None: its decoder cannot be followed token by token.
    pub(super) fn bytes_of(&self, token: u32) -> Option<TokenBytes> {
        let Some(mut piece) = self.tokenizer.id_to_token(token) else {
            return Some(TokenBytes::Unused);
        };
        if self.hidden.contains(&token) {
            return Some(TokenBytes::Control(piece));
        }
        match &self.scheme {
            Scheme::ByteLevel => {
                let mut bytes = Vec::new();
                push_byte_level(&piece, &mut bytes);
                Some(TokenBytes::Text(bytes))
            }
            Scheme::Metaspace { marker, .. } => {
                Some(TokenBytes::Text(piece.replace(*marker, " ").into_bytes()))
            }
            Scheme::Pieces {
                replacements,
                byte_tokens,
                ..
            } => {
                replace_all(&mut piece, replacements);
                Some(TokenBytes::Text(match byte_token(&piece) {
                    Some(byte) if *byte_tokens => vec![byte],
                    _ => piece.into_bytes(),
                }))
            }
            Scheme::Window => None,
        }
    }

    fn decode(&self, tokens: &[u32]) -> String {
        // Special tokens are already left out. Decoding known tokens fails only where a decoder does, and
        // then there is no text to give.
        self.tokenizer.decode(tokens, false).unwrap_or_default()
    }
}

/// A token's text is in one of these. (White space and single characters are in too many.)
fn is_in(token: &str, texts: &[&str]) -> bool {
    token.trim().len() > 1 && texts.iter().any(|text| text.contains(token))
}

impl Scheme {
    /// From a decoder as tokenizer.json describes it.
    fn of(decoder: &serde_json::Value) -> Scheme {
        let kind =
            |value: &serde_json::Value| value["type"].as_str().unwrap_or_default().to_string();
        let steps = match kind(decoder).as_str() {
            "Sequence" => decoder["decoders"].as_array().cloned().unwrap_or_default(),
            _ => vec![decoder.clone()],
        };
        if let [only] = steps.as_slice() {
            match kind(only).as_str() {
                "ByteLevel" => return Scheme::ByteLevel,
                "Metaspace" => {
                    let mut marker = only["replacement"].as_str().unwrap_or_default().chars();
                    if let (Some(marker), None) = (marker.next(), marker.next()) {
                        let drop_in_first = only["prepend_scheme"] != "never";
                        return Scheme::Metaspace {
                            marker,
                            drop_in_first,
                        };
                    }
                    return Scheme::Window;
                }
                _ => {}
            }
        }
        let (mut replacements, mut byte_tokens, mut fused, mut strip) =
            (Vec::new(), false, false, None);
        for step in &steps {
            match kind(step).as_str() {
                "Replace" if !byte_tokens && !fused => {
                    match (step["pattern"]["String"].as_str(), step["content"].as_str()) {
                        (Some(pattern), Some(content)) if !pattern.is_empty() => {
                            replacements.push((pattern.to_string(), content.to_string()));
                        }
                        _ => return Scheme::Window,
                    }
                }
                "ByteFallback" if !byte_tokens && !fused => byte_tokens = true,
                "Fuse" if !fused => fused = true,
                "Strip" if fused && strip.is_none() && step["stop"] == 0 => {
                    let mut content = step["content"].as_str().unwrap_or_default().chars();
                    match (content.next(), content.next(), step["start"].as_u64()) {
                        (Some(character), None, Some(start)) => {
                            strip = Some((character, usize::try_from(start).unwrap_or(usize::MAX)));
                        }
                        _ => return Scheme::Window,
                    }
                }
                _ => return Scheme::Window,
            }
        }
        Scheme::Pieces {
            replacements,
            byte_tokens,
            strip,
        }
    }
}

impl Detokenizer {
    /// For a text of its own, as `decode` gives it.
    pub(super) fn new(tokens: Arc<TokenTexts>) -> Self {
        let strip_left = match &tokens.scheme {
            Scheme::Pieces {
                strip: Some((_, count)),
                ..
            } => *count,
            _ => 0,
        };
        Detokenizer {
            tokens,
            bytes: Vec::new(),
            strip_left,
            first: true,
            window: Window::default(),
        }
    }

    /// For text that continues other text: nothing is stripped at its start.
    pub(super) fn continuing(tokens: Arc<TokenTexts>) -> Self {
        Detokenizer {
            strip_left: 0,
            first: false,
            ..Detokenizer::new(tokens)
        }
    }

    /// Takes the next token and gives the text that is now certain, in whole characters (maybe none).
    pub fn push(&mut self, token: TokenId) -> String {
        let tokens = Arc::clone(&self.tokens);
        if tokens.hidden.contains(&token.0) {
            return String::new();
        }
        let Some(piece) = tokens.tokenizer.id_to_token(token.0) else {
            return String::new();
        };
        let first = std::mem::replace(&mut self.first, false);
        match &tokens.scheme {
            Scheme::ByteLevel => {
                push_byte_level(&piece, &mut self.bytes);
                take_characters(&mut self.bytes)
            }
            Scheme::Metaspace {
                marker,
                drop_in_first,
            } => {
                let replacement = if first && *drop_in_first { "" } else { " " };
                piece.replace(*marker, replacement)
            }
            Scheme::Pieces {
                replacements,
                byte_tokens,
                strip,
            } => {
                let mut piece = piece;
                replace_all(&mut piece, replacements);
                let text = match byte_token(&piece) {
                    Some(byte) if *byte_tokens => {
                        self.bytes.push(byte);
                        take_run_characters(&mut self.bytes)
                    }
                    _ => end_run(&mut self.bytes) + &piece,
                };
                self.strip(text, *strip)
            }
            Scheme::Window => self.push_window(token.0),
        }
    }

    /// The bytes that a token stands for within a text; special tokens stand for their names.
    pub fn token_bytes(&self, token: TokenId) -> Vec<u8> {
        match self.tokens.bytes_of(token.0) {
            Some(TokenBytes::Text(bytes)) => bytes,
            Some(TokenBytes::Control(name)) => name.into_bytes(),
            Some(TokenBytes::Unused) => Vec::new(),
            None => self.tokens.decode(&[token.0]).into_bytes(),
        }
    }

    /// The output is complete: gives what was held back. An incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let tokens = Arc::clone(&self.tokens);
        match &tokens.scheme {
            Scheme::ByteLevel => {
                String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned()
            }
            Scheme::Pieces { strip, .. } => {
                let text = end_run(&mut self.bytes);
                self.strip(text, *strip)
            }
            Scheme::Metaspace { .. } => String::new(),
            Scheme::Window => {
                let text = self.window.new_text(&tokens);
                self.window = Window::default();
                text
            }
        }
    }

    fn strip(&mut self, text: String, strip: Option<(char, usize)>) -> String {
        let Some((character, _)) = strip else {
            return text;
        };
        let mut rest = text.as_str();
        while self.strip_left > 0 && !rest.is_empty() {
            match rest.strip_prefix(character) {
                Some(stripped) => {
                    rest = stripped;
                    self.strip_left -= 1;
                }
                None => self.strip_left = 0,
            }
        }
        rest.to_string()
    }

    fn push_window(&mut self, token: u32) -> String {
        self.window.tokens.push(token);
        let text = self.window.new_text(&self.tokens);
        let incomplete = text.ends_with(char::REPLACEMENT_CHARACTER);
        if incomplete && self.window.tokens.len() - self.window.given < WINDOW_LIMIT {
            return String::new();
        }
        self.window.tokens.drain(..self.window.given);
        self.window.given = self.window.tokens.len();
        text
    }
}

impl Window {
    /// What the tokens that were not given out add to the text of those that were.
    fn new_text(&self, tokens: &TokenTexts) -> String {
        let context = tokens.decode(&self.tokens[..self.given]);
        let mut text = tokens.decode(&self.tokens);
        if text.starts_with(&context) {
            text.split_off(context.len())
        } else {
            text
        }
    }
}

fn replace_all(piece: &mut String, replacements: &[(String, String)]) {
    for (pattern, content) in replacements {
        if piece.contains(pattern.as_str()) {
            *piece = piece.replace(pattern.as_str(), content);
        }
    }
}

/// The value of a `<0x0A>` token.
fn byte_token(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// Appends the bytes that a byte-level token stands for. A token with a character outside GPT-2's
/// alphabet (an added token with a space, for example) stands for its own UTF-8.
fn push_byte_level(piece: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in piece.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(piece.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's alphabet backwards: printable Latin-1 characters stand for themselves, the other 68 bytes, in
/// order, are the characters from U+0100.
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|byte| printable(*byte)),
        // Bytes 0x00..=0x20, then 0x7f..=0xa0, then 0xad.
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Takes all whole characters from the front, with U+FFFD for what can never become one, as
/// `String::from_utf8_lossy` does. What remains is the beginning of a character.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                bytes.clear();
                return text;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[..valid]));
                let Some(invalid) = error.error_len() else {
                    bytes.drain(..valid);
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes.drain(..valid + invalid);
            }
        }
    }
}

/// As [`take_characters`], with one U+FFFD for each invalid byte, as the byte-fallback decoder does.
fn take_run_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    while let Err(error) = std::str::from_utf8(bytes) {
        let valid = error.valid_up_to();
        text.push_str(&String::from_utf8_lossy(&bytes[..valid]));
        let Some(invalid) = error.error_len() else {
            bytes.drain(..valid);
            return text;
        };
        text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, invalid));
        bytes.drain(..valid + invalid);
    }
    text.push_str(&String::from_utf8_lossy(bytes));
    bytes.clear();
    text
}

/// The run of byte tokens is over: what is left of it is no character.
fn end_run(bytes: &mut Vec<u8>) -> String {
    let text = std::iter::repeat_n(char::REPLACEMENT_CHARACTER, bytes.len()).collect();
    bytes.clear();
    text
}
