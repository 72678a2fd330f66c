//! Several choices of one request: `n`, `best_of`, and several prompts at once.

use serde_json::{Value, json};

use crate::support::TestServer;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A system prompt that is much longer than a block of the cache.
fn long_chat() -> Value {
    let rules: String = (0..60)
        .map(|rule| format!("Rule {rule} is short. "))
        .collect();
    json!({"temperature": 0, "max_tokens": 24, "messages": [
        {"role": "system", "content": rules},
        {"role": "user", "content": "What color is the sky?"},
    ]})
}

/// `body` with some members replaced.
fn with(body: &Value, members: Value) -> Value {
    let mut body = body.clone();
    for (name, value) in members.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn post(server: &TestServer, path: &str, body: &Value) -> Value {
    let response = server.post(path, body);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

fn contents(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().expect("choices");
    let content = |(index, choice): (usize, &Value)| {
        assert_eq!(choice["index"], index);
        let text = choice["message"]["content"]
            .as_str()
            .or(choice["text"].as_str());
        text.expect("a text").to_owned()
    };
    choices.iter().enumerate().map(content).collect()
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn choices_of_one_prompt_compute_it_once() {
    let server = TestServer::start();
    let computed = |server: &TestServer| {
        server.metric("trunkline_prefix_cache_query_tokens_total")
            - server.metric("trunkline_prefix_cache_hit_tokens_total")
    };
    let answer = server.chat(&with(&long_chat(), json!({"n": 8})));
    let texts = contents(&answer);
    assert_eq!(texts, vec!["The sky is blue."; 8]);
    let prompt = number(&answer["usage"]["prompt_tokens"]);
    assert!(prompt > 300, "{prompt}");
    // One computes the prompt, and each other the one token that it needs to have logits.
    assert_eq!(computed(&server), (prompt + 7) as f64);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);

    let alone = server.chat(&long_chat());
    let tokens = number(&alone["usage"]["completion_tokens"]);
    assert_eq!(answer["usage"]["completion_tokens"], 8 * tokens);
    assert_eq!(answer["usage"]["total_tokens"], prompt + 8 * tokens);
    assert_eq!(alone["usage"]["prompt_tokens"], prompt);
    assert_eq!(
        alone["choices"][0]["message"],
        answer["choices"][7]["message"]
    );
    server.wait_idle();
}

#[test]
fn each_choice_has_a_seed_of_its_own() {
    let server = TestServer::start();
    let hot = with(
        &long_chat(),
        json!({"temperature": 2.0, "seed": 40, "ignore_eos": true}),
    );
    let together = contents(&server.chat(&with(&hot, json!({"n": 3}))));
    assert_ne!(together[0], together[1]);
    assert_ne!(together[1], together[2]);
    for (index, text) in together.iter().enumerate() {
        let alone = server.chat(&with(&hot, json!({"seed": 40 + index})));
        assert_eq!(contents(&alone), [text.as_str()], "seed {index}");
    }
}

#[test]
fn choices_are_streamed_side_by_side() {
    let server = TestServer::start();
    let body = with(&long_chat(), json!({"n": 3, "temperature": 1.5, "seed": 3}));
    let whole = server.chat(&body);
    let (mut texts, mut roles, mut ends) = (vec![String::new(); 3], [0; 3], [0; 3]);
    let mut usage = Value::Null;
    for event in server.stream_chat(&body).into_done() {
        let chunk = event.json();
        let Some(choice) = chunk["choices"].get(0) else {
            assert_eq!(ends, [1; 3], "usage comes when all have ended");
            usage = chunk["usage"].clone();
            continue;
        };
        let index = number(&choice["index"]) as usize;
        assert_eq!(ends[index], 0, "text after the end");
        roles[index] += usize::from(choice["delta"]["role"].is_string());
        assert_eq!(roles[index], 1, "the role comes first");
        texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
        if let Some(reason) = choice["finish_reason"].as_str() {
            assert_eq!(whole["choices"][index]["finish_reason"], reason);
            ends[index] += 1;
        }
    }
    assert_eq!(texts, contents(&whole));
    for counted in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage[counted], whole["usage"][counted]);
    }
}

