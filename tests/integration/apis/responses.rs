use serde_json::{Value, json};

use super::{assert_colour, colour_schema, rounds, two_tools, types};
use crate::support::{Event, Response, TestServer, exchange, wait_until};

const PATH: &str = "/v1/responses";

fn tools() -> Value {
    two_tools(
        |name, description, schema| json!({"type": "function", "name": name, "description": description, "parameters": schema}),
    )
}

fn create(server: &TestServer, body: Value) -> Value {
    let response = server.post(PATH, &body);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

fn ask(input: &str) -> Value {
    json!({"input": input, "temperature": 0, "max_output_tokens": 100})
}

fn text(response: &Value) -> String {
    let items = response["output"].as_array().expect("output");
    let messages = items.iter().filter(|item| item["type"] == "message");
    messages
        .map(|item| item["content"][0]["text"].as_str().expect("text"))
        .collect()
}

fn cached(response: &Value) -> u64 {
    response["usage"]["input_tokens_details"]["cached_tokens"]
        .as_u64()
        .expect("usage")
}

fn request(server: &TestServer, method: &str, path: &str) -> Response {
    exchange(server.address(), method, path, &[], b"")
}

#[test]
fn a_stream_has_its_typed_events_in_order_and_says_what_the_whole_says() {
    let server = TestServer::start();
    let mut body = ask("What colour is the sky?");
    let whole = create(&server, body.clone());
    assert_eq!(whole["object"], "response");
    assert_eq!(whole["status"], "completed");
    assert!(whole["id"].as_str().expect("an id").starts_with("resp_"));
    assert!(text(&whole).contains("blue"), "{whole}");
    body["stream"] = json!(true);
    let stream = server.stream(PATH, &body);
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    let events: Vec<Event> = stream.collect();
    assert_eq!(
        types(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let mut told = String::new();
    for (index, event) in events.iter().enumerate() {
        let data = event.json();
        assert_eq!(data["sequence_number"], json!(index));
        if data["type"] == "response.output_text.delta" {
            told += data["delta"].as_str().expect("a delta");
        }
        if data["type"] == "response.output_text.done" {
            assert_eq!(data["text"], json!(told));
        }
    }
    let last = events.last().expect("events").json()["response"].clone();
    assert_eq!(told, text(&whole));
    assert_eq!(text(&last), told);
    assert_eq!(last["id"], events[0].json()["response"]["id"]);
    assert_eq!(events[0].json()["response"]["status"], "in_progress");
    let usage = &last["usage"];
    assert_eq!(usage["input_tokens"], whole["usage"]["input_tokens"]);
    assert_eq!(
        cached(&last),
        usage["input_tokens"].as_u64().expect("usage") - 1
    );
    assert_eq!(
        server.metric_with("trunkline_requests_total", "responses"),
        2.0
    );
}

#[test]
fn an_answer_cut_by_the_limit_is_incomplete() {
    let server = TestServer::start();
    let mut body = ask("Count from one to ten.");
    body["max_output_tokens"] = json!(3);
    let whole = create(&server, body.clone());
    assert_eq!(whole["status"], "incomplete");
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(whole["output"][0]["status"], "incomplete");
    body["stream"] = json!(true);
    let events: Vec<Event> = server.stream(PATH, &body).collect();
    let last = events.last().expect("events").json();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["usage"]["output_tokens"], 3);
}

#[test]
fn an_agent_loop_over_a_chain_of_responses_reuses_the_cache() {
    let server = TestServer::start();
    let mut previous = Value::Null;
    let mut before = 0;
    for (question, tool, city, result, expected) in rounds() {
        let mut body = ask(question);
        body["tools"] = tools();
        body["previous_response_id"] = previous.clone();
        body["stream"] = json!(true);
        let events: Vec<Event> = server.stream(PATH, &body).collect();
        let told = types(&events);
        let call_events = [
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ];
        assert_eq!(told[2..], call_events);
        let called = events.last().expect("events").json()["response"].clone();
        assert!(cached(&called) > before || before == 0, "{called}");
        let call = &called["output"][0];
        assert_eq!(call["type"], "function_call");
        assert_eq!(call["name"], tool);
        let arguments = call["arguments"].as_str().expect("text");
        let arguments: Value = serde_json::from_str(arguments).expect("JSON");
        assert_eq!(arguments, json!({"city": city}));

        let output = json!([{"type": "function_call_output", "call_id": call["call_id"],
            "output": result.to_string()}]);
        let answer = create(
            &server,
            json!({"previous_response_id": called["id"], "input": output, "tools": tools(),
                "temperature": 0, "max_output_tokens": 100}),
        );
        assert!(text(&answer).contains(expected), "{answer}");
        let reused = called["usage"]["total_tokens"].as_u64().expect("usage") - 1;
        assert!(
            cached(&answer) >= reused,
            "{answer} reuses less than {reused}"
        );
        before = cached(&answer);
        previous = answer["id"].clone();
    }
    // The same conversation sent whole by a client that keeps it itself hits the same tokens.
    let items = request(
        &server,
        "GET",
        &format!("{PATH}/{}/input_items", previous.as_str().expect("an id")),
    );
    assert_eq!(items.json()["data"][0]["type"], "function_call_output");
}

#[test]
fn responses_are_kept_listed_and_deleted() {
    let server = TestServer::start();
    let kept = create(&server, ask("What colour is grass?"));
    let path = format!("{PATH}/{}", kept["id"].as_str().expect("an id"));
    assert_eq!(request(&server, "GET", &path).json(), kept);
    let items = request(
        &server,
        "GET",
        &format!("{path}/input_items?order=asc&limit=1"),
    )
    .json();
    assert_eq!(items["object"], "list");
    assert_eq!(items["has_more"], false);
    assert_eq!(
        items["data"][0]["content"][0]["text"],
        "What colour is grass?"
    );
    assert_eq!(items["first_id"], items["data"][0]["id"]);
    let refused = request(&server, "GET", &format!("{path}/input_items?limit=0"));
    assert_eq!(
        (refused.status, refused.error()["param"].as_str()),
        (400, Some("limit"))
    );
    let refused = request(&server, "POST", &format!("{path}/cancel"));
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("completed"), "{}", refused.text());
    assert_eq!(request(&server, "DELETE", &path).json()["deleted"], true);
    for (method, path) in [
        ("GET", path.clone()),
        ("DELETE", path.clone()),
        ("GET", format!("{path}/input_items")),
        ("POST", format!("{path}/cancel")),
    ] {
        let gone = request(&server, method, &path);
        assert_eq!(gone.status, 404, "{method} {path}");
        assert_eq!(gone.error()["code"], "response_not_found");
    }
    let mut unkept = ask("What colour is grass?");
    unkept["store"] = json!(false);
    let unkept = create(&server, unkept);
    let path = format!("{PATH}/{}", unkept["id"].as_str().expect("an id"));
    assert_eq!(request(&server, "GET", &path).status, 404);
}

#[test]
fn the_store_is_bounded() {
    let server = TestServer::with(|config| config.response_store_entries = 2);
    let ids: Vec<String> = ["one", "two", "three"]
        .iter()
        .map(|word| {
            let response = create(&server, ask(&format!("Repeat after me: {word}")));
            response["id"].as_str().expect("an id").to_owned()
        })
        .collect();
    let found = |id: &String| request(&server, "GET", &format!("{PATH}/{id}")).status;
    assert_eq!(ids.iter().map(found).collect::<Vec<_>>(), [404, 200, 200]);
    let mut body = ask("And again.");
    body["previous_response_id"] = json!(ids[0]);
    let refused = server.post(PATH, &body);
    assert_eq!(refused.status, 400);
    let error = refused.error();
    assert_eq!(error["param"], "previous_response_id");
    assert_eq!(error["code"], "previous_response_not_found");
}

#[test]
fn a_running_response_is_cancelled_by_another_request() {
    let server = TestServer::start();
    let body = json!({"input": "What colour is the sea?", "stream": true, "max_output_tokens": 30000,
        "ignore_eos": true});
    let mut stream = server.stream(PATH, &body);
    let id = stream.next().expect("an event").json()["response"]["id"].clone();
    let path = format!("{PATH}/{}", id.as_str().expect("an id"));
    stream
        .by_ref()
        .find(|event| event.json()["type"] == "response.output_text.delta")
        .expect("it began");
    let running = request(&server, "GET", &path).json();
    assert_eq!(running["status"], "in_progress");
    let cancelled = request(&server, "POST", &format!("{path}/cancel"));
    assert_eq!(cancelled.status, 200, "{}", cancelled.text());
    assert_eq!(cancelled.json()["status"], "cancelled");
    let last = stream.last().expect("an end").json();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["status"], "cancelled");
    server.wait_idle();
    assert!(server.metric("trunkline_generation_tokens_total") < 30000.0);
    assert_eq!(
        server.metric_with("trunkline_requests_total", "cancelled"),
        1.0
    );
    assert_eq!(server.metric("trunkline_client_disconnects_total"), 0.0);
}

