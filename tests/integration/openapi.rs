//! The served description fits the served routes.

use serde_json::{Value, json};

use crate::support::{TestServer, exchange};

/// Routes that are not described: the description itself is one of them.
const UNDESCRIBED: [&str; 2] = ["/openapi.json", "/docs/"];

#[test]
fn every_described_operation_exists() {
    let server = TestServer::start();
    let description = server.get("/openapi.json").json();
    assert_eq!(description["info"]["title"], "Trunkline");
    let mut operations = 0;
    for (path, methods) in description["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            let concrete = path.replace("{id}", "nothing");
            let method = method.to_uppercase();
            let response = exchange(server.address(), &method, &concrete, &[], b"{}");
            let text = response.text();
            assert_ne!(response.status, 405, "{method} {path}: {text}");
            assert!(!text.contains("no route for"), "{method} {path}: {text}");
            // What it answered is described.
            let described = &methods[method.to_lowercase()]["responses"];
            let status = response.status.to_string();
            assert!(
                described.get(&status).is_some(),
                "{method} {path}: {status} {text}"
            );
            operations += 1;
        }
    }
    assert!(operations >= 20, "{operations}");
}

/// What the description calls required is required, and the smallest body it allows is understood.
#[test]
fn a_described_example_is_answered() {
    let server = TestServer::start();
    let schemas = server.get("/openapi.json").json()["components"]["schemas"].clone();
    assert_eq!(
        schemas["ChatCompletionRequest"]["required"],
        json!(["messages"])
    );
    assert_eq!(schemas["Message"]["required"], json!(["role"]));
    let body = json!({"messages": [{"role": "user", "content": "What color is the sky? One word."}], "temperature": 0});
    let answer = server.chat(&body);
    assert_eq!(answer["choices"][0]["message"]["content"], "Blue");
    let described = schemas["ChatCompletion"]["properties"]
        .as_object()
        .expect("properties");
    for name in answer.as_object().expect("an object").keys() {
        assert!(described.contains_key(name), "{name} is not described");
    }
    for name in schemas["ChatCompletion"]["required"]
        .as_array()
        .expect("names")
    {
        assert_ne!(
            answer[name.as_str().expect("a name")],
            Value::Null,
            "{name}"
        );
    }
}

#[test]
fn the_page_is_served_from_here_alone() {
    let server = TestServer::start();
    let page = server.get("/docs/");
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-type")
            .is_some_and(|kind| kind.starts_with("text/html"))
    );
    let text = page.text();
    assert!(text.contains("swagger-ui"), "{text}");
    assert!(!text.contains("https://"), "{text}");
    for asset in [
        "swagger-ui-bundle.js",
        "swagger-ui.css",
        "swagger-initializer.js",
    ] {
        let response = server.get(&format!("/docs/{asset}"));
        assert_eq!(response.status, 200, "{asset}");
        assert!(response.text().len() > 100, "{asset}");
    }
    let start = server.get("/docs/swagger-initializer.js").text();
    assert!(start.contains(UNDESCRIBED[0]), "{start}");
}

/// With keys, reading what can be asked needs none; asking does.
#[test]
fn the_description_needs_no_key() {
    let server =
        TestServer::with(|config| config.api_key = vec!["secret-key".parse().expect("a key")]);
    for path in UNDESCRIBED {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert_eq!(server.get("/v1/models").status, 401);
}
