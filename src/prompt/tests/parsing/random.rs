//! Random output against a plain reading of the whole text.

use proptest::prelude::*;
use serde_json::Value;

use super::{Parsed, parse};

/// The same reading, of the whole text at once, by other means.
fn naive(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let mut rest = text;
    let trimmed = text.trim_start();
    if let Some(inner) = trimmed.strip_prefix("<think>") {
        let (reasoning, answer) = match inner.split_once("</think>") {
            Some((reasoning, answer)) => (reasoning, answer.trim_start_matches('\n')),
            None => (inner, ""),
        };
        parsed.reasoning = reasoning.trim_matches('\n').to_string();
        rest = answer;
    }
    // Text between calls, joined; a call's tags and the newline before it are no text.
    let mut between = String::new();
    while let Some(start) = rest.find("<tool_call>") {
        let inside = &rest[start + "<tool_call>".len()..];
        let mut values = serde_json::Deserializer::from_str(inside)
            .into_iter::<serde_json::Map<String, Value>>();
        let call = match values.next() {
            Some(Ok(object)) => object["name"]
                .as_str()
                .map(|name| (name.to_string(), object["arguments"].to_string())),
            _ => None,
        };
        match call {
            Some(call) => {
                between.push_str(&rest[..start]);
                push_text(&mut parsed, &between, true);
                between.clear();
                parsed.calls.push(call);
                rest = &inside[values.byte_offset()..];
                let closed = rest.trim_start();
                rest = closed.strip_prefix("</tool_call>").unwrap_or(rest);
            }
            None => {
                between.push_str(&rest[..start + "<tool_call>".len()]);
                rest = inside;
            }
        }
    }
    between.push_str(rest);
    push_text(&mut parsed, &between, false);
    parsed
}

fn push_text(parsed: &mut Parsed, text: &str, before_call: bool) {
    let is_space = text.trim().is_empty();
    if is_space && (before_call || !parsed.calls.is_empty()) {
        return;
    }
    parsed.content += if before_call {
        text.strip_suffix('\n').unwrap_or(text)
    } else {
        text
    };
}

/// Pieces of output: well-formed calls, texts, and things that look like markup.
fn output() -> impl Strategy<Value = String> {
    let json = prop_oneof![
        Just("1".to_string()),
        Just("-2.5".to_string()),
        Just("null".to_string()),
        "[a-z<>{}é ]{0,6}".prop_map(|text| Value::from(text).to_string()),
        Just("[1,{\"x\":[]}]".to_string()),
    ];
    let call = (
        "[a-z]{1,4}",
        proptest::collection::vec(("[a-z\"]{0,3}", json), 0..3),
    )
        .prop_map(|(name, fields)| {
            let fields: serde_json::Map<String, Value> = fields
                .into_iter()
                .map(|(key, value)| (key, serde_json::from_str(&value).unwrap_or_default()))
                .collect();
            format!(
                "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {}}}\n</tool_call>",
                Value::from(fields)
            )
        });
    let piece = prop_oneof![
        3 => call,
        2 => "[a-z \n🙂]{0,6}",
        1 => Just("<tool_call>".to_string()),
        1 => Just("<tool_".to_string()),
        1 => Just("<".to_string()),
        1 => Just("</think>".to_string()),
    ];
    let opening = prop_oneof![3 => Just(String::new()), 1 => "[a-z\n<]{0,6}".prop_map(|text| format!("<think>\n{text}\n</think>\n\n"))];
    (opening, proptest::collection::vec(piece, 0..6))
        .prop_map(|(opening, pieces)| opening + &pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn equals_reading_the_whole_text(text in output(), cuts in proptest::collection::vec(0usize..400, 0..12)) {
        // Behind the last call, `<tool_call>` could only be told from text by rules of the parser itself.
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).filter(|&cut| text.is_char_boundary(cut)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        prop_assert_eq!(parse(false, pieces), naive(&text));
    }

    #[test]
    fn any_text_at_any_split_gives_the_same(text in r#"[<>/toolcathink_{}":,nameargu1\\ \n]{0,60}"#, open in any::<bool>(), cuts in proptest::collection::vec(0usize..64, 0..8)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        prop_assert_eq!(parse(open, pieces), parse(open, [text.as_str()]));
    }
}
