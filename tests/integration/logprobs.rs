//! Log probabilities: of chats and text completions, whole and streamed, of output and prompt.

use std::path::Path;
use std::thread;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::support::TestServer;

const TEXT: &str = "/v1/completions";

fn sky() -> Value {
    json!({
        "messages": [{"role": "user", "content": "What color is the sky?"}],
        "temperature": 0, "max_tokens": 24, "logprobs": true, "top_logprobs": 5,
    })
}

/// `body` with some members replaced.
fn with(body: &Value, members: Value) -> Value {
    let mut body = body.clone();
    for (name, value) in members.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn complete(server: &TestServer, body: &Value) -> Value {
    let response = server.post(TEXT, body);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

fn entries(choice: &Value) -> Vec<Value> {
    let content = choice["logprobs"]["content"].as_array();
    content
        .unwrap_or_else(|| panic!("{choice} has log probabilities"))
        .clone()
}

/// The text of tokens, put together from their bytes.
fn text_of(entries: &[Value]) -> String {
    let bytes = entries.iter().flat_map(|entry| {
        let bytes = entry["bytes"].as_array().expect("bytes").iter();
        bytes.map(|byte| byte.as_u64().expect("a byte") as u8)
    });
    String::from_utf8(bytes.collect()).expect("whole characters")
}

fn tokenizer() -> Tokenizer {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/tokenizer.json");
    Tokenizer::from_file(demo).expect("a tokenizer")
}

#[test]
fn chats_tell_each_token_and_what_was_likeliest_in_its_place() {
    let server = TestServer::start();
    let answer = server.chat(&sky());
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "The sky is blue.");
    let entries = entries(choice);
    assert_eq!(text_of(&entries), "The sky is blue.");
    // The end token was sampled, and is no text.
    assert_eq!(answer["usage"]["completion_tokens"], entries.len() + 1);
    for entry in &entries {
        let token = entry["token"].as_str().expect("a text");
        assert_eq!(entry["bytes"], json!(token.as_bytes()));
        let top = entry["top_logprobs"].as_array().expect("a list");
        assert_eq!(top.len(), 5);
        let logprobs: Vec<f64> = top
            .iter()
            .map(|entry| entry["logprob"].as_f64().expect("a number"))
            .collect();
        assert!(logprobs.is_sorted_by(|a, b| a >= b), "{logprobs:?}");
        let mass: f64 = logprobs.iter().map(|logprob| logprob.exp()).sum();
        assert!(mass <= 1.0 + 1e-5, "{mass}");
        // Greedy: the token is the likeliest.
        assert_eq!(top[0]["token"], entry["token"]);
        assert_eq!(top[0]["logprob"], entry["logprob"]);
        assert_eq!(top[0]["bytes"], entry["bytes"]);
    }
    assert_eq!(choice["logprobs"]["refusal"], Value::Null);

    let bare = server.chat(&with(&sky(), json!({"top_logprobs": null})));
    let bare = self::entries(&bare["choices"][0]);
    assert_eq!(bare[0]["top_logprobs"], json!([]));
    assert_eq!(bare[3]["logprob"], entries[3]["logprob"]);
    let without = server.chat(&with(
        &sky(),
        json!({"logprobs": false, "top_logprobs": null}),
    ));
    assert_eq!(without["choices"][0]["logprobs"], Value::Null);
}

#[test]
fn a_stream_tells_them_with_the_text_they_belong_to() {
    let server = TestServer::start();
    let whole = entries(&server.chat(&sky())["choices"][0]);
    let mut streamed = Vec::new();
    for event in server.stream_chat(&sky()).into_done() {
        let chunk = event.json();
        let Some(choice) = chunk["choices"].get(0) else {
            continue;
        };
        let text = choice["delta"]["content"].as_str().unwrap_or_default();
        if text.is_empty() {
            assert!(choice["logprobs"].is_null(), "{choice}");
        } else {
            let entries = entries(choice);
            assert_eq!(text_of(&entries), text);
            streamed.extend(entries);
        }
    }
    assert_eq!(streamed, whole);
}

#[test]
fn they_are_the_models_own_whatever_is_sampled() {
    let server = TestServer::start();
    let body = with(&sky(), json!({"max_tokens": 1, "top_logprobs": 20}));
    let plain = entries(&server.chat(&body)["choices"][0]).remove(0);
    let unlikely = plain["top_logprobs"][7].clone();
    let name = unlikely["token"].as_str().expect("a text");
    let tokenizer = tokenizer();
    let encoded = tokenizer.encode_fast(name, false).expect("it encodes");
    let [id] = encoded.get_ids() else {
        panic!("{name:?} is one token");
    };
    let bias = json!({(id.to_string()): 100});
    let forced = with(
        &body,
        json!({"logit_bias": bias, "temperature": 1.3, "top_k": 5, "repetition_penalty": 1.2}),
    );
    let forced = entries(&server.chat(&forced)["choices"][0]).remove(0);
    assert_eq!(forced["token"], unlikely["token"]);
    assert_eq!(forced["logprob"], unlikely["logprob"]);
    assert_eq!(forced["top_logprobs"], plain["top_logprobs"]);
}

#[test]
fn they_are_the_same_alone_and_in_company() {
    let server = TestServer::start();
    let alone = server.chat(&sky())["choices"].clone();
    thread::scope(|scope| {
        let company: Vec<_> = (0..6)
            .map(|index| {
                let server = &server;
                scope.spawn(move || match index % 2 {
                    0 => server.chat(&sky())["choices"].clone(),
                    _ => {
                        let other = json!({"messages": [{"role": "user", "content": format!("Count to {index}")}],
                            "max_tokens": 40, "ignore_eos": true, "temperature": 1});
                        server.chat(&other);
                        server.chat(&sky())["choices"].clone()
                    }
                })
            })
            .collect();
        for answer in company {
            assert_eq!(answer.join().expect("an answer"), alone);
        }
    });
}

#[test]
fn stop_strings_take_their_tokens_with_them() {
    let server = TestServer::start();
    for (stop, content) in [
        (" blue", "The sky is"),
        ("is b", "The sky "),
        ("The", ""),
        ("ky", "The s"),
    ] {
        let body = with(
            &sky(),
            json!({"stop": ["never", stop, "nowhere", "nothing"]}),
        );
        let answer = server.chat(&body);
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], content, "{stop}");
        assert_eq!(choice["finish_reason"], "stop");
        let told = match choice["logprobs"]["content"].as_array() {
            Some(told) => text_of(told),
            None => String::new(),
        };
        // The last token may begin before the stop string and end in it.
        assert!(told.starts_with(content), "{told:?} for {stop:?}");
        assert!(!told.contains(stop) || content.ends_with('s'), "{told:?}");
        let (mut text, mut streamed) = (String::new(), Vec::new());
        for event in server.stream_chat(&body).into_done() {
            let choice = event.json()["choices"][0].clone();
            text += choice["delta"]["content"].as_str().unwrap_or_default();
            streamed.extend(
                choice["logprobs"]["content"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
            );
        }
        assert_eq!(text, content);
        assert_eq!(text_of(&streamed), told);
    }
}

