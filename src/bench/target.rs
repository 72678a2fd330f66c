//! A server that is measured: found, tried out and warmed up.

use std::time::{Duration, Instant};

use super::arguments::Arguments;
use super::client::{Client, Extensions, Message, RequestError};
use super::error::BenchError;
use super::prompts::Prompts;

/// Words of the two prompts whose token counts give tokens a word.
const PROBE_WORDS: [usize; 2] = [50, 250];
/// Time between two questions whether a server has loaded its model.
const POLL: Duration = Duration::from_millis(200);
/// How long a server that was started a moment ago may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);
/// Tokens a word where a server does not count: what common vocabularies have for these words.
const USUAL_TOKENS_PER_WORD: f64 = 1.06;

/// A server that has answered.
pub struct Target {
    pub client: Client,
    pub scale: TokenScale,
    /// What the reader of its figures should know.
    pub notes: Vec<String>,
}

/// How words become tokens there.
#[derive(Debug, Clone, Copy)]
pub struct TokenScale {
    /// Tokens a word in prompts.
    pub per_word: f64,
    /// Tokens that the chat template adds to a prompt of one message.
    pub template: f64,
}

impl TokenScale {
    /// Words of a prompt of about `tokens` tokens.
    pub fn words_for(&self, tokens: usize) -> usize {
        (((tokens as f64 - self.template) / self.per_word).round() as usize).max(1)
    }
}

impl Target {
    /// Connects, chooses the model, finds out which extensions the server takes and how it counts.
    ///
    /// # Errors
    /// When it cannot be reached, has no such model or does not stream.
    pub fn connect(
        arguments: &Arguments,
        url: &str,
        model: Option<&str>,
        seed: u64,
        side: usize,
    ) -> Result<Self, BenchError> {
        let key = arguments.api_key.clone();
        let client = Client::new(url, String::new(), key, arguments.timeout)?;
        let failed = |client: &Client, reason: String| BenchError::Server {
            url: client.url().to_owned(),
            reason,
        };
        let listed = models_once_loaded(&client, arguments.timeout);
        let client = match (model, &listed) {
            (Some(model), _) => client.with_model(model.to_owned()),
            (None, Ok(models)) if models.is_empty() => {
                return Err(failed(
                    &client,
                    "it lists no model; name one by --model".to_owned(),
                ));
            }
            (None, Ok(models)) => client.with_model(models[0].clone()),
            (None, Err(error)) => return Err(failed(&client, explain(error, &client, Err(error)))),
        };
        let mut prompts = Prompts::for_probe(seed, side);
        let extensions = find_extensions(&client, &mut prompts)
            .map_err(|error| failed(&client, explain(&error, &client, listed.as_deref())))?;
        let client = client.with_extensions(extensions);
        let mut notes = Vec::new();
        let Extensions { usage, ignore_eos } = extensions;
        if !ignore_eos {
            notes.push("it refuses `ignore_eos`: answers may be shorter than asked for".to_owned());
        }
        let scale = if usage {
            measure_scale(&client, &mut prompts)
                .map_err(|error| failed(&client, explain(&error, &client, listed.as_deref())))?
        } else {
            notes.push("it refuses `stream_options`".to_owned());
            None
        };
        let scale = scale.unwrap_or_else(|| {
            notes.push(format!(
                "it streams no usage: tokens out are counted as pieces of text, tokens in not at all, and \
                 prompts are sized by {USUAL_TOKENS_PER_WORD} tokens a word"
            ));
            TokenScale {
                per_word: USUAL_TOKENS_PER_WORD,
                template: 0.0,
            }
        });
        Ok(Self {
            client,
            scale,
            notes,
        })
    }

    /// The value of a metric without labels on the server's `/metrics`, if it has such a page.
    pub fn metrics(&self) -> Option<String> {
        self.client.get("/metrics").ok()
    }
}

/// The value of a metric that has no labels, in Prometheus' text format.
pub fn metric(scrape: &str, name: &str) -> Option<f64> {
    let mut values = scrape
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    values.next()?.trim().parse().ok()
}