#[test]
fn a_client_that_leaves_is_noticed() {
    let server = TestServer::start();
    let body = json!({"input": "What colour is the sea?", "stream": true, "max_output_tokens": 30000,
        "ignore_eos": true});
    let mut stream = server.stream(PATH, &body);
    stream
        .by_ref()
        .find(|event| event.json()["type"] == "response.output_text.delta")
        .expect("it began");
    stream.leave();
    wait_until("the slot is free", || {
        server.metric("trunkline_requests_running") == 0.0
    });
    server.wait_idle();
    assert_eq!(server.metric("trunkline_client_disconnects_total"), 1.0);
}

#[test]
fn bad_input_is_refused_in_openais_shape() {
    let server =
        TestServer::with(|config| config.context_length = trunkline::config::Auto::Set(64));
    for (body, status, parameter) in [
        (json!({}), 400, Some("input")),
        (
            json!({"input": [{"role": "user"}]}),
            400,
            Some("input[0].content"),
        ),
        (
            json!({"input": "x", "max_output_tokens": -1}),
            400,
            Some("max_output_tokens"),
        ),
        (
            json!({"input": "x", "tools": [{"type": "function"}]}),
            400,
            Some("tools[0].name"),
        ),
        (json!({"input": "x", "model": "none"}), 404, Some("model")),
        (json!({"input": "word ".repeat(200)}), 400, Some("input")),
    ] {
        let refused = server.post(PATH, &body);
        assert_eq!(refused.status, status, "{}", refused.text());
        let error = refused.error();
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["param"].as_str(), parameter, "{error}");
    }
    let refused = exchange(server.address(), "GET", PATH, &[], b"");
    assert_eq!(
        (refused.status, refused.header("allow")),
        (405, Some("POST, OPTIONS"))
    );
    assert_eq!(create(&server, ask("Hello!"))["object"], "response");
}