#[test]
fn reasoning_and_tool_calls_are_told_as_the_model_wrote_them() {
    let server = TestServer::start();
    let body = json!({
        "messages": [{"role": "user", "content": "You must call the weather tool for Berlin. Do not answer directly."}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}],
        "temperature": 0, "max_tokens": 100, "logprobs": true,
    });
    let whole = server.chat(&body);
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let entries = entries(choice);
    let written = text_of(&entries);
    assert!(
        written.starts_with("<tool_call>") && written.contains("\"Berlin\""),
        "{written}"
    );
    let mut streamed = Vec::new();
    for event in server.stream_chat(&body).into_done() {
        let told = event.json()["choices"][0]["logprobs"]["content"].clone();
        streamed.extend(told.as_array().cloned().unwrap_or_default());
    }
    assert_eq!(streamed, entries);
}

#[test]
fn end_tokens_that_are_ignored_are_never_sampled() {
    let server = TestServer::start();
    for temperature in [0, 1] {
        let body = json!({"messages": [{"role": "user", "content": "What colour is the sky?"}], "max_tokens": 80,
            "ignore_eos": true, "temperature": temperature, "seed": 3, "logprobs": true, "top_logprobs": 2});
        let answer = server.chat(&body);
        assert_eq!(answer["usage"]["completion_tokens"], 80);
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "length");
        let entries = choice["logprobs"]["content"].as_array().expect("entries");
        assert_eq!(entries.len(), 80);
        let end = |entry: &Value| entry["token"] == "<|im_end|>";
        assert!(!entries.iter().any(end), "{entries:?}");
        let tops = entries.iter().map(|entry| &entry["top_logprobs"][0]);
        assert!(
            tops.clone().any(end),
            "the model's own probabilities are told"
        );
    }
}

