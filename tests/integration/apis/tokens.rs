use serde_json::{Value, json};

use crate::support::TestServer;

#[test]
fn counts_are_those_of_the_real_prompt() {
    let server = TestServer::start();
    let tool =
        json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let chat = json!({"messages": [{"role": "user", "content": "Hello!"}], "tools": tool, "max_tokens": 1});
    let real = server.chat(&chat)["usage"]["prompt_tokens"].clone();
    let counted = server
        .post("/v1/chat/completions/input_tokens", &chat)
        .json();
    assert_eq!(counted["input_tokens"], real);
    let tokens = server.post("/tokenize", &chat).json();
    assert_eq!(tokens["count"], real);
    assert_eq!(json!(tokens["tokens"].as_array().expect("ids").len()), real);
    let text = server.post("/apply-template", &chat).json()["prompt"].clone();
    assert!(text.as_str().expect("text").contains("Hello!"));
    let again = server.post("/tokenize", &json!({"content": text})).json();
    assert_eq!(again["tokens"], tokens["tokens"]);
    let body = json!({"input": "Hello!", "max_output_tokens": 1});
    let real = server.post("/v1/responses", &body).json()["usage"]["input_tokens"].clone();
    let counted = server.post("/v1/responses/input_tokens", &body).json();
    assert_eq!(
        counted,
        json!({"object": "response.input_tokens", "input_tokens": real})
    );
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(60_000)}]});
    let counted = server
        .post("/v1/chat/completions/input_tokens", &long)
        .json();
    assert!(
        counted["input_tokens"].as_u64().expect("a count") > 32_768,
        "more than fits"
    );
    assert_eq!(
        server.metric_with("trunkline_requests_total", "input_tokens"),
        3.0
    );
}

#[test]
fn tokens_become_their_text_again() {
    let server = TestServer::start();
    let text = "Größe: 10 €, ok \u{1f642}!";
    let tokens = server
        .post(
            "/tokenize",
            &json!({"prompt": text, "return_token_strs": true}),
        )
        .json();
    assert_eq!(tokens["max_model_len"], 32_768);
    assert_eq!(
        tokens["token_strs"].as_array().map(Vec::len),
        tokens["tokens"].as_array().map(Vec::len)
    );
    let back = server
        .post("/detokenize", &json!({"tokens": tokens["tokens"]}))
        .json();
    assert_eq!(back["content"], text);
    assert_eq!(back["prompt"], text);
    let pieces = server
        .post(
            "/tokenize",
            &json!({"content": "Hello!", "with_pieces": true}),
        )
        .json();
    let joined: String = pieces["tokens"]
        .as_array()
        .expect("pieces")
        .iter()
        .map(|piece| piece["piece"].as_str().expect("text"))
        .collect();
    assert_eq!(joined, "Hello!");
}

#[test]
fn bad_input_names_the_field() {
    let server = TestServer::start();
    let cases: [(&str, Value, Option<&str>); 8] = [
        ("/tokenize", json!({}), Some("prompt")),
        ("/tokenize", json!({"content": 4}), Some("content")),
        (
            "/tokenize",
            json!({"content": "a", "prompt": "b"}),
            Some("content"),
        ),
        (
            "/tokenize",
            json!({"messages": [{"role": "robot"}]}),
            Some("messages[0].role"),
        ),
        ("/detokenize", json!({"tokens": "x"}), Some("tokens")),
        (
            "/detokenize",
            json!({"tokens": [1, 2_000_000]}),
            Some("tokens[1]"),
        ),
        ("/apply-template", json!({}), Some("messages")),
        ("/v1/responses/input_tokens", json!({}), Some("input")),
    ];
    for (path, body, parameter) in cases {
        let refused = server.post(path, &body);
        assert_eq!(refused.status, 400, "{path} {}", refused.text());
        assert_eq!(
            refused.error()["param"].as_str(),
            parameter,
            "{}",
            refused.text()
        );
    }
    assert_eq!(server.get("/tokenize").status, 405);
}