#[test]
fn a_schema_and_a_chosen_function_are_enforced() {
    let server = TestServer::start();
    let mut body = ask("What colour is the sky? Answer in JSON.");
    body["text"] = json!({"format": {"type": "json_schema", "name": "answer", "strict": true, "schema": colour_schema()}});
    assert_colour(&text(&create(&server, body.clone())));
    body["text"]["format"]["schema"] =
        json!({"type": "object", "properties": {"a": {"$ref": "https://example.org/x"}}});
    let refused = server.post(PATH, &body);
    assert_eq!(refused.status, 400, "{}", refused.text());
    let parameter = refused.error()["param"]
        .as_str()
        .expect("a field")
        .to_owned();
    assert!(parameter.starts_with("text.format.schema"), "{parameter}");

    let mut body = ask("What is the weather in Berlin?");
    body["tools"] = tools();
    body["tool_choice"] = json!({"type": "function", "name": "time"});
    let called = create(&server, body.clone());
    assert_eq!(called["output"][0]["type"], "function_call", "{called}");
    assert_eq!(called["output"][0]["name"], "time");
    body["tool_choice"] = json!({"type": "function", "name": "none"});
    let refused = server.post(PATH, &body);
    assert_eq!(
        (refused.status, refused.error()["param"].as_str()),
        (400, Some("tool_choice.name"))
    );
}