#[test]
fn choices_of_several_prompts_are_numbered_prompt_by_prompt() {
    let server = TestServer::start();
    let prompts = ["One, two,", "The sky is", "A"];
    let body =
        json!({"prompt": prompts, "n": 2, "max_tokens": 5, "temperature": 0, "ignore_eos": true});
    let together = post(&server, TEXT, &body);
    let texts = contents(&together);
    assert_eq!(texts.len(), 6);
    let mut prompt_tokens = 0;
    for (index, prompt) in prompts.iter().enumerate() {
        let alone = post(
            &server,
            TEXT,
            &with(&body, json!({"prompt": prompt, "n": 1})),
        );
        prompt_tokens += number(&alone["usage"]["prompt_tokens"]);
        assert_eq!(contents(&alone), [texts[2 * index].as_str()]);
        assert_eq!(texts[2 * index], texts[2 * index + 1]);
    }
    assert_eq!(together["usage"]["prompt_tokens"], prompt_tokens);
    assert_eq!(together["usage"]["completion_tokens"], 30);

    let mut streamed = vec![String::new(); 6];
    let events = server.stream(TEXT, &with(&body, json!({"stream": true})));
    for event in events.into_done() {
        let choice = event.json()["choices"][0].clone();
        streamed[number(&choice["index"]) as usize] += choice["text"].as_str().expect("text");
    }
    assert_eq!(streamed, texts);
}

#[test]
fn best_of_tells_those_that_the_model_found_likeliest() {
    let server = TestServer::start();
    let body = json!({
        "prompt": "The weather in", "max_tokens": 8, "temperature": 1.6, "seed": 11, "ignore_eos": true, "logprobs": 0,
    });
    let all = post(&server, TEXT, &with(&body, json!({"n": 6})));
    let mean = |choice: &Value| {
        let logprobs = choice["logprobs"]["token_logprobs"]
            .as_array()
            .expect("a list");
        let sum: f64 = logprobs
            .iter()
            .map(|logprob| logprob.as_f64().expect("a number"))
            .sum();
        sum / logprobs.len() as f64
    };
    let mut ranked: Vec<(f64, String)> = all["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(mean)
        .zip(contents(&all))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    assert!(ranked[1].0 > ranked[5].0, "they differ");

    let best = post(&server, TEXT, &with(&body, json!({"n": 2, "best_of": 6})));
    assert_eq!(
        contents(&best),
        [ranked[0].1.as_str(), ranked[1].1.as_str()]
    );
    assert_eq!(mean(&best["choices"][0]), ranked[0].0);
    // All that was generated counts, and the prompt once.
    for counted in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(best["usage"][counted], all["usage"][counted]);
    }

    let silent = post(
        &server,
        TEXT,
        &with(&body, json!({"best_of": 6, "logprobs": null})),
    );
    assert_eq!(contents(&silent), [ranked[0].1.as_str()]);
    assert_eq!(silent["choices"][0]["logprobs"], Value::Null);
}

#[test]
fn too_many_for_the_queue_are_refused_together() {
    let server = TestServer::with(|config| {
        config.max_running = 1;
        config.max_waiting = 3;
    });
    let response = server.post(CHAT, &with(&long_chat(), json!({"n": 8})));
    assert_eq!(response.status, 429, "{}", response.text());
    assert!(response.header("retry-after").is_some());
    server.wait_idle();
    assert_eq!(
        contents(&server.chat(&with(&long_chat(), json!({"n": 3})))).len(),
        3
    );
}

#[test]
fn a_client_that_leaves_ends_all_choices() {
    let server = TestServer::start();
    let body = with(
        &long_chat(),
        json!({"n": 4, "max_tokens": 20_000, "ignore_eos": true, "temperature": 1}),
    );
    let mut stream = server.stream_chat(&body);
    let has_content =
        |event: &crate::support::Event| event.json()["choices"][0]["delta"]["content"].is_string();
    assert!(stream.by_ref().any(|event| has_content(&event)));
    stream.leave();
    server.wait_idle();
    assert_eq!(server.metric("trunkline_client_disconnects_total"), 1.0);
}
