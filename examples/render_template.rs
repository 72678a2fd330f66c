//! Renders chat templates for `scripts/check_templates.py`: reads one JSON object a line,
//! `{"template": …, "context": {…}}`, and writes one a line, `{"text": …}` or `{"error": …}`.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use trunkline::prompt::ChatTemplate;

#[derive(serde::Deserialize)]
struct Request {
    template: String,
    context: serde_json::Map<String, serde_json::Value>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut compiled = HashMap::new();
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let Request { template, context } = serde_json::from_str(&line?)?;
        let template = compiled
            .entry(template)
            .or_insert_with_key(|source| ChatTemplate::new(source));
        let rendered = match template {
            Ok(template) => template.render_json(&context),
            Err(error) => Err(error.clone()),
        };
        let answer = match rendered {
            Ok(text) => serde_json::json!({ "text": text }),
            Err(error) => serde_json::json!({ "error": error.to_string() }),
        };
        writeln!(output, "{answer}")?;
    }
    Ok(())
}