#[test]
fn text_completions_have_the_old_shape() {
    let server = TestServer::start();
    let prompt = "<|im_start|>user\nCount from one to ten.<|im_end|>\n<|im_start|>assistant\n";
    let body = json!({"prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": true, "logprobs": 3});
    let answer = complete(&server, &body);
    let choice = &answer["choices"][0];
    let text = choice["text"].as_str().expect("a text");
    let logprobs = &choice["logprobs"];
    let list = |name: &str| {
        logprobs[name]
            .as_array()
            .unwrap_or_else(|| panic!("{name}"))
            .clone()
    };
    let (tokens, values) = (list("tokens"), list("token_logprobs"));
    let (tops, offsets) = (list("top_logprobs"), list("text_offset"));
    assert_eq!(
        [tokens.len(), values.len(), tops.len(), offsets.len()],
        [6; 4]
    );
    let joined: String = tokens
        .iter()
        .map(|token| token.as_str().expect("a text"))
        .collect();
    assert_eq!(joined, text);
    for index in 0..6 {
        let token = tokens[index].as_str().expect("a text");
        let offset = offsets[index].as_u64().expect("a count") as usize;
        let rest: String = text.chars().skip(offset).collect();
        assert!(rest.starts_with(token), "{token:?} at {offset} of {text:?}");
        assert_eq!(tops[index].as_object().map(|top| top.len()), Some(3));
        assert_eq!(tops[index][token], values[index]);
    }
    let mut streamed = (Vec::new(), Vec::new());
    for event in server
        .stream(TEXT, &with(&body, json!({"stream": true})))
        .into_done()
    {
        let logprobs = event.json()["choices"][0]["logprobs"].clone();
        streamed
            .0
            .extend(logprobs["tokens"].as_array().cloned().unwrap_or_default());
        streamed.1.extend(
            logprobs["text_offset"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
    }
    assert_eq!(streamed, (tokens, offsets));
}

/// Prompts of a few hundred tokens.
fn long_prompt() -> Vec<u32> {
    let text: String = (0..80)
        .map(|word| format!("word {word} is é🙂, "))
        .collect();
    let encoding = tokenizer().encode_fast(text, false).expect("it encodes");
    encoding.get_ids().to_vec()
}

#[test]
fn echo_tells_those_of_the_prompt() {
    let server = TestServer::start();
    let prompt = long_prompt();
    assert!(prompt.len() > 300);
    let body = json!({"prompt": prompt, "max_tokens": 3, "temperature": 0, "ignore_eos": true, "echo": true, "logprobs": 5});
    let echoed = complete(&server, &body);
    let choice = &echoed["choices"][0];
    let logprobs = &choice["logprobs"];
    let values = logprobs["token_logprobs"].as_array().expect("a list");
    assert_eq!(values.len(), prompt.len() + 3);
    assert_eq!(
        (&values[0], &logprobs["top_logprobs"][0]),
        (&Value::Null, &Value::Null)
    );
    assert!(
        values[1..]
            .iter()
            .all(|value| value.as_f64().is_some_and(|value| value <= 0.0))
    );
    let text: Vec<char> = choice["text"].as_str().expect("a text").chars().collect();
    for (token, offset) in logprobs["tokens"]
        .as_array()
        .expect("a list")
        .iter()
        .zip(logprobs["text_offset"].as_array().expect("a list"))
    {
        let token = token.as_str().expect("a text");
        let offset = offset.as_u64().expect("a count") as usize;
        // Neither parts of characters nor special tokens are text.
        if !token.starts_with("bytes:") && !token.starts_with("<|") {
            let found: String = text[offset..].iter().take(token.chars().count()).collect();
            assert_eq!(found, token);
        }
    }
    // A prompt of which less is given: what it is told to go on with is what the longer one tells there.
    for length in [1, 32, 33, 200] {
        let shorter = json!({"prompt": prompt[..length], "max_tokens": 1, "temperature": 0, "ignore_eos": true, "logprobs": 5});
        let shorter =
            complete(&server, &shorter)["choices"][0]["logprobs"]["top_logprobs"][0].clone();
        let longer = &logprobs["top_logprobs"][length];
        for (token, logprob) in shorter.as_object().expect("an object") {
            assert_eq!(&longer[token], logprob, "{token:?} behind {length} tokens");
        }
    }

    // The rows are computed again, because their logits are needed; others still share them.
    let again = complete(&server, &body);
    assert_eq!(again["choices"], echoed["choices"]);
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let plain = complete(&server, &with(&body, json!({"logprobs": null})));
    assert_eq!(
        plain["usage"]["prompt_tokens_details"]["cached_tokens"],
        prompt.len() - 1
    );
    assert_eq!(plain["choices"][0]["text"], choice["text"]);
    assert_eq!(plain["choices"][0]["logprobs"], Value::Null);

    let mut streamed = (String::new(), Vec::new());
    for event in server
        .stream(TEXT, &with(&body, json!({"stream": true})))
        .into_done()
    {
        let choice = event.json()["choices"][0].clone();
        streamed.0 += choice["text"].as_str().expect("text");
        let values = choice["logprobs"]["token_logprobs"].as_array();
        streamed.1.extend(values.cloned().unwrap_or_default());
    }
    assert_eq!(streamed.0.chars().collect::<Vec<_>>(), text);
    assert_eq!(&streamed.1, values);
    server.wait_idle();
}

#[test]
fn the_prompts_are_the_same_in_chunks_and_in_company() {
    let server = TestServer::start();
    let small = TestServer::with(|config| {
        config.max_batch_tokens = 16;
        config.kv_blocks = trunkline::config::Auto::Set(40);
    });
    let body = json!({"prompt": long_prompt(), "max_tokens": 0, "echo": true, "logprobs": 2});
    let expected = complete(&server, &body)["choices"].clone();
    thread::scope(|scope| {
        let company: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| complete(&small, &body)["choices"].clone()))
            .collect();
        for answer in company {
            assert_eq!(answer.join().expect("an answer"), expected);
        }
    });
    small.wait_idle();
}

#[test]
fn nothing_but_the_prompt_can_be_asked_for() {
    let server = TestServer::start();
    let body = json!({"prompt": ["The sky is", "One"], "max_tokens": 0, "echo": true, "logprobs": 1, "n": 2});
    let answer = complete(&server, &body);
    for (index, text) in ["The sky is", "The sky is", "One", "One"]
        .iter()
        .enumerate()
    {
        let choice = &answer["choices"][index];
        assert_eq!(
            (&choice["text"], &choice["finish_reason"]),
            (&json!(text), &json!("length"))
        );
        let tokens = choice["logprobs"]["tokens"].as_array().expect("a list");
        let joined: String = tokens
            .iter()
            .map(|token| token.as_str().expect("a text"))
            .collect();
        assert_eq!(joined, *text);
    }
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}