/// The models that the server lists, once it listens and no longer says that it is loading one; the latter is waited for
/// as long as any answer.
fn models_once_loaded(client: &Client, timeout: Duration) -> Result<Vec<String>, RequestError> {
    let started = Instant::now();
    let mut told = false;
    loop {
        let listed = client.models();
        if matches!(listed, Err(RequestError::Unreachable(_))) && started.elapsed() < LISTENS_WITHIN
        {
            if !std::mem::replace(&mut told, true) {
                let seconds = LISTENS_WITHIN.as_secs();
                eprintln!(
                    "{}: does not listen; trying for {seconds} seconds",
                    client.url()
                );
            }
            std::thread::sleep(POLL);
            continue;
        }
        // It may have begun to listen, or finished, between the two questions.
        let refused = matches!(&listed, Err(RequestError::Refused { status: 503, message })
            if message.to_ascii_lowercase().contains("loading"));
        if !(refused || client.is_loading()) || started.elapsed() >= timeout {
            return listed;
        }
        std::thread::sleep(POLL);
    }
}

/// All extensions that the server takes.
fn find_extensions(client: &Client, prompts: &mut Prompts) -> Result<Extensions, RequestError> {
    let mut first_error = None;
    for (usage, ignore_eos) in [(true, true), (true, false), (false, true), (false, false)] {
        let extensions = Extensions { usage, ignore_eos };
        let client = client.clone().with_extensions(extensions);
        let error = match client.ask(&[Message::user(prompts.text(8))], 2) {
            Ok(_) => return Ok(extensions),
            Err(error) => error,
        };
        if !matches!(
            error,
            RequestError::Refused {
                status: 400 | 422,
                ..
            }
        ) {
            return Err(error);
        }
        first_error.get_or_insert(error);
    }
    // Leaving fields out did not help, so the first message is the one that says most.
    Err(first_error.unwrap_or(RequestError::Timeout))
}

/// `None` when the server counts nothing.
fn measure_scale(
    client: &Client,
    prompts: &mut Prompts,
) -> Result<Option<TokenScale>, RequestError> {
    let mut counts = [0.0; PROBE_WORDS.len()];
    for (count, words) in counts.iter_mut().zip(PROBE_WORDS) {
        let answer = client.ask(&[Message::user(prompts.text(words))], 1)?;
        match answer.usage {
            Some(usage) => *count = usage.prompt_tokens as f64,
            None => return Ok(None),
        }
    }
    let words = (PROBE_WORDS[1] - PROBE_WORDS[0]) as f64;
    let per_word = (counts[1] - counts[0]) / words;
    if !(0.1..100.0).contains(&per_word) {
        return Ok(None);
    }
    Ok(Some(TokenScale {
        per_word,
        template: (counts[0] - per_word * PROBE_WORDS[0] as f64).max(0.0),
    }))
}

/// The error, and what the server could do instead.
fn explain(
    error: &RequestError,
    client: &Client,
    listed: Result<&[String], &RequestError>,
) -> String {
    match (error, listed) {
        (
            RequestError::Refused {
                status: 401 | 403, ..
            },
            _,
        ) => {
            format!("{error}; give a key by OPENAI_API_KEY or --api-key")
        }
        (
            RequestError::Refused {
                status: 400 | 404, ..
            },
            Ok(models),
        ) if !models.iter().any(|model| model == client.model()) => {
            format!(
                "{error}; model {:?} is not among those that it lists: {}",
                client.model(),
                models.join(", ")
            )
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_sized_in_tokens() {
        let scale = TokenScale {
            per_word: 1.5,
            template: 10.0,
        };
        assert_eq!(scale.words_for(2000), 1327);
        assert_eq!(scale.words_for(4), 1);
    }

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let scrape = "# HELP a_sum x\na_sum_total 3\na_sum 2.5\na_sum{x=\"y\"} 7\n";
        assert_eq!(metric(scrape, "a_sum"), Some(2.5));
        assert_eq!(metric(scrape, "b"), None);
    }
}
