//! What else a request can ask for: an answer that goes on with a message, times, stop strings, effort.

use serde_json::{Value, json};

use crate::support::{Answer, TestServer};

const TEXT: &str = "/v1/completions";

fn ask(question: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 60})
}

/// `body` with some members replaced.
fn with(body: &Value, members: Value) -> Value {
    let mut body = body.clone();
    for (name, value) in members.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"]
        .as_str()
        .expect("a text")
}

fn sky() -> Value {
    ask("What color is the sky?")
}

#[test]
fn a_message_of_the_assistant_is_continued() {
    let server = TestServer::start();
    let alone = server.chat(&sky());
    assert_eq!(content(&alone), "The sky is blue.");
    let mut body = sky();
    let begun = json!({"role": "assistant", "content": "The sky"});
    body["messages"].as_array_mut().expect("a list").push(begun);
    for spelled in [
        json!({"continue_final_message": true}),
        json!({"continue_final_message": true, "add_generation_prompt": false}),
    ] {
        let body = with(&body, spelled);
        let answer = server.chat(&body);
        // Only what comes after the message.
        assert_eq!(content(&answer), " is blue.");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let streamed = Answer::of(server.stream_chat(&body));
        assert_eq!(
            (streamed.content.as_str(), streamed.finish_reason.as_str()),
            (" is blue.", "stop")
        );
    }
    // As Mistral's and DeepSeek's clients ask for it.
    let mut by_prefix = body.clone();
    by_prefix["messages"][1]["prefix"] = json!(true);
    assert_eq!(content(&server.chat(&by_prefix)), " is blue.");
    // What was begun is all of the prompt but the generation prompt's turn: nothing else is rendered.
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().expect("usage");
    let continued = server.chat(&by_prefix);
    let begun_tokens = prompt(&continued) - prompt(&alone);
    assert!((3..=5).contains(&begun_tokens), "{begun_tokens}");
    // Without being asked for, a new message is begun.
    let fresh = server.chat(&body);
    assert!(prompt(&fresh) > prompt(&continued));
}

#[test]
fn times_are_told_on_request() {
    let server = TestServer::start();
    for asked in ["timings", "timings_per_token"] {
        let answer = server.chat(&with(&sky(), json!({asked: true})));
        check_timings(&answer["timings"], &answer["usage"]);
    }
    let again = server.chat(&with(&sky(), json!({"timings": true, "n": 2})));
    check_timings(&again["timings"], &again["usage"]);
    assert!(again["timings"]["cache_n"].as_u64().expect("a count") > 0);
    assert!(server.chat(&sky()).get("timings").is_none());

    let body = with(&sky(), json!({"timings": true}));
    let events = server.stream_chat(&body).into_done();
    let chunks: Vec<Value> = events.iter().map(|event| event.json()).collect();
    let timed: Vec<&Value> = chunks
        .iter()
        .filter(|chunk| chunk["timings"].is_object())
        .collect();
    assert_eq!(timed.len(), 1);
    assert_eq!(timed[0]["choices"][0]["finish_reason"], "stop");
    let usage = &chunks.last().expect("chunks")["usage"];
    check_timings(&timed[0]["timings"], usage);

    // A stop string ends it before the scheduler does.
    let stopped = server.chat(&with(&body, json!({"stop": "blue"})));
    check_timings(&stopped["timings"], &stopped["usage"]);
    let text = json!({"prompt": "One, two,", "max_tokens": 5, "timings": true, "ignore_eos": true});
    let text = server.post(TEXT, &text).json();
    check_timings(&text["timings"], &text["usage"]);
}

/// The counts are those of the usage, and the rates are counts over times.
fn check_timings(timings: &Value, usage: &Value) {
    let cached = usage["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .expect("usage");
    assert_eq!(timings["cache_n"], cached, "{timings} {usage}");
    let prompt = usage["prompt_tokens"].as_u64().expect("usage");
    assert_eq!(timings["prompt_n"], prompt - cached);
    assert_eq!(timings["predicted_n"], usage["completion_tokens"]);
    for part in ["prompt", "predicted"] {
        let number = |name: &str| {
            timings[format!("{part}_{name}")]
                .as_f64()
                .expect("a number")
        };
        assert!(number("ms") > 0.0, "{timings}");
        let rate = number("n") / (number("ms") / 1000.0);
        assert!(
            (number("per_second") - rate).abs() < 1e-6 * rate,
            "{timings}"
        );
        assert!((number("per_token_ms") - number("ms") / number("n")).abs() < 1e-9);
    }
}

#[test]
fn any_of_four_stop_strings_ends_an_answer_to_the_character() {
    let server = TestServer::start();
    let whole = content(&server.chat(&ask("Count from one to five."))).to_owned();
    assert!(whole.contains("three"), "{whole}");
    for (stops, end) in [
        (json!(["nine", "ten", "thr", "eleven"]), "thr"),
        (json!(["four", "three, f", "x", "y"]), "three, f"),
        (json!("two"), "two"),
        (json!(["one, two, three, four, sixty", "e, t"]), "e, t"),
    ] {
        let expected = &whole[..whole.find(end).expect("it says so")];
        let body = with(&ask("Count from one to five."), json!({"stop": stops}));
        let answer = server.chat(&body);
        assert_eq!(content(&answer), expected, "{stops}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let streamed = Answer::of(server.stream_chat(&body));
        assert_eq!(streamed.content, expected, "{stops}");
        assert_eq!(streamed.finish_reason, "stop");
        assert_eq!(
            streamed.usage["completion_tokens"],
            answer["usage"]["completion_tokens"]
        );
    }
}

#[test]
fn the_newer_name_of_the_token_limit_wins() {
    let server = TestServer::start();
    let body = with(
        &ask("Count from one to twenty."),
        json!({"max_completion_tokens": 3}),
    );
    let answer = server.chat(&body);
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn effort_decides_whether_the_model_thinks_first() {
    let server = TestServer::start();
    for (effort, thinks) in [
        ("none", false),
        ("minimal", false),
        ("low", true),
        ("high", true),
    ] {
        let answer = server.chat(&with(&sky(), json!({"reasoning_effort": effort})));
        let reasoning = answer["choices"][0]["message"]["reasoning_content"].as_str();
        assert_eq!(
            reasoning.is_some_and(|text| !text.is_empty()),
            thinks,
            "{effort}: {answer}"
        );
        let tokens = &answer["usage"]["completion_tokens_details"]["reasoning_tokens"];
        assert_eq!(tokens.as_u64().expect("usage") > 0, thinks);
        assert_eq!(content(&answer), "The sky is blue.");
    }
    let by_name =
        json!({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false}});
    let answer = server.chat(&with(&sky(), by_name));
    assert!(answer["choices"][0]["message"]["reasoning_content"].is_null());
}

#[test]
fn what_has_no_meaning_here_does_no_harm() {
    let server = TestServer::start();
    let plain = server.chat(&sky());
    let answer = server.chat(&with(
        &sky(),
        json!({
            "prediction": {"type": "content", "content": "The sky is green."}, "store": true,
            "service_tier": "auto", "metadata": {"run": "1"}, "user": "u", "prompt_cache_key": "k",
            "safety_identifier": "s", "verbosity": "low", "modalities": ["text"], "logprobs": false,
            "top_logprobs": 0, "parallel_tool_calls": true, "web_search_options": {}, "session_id": 1,
        }),
    ));
    assert_eq!(answer["choices"], plain["choices"]);
    let mut body = with(&sky(), json!({"stream": true}));
    body["stream_options"] = json!({"include_usage": true, "include_obfuscation": true});
    let streamed = Answer::of(server.stream("/v1/chat/completions", &body));
    assert_eq!(streamed.content, "The sky is blue.");
}
