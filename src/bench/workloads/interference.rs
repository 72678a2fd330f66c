//! *prefill-interference*: what running streams feel of a long prompt that is prefilled beside them.
//!
//! Streams run until each has warmed up; then the time between pieces is taken for a while, then a long
//! prompt is sent, and the time is taken until its first token is there. Then all streams are left.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use serde_json::Value;

use super::{Gap, Round, RoundError, Workload, gaps, sizes_json};
use crate::bench::arguments::{Sizes, WorkloadName};
use crate::bench::client::{Answer, Client, Message, RequestError};
use crate::bench::crowd::spawn;
use crate::bench::error::BenchError;
use crate::bench::prompts::Prompts;
use crate::bench::statistics::{ITL, percentile};
use crate::bench::target::Target;

/// Pieces of each stream before anything is measured.
const WARM_UP: usize = 4;
/// Pieces of each stream without the long prompt.
const BASELINE: usize = 24;
/// Tokens of a stream's prompt.
const STREAM_PROMPT: usize = 64;

pub struct Interference {
    /// All but one are streams.
    agents: usize,
    prompt_tokens: usize,
    /// What a stream asks for; it is left long before.
    output_tokens: usize,
}

/// What the agents tell while they run.
enum News {
    Piece {
        stream: usize,
    },
    /// A stream has ended though nobody left it.
    StreamEnded(Result<(), RequestError>),
    LongPrompt(Result<Answer, RequestError>),
}

impl Interference {
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            agents: sizes.agents.unwrap_or(16).max(2),
            prompt_tokens: sizes.prompt_tokens.unwrap_or(4000),
            output_tokens: sizes.output_tokens.unwrap_or(4096),
        }
    }

    fn streams(&self) -> usize {
        self.agents - 1
    }
}

/// The moments that part the measurement.
struct Moments {
    baseline: Instant,
    long_sent: Instant,
    long_prompt: Answer,
}

impl Workload for Interference {
    fn name(&self) -> WorkloadName {
        WorkloadName::PrefillInterference
    }

    fn describe(&self) -> String {
        format!(
            "{} running streams while a cold prompt of {} tokens is prefilled (ITL is theirs in that time, \
             TTFT the prompt's)",
            self.streams(),
            self.prompt_tokens
        )
    }

    fn parameters(&self) -> Value {
        sizes_json(&[
            ("streams", self.streams()),
            ("prompt_tokens", self.prompt_tokens),
        ])
    }

    fn figures(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (
                "figures.itl_p95_without_s",
                "ITL p95 without the long prompt, seconds",
            ),
            ("figures.interference_ratio", "ITL p95 with it over that"),
        ]
    }

    fn run(&self, target: &Target, prompts: &mut Prompts) -> Result<Round, RoundError> {
        let words = target.scale.words_for(STREAM_PROMPT);
        let texts: Vec<String> = (0..self.streams()).map(|_| prompts.text(words)).collect();
        let long = prompts.text(target.scale.words_for(self.prompt_tokens));
        let stop = AtomicBool::new(false);
        let (sender, news) = channel();
        let (moments, streams) = std::thread::scope(|scope| {
            let mut threads = Vec::with_capacity(texts.len());
            let mut failed = None;
            for (number, text) in texts.into_iter().enumerate() {
                let (sender, stop) = (sender.clone(), &stop);
                let work = move || {
                    stream(
                        &target.client,
                        text,
                        self.output_tokens,
                        number,
                        &sender,
                        stop,
                    )
                };
                match spawn(scope, work) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => failed = Some(RoundError::Bench(BenchError::Thread(error))),
                }
            }
            let send_long = || {
                let long = [Message::user(long)];
                let sender = sender.clone();
                spawn(scope, move || {
                    // The receiver is gone only if the round has been given up.
                    let _ = sender.send(News::LongPrompt(target.client.ask(&long, 1)));
                })
                .map(drop)
            };
            let moments = match failed {
                Some(error) => Err(error),
                None => self.watch(&news, send_long),
            };
            // Each stream sees this at its next piece.
            stop.store(true, Ordering::Release);
            let streams: Vec<Answer> = threads
                .into_iter()
                .filter_map(|thread| thread.join().ok()?.ok())
                .collect();
            moments.map(|moments| (moments, streams))
        })?;
        Ok(figures(moments, &streams))
    }
}

impl Interference {
    /// Follows the news until the long prompt is there.
    fn watch(
        &self,
        news: &Receiver<News>,
        send_long: impl FnOnce() -> std::io::Result<()>,
    ) -> Result<Moments, RoundError> {
        let mut pieces = vec![0; self.streams()];
        wait_for(news, &mut pieces, WARM_UP)?;
        let baseline = Instant::now();
        wait_for(news, &mut pieces, WARM_UP + BASELINE)?;
        let long_sent = Instant::now();
        send_long().map_err(BenchError::Thread)?;
        let long_prompt = loop {
            match receive(news)? {
                News::LongPrompt(answer) => break answer?,
                News::Piece { .. } => {}
                News::StreamEnded(result) => return Err(ended_early(result)),
            }
        };
        Ok(Moments {
            baseline,
            long_sent,
            long_prompt,
        })
    }
}

/// One stream; it is left when `stop` is set.
fn stream(
    client: &Client,
    text: String,
    output_tokens: usize,
    number: usize,
    news: &Sender<News>,
    stop: &AtomicBool,
) -> Result<Answer, RequestError> {
    let answer = client.ask_watched(&[Message::user(text)], output_tokens, |_| {
        if stop.load(Ordering::Acquire) {
            return ControlFlow::Break(());
        }
        // The receiver is gone only if the round has been given up.
        let _ = news.send(News::Piece { stream: number });
        ControlFlow::Continue(())
    });
    if !stop.load(Ordering::Acquire) {
        let _ = news.send(News::StreamEnded(
            answer.as_ref().map(|_| ()).map_err(Clone::clone),
        ));
    }
    answer
}

/// Waits until each stream has had so many pieces.
fn wait_for(news: &Receiver<News>, pieces: &mut [usize], count: usize) -> Result<(), RoundError> {
    while pieces.iter().any(|pieces| *pieces < count) {
        match receive(news)? {
            News::Piece { stream } => pieces[stream] += 1,
            News::StreamEnded(result) => return Err(ended_early(result)),
            News::LongPrompt(_) => {}
        }
    }
    Ok(())
}

fn receive(news: &Receiver<News>) -> Result<News, RoundError> {
    news.recv()
        .map_err(|_| RoundError::Meaningless("every agent has ended".to_owned()))
}

fn ended_early(result: Result<(), RequestError>) -> RoundError {
    match result {
        Ok(()) => RoundError::Meaningless(
            "a stream ended before the long prompt was prefilled; use more --output-tokens (the server must \
             know `ignore_eos`)"
                .to_owned(),
        ),
        Err(error) => RoundError::Request(error),
    }
}

fn figures(moments: Moments, streams: &[Answer]) -> Round {
    let Moments {
        baseline,
        long_sent,
        long_prompt,
    } = moments;
    let long_first = long_prompt.sent + long_prompt.time_to_first_token();
    let seconds = |belongs: &dyn Fn(&Gap) -> bool| -> Vec<f64> {
        let all = streams.iter().flat_map(gaps);
        all.filter(belongs).map(Gap::seconds).collect()
    };
    let without = seconds(&|gap| gap.from >= baseline && gap.to <= long_sent);
    // A gap that a part of the prefill fell into counts.
    let with = seconds(&|gap| gap.to > long_sent && gap.from < long_first);
    let mut round = Round::of(long_sent, vec![Ok(long_prompt)], None);
    round.metrics.insert("requests", (streams.len() + 1) as f64);
    round.metrics.insert_distribution(ITL, &with);
    if let (Some(without), Some(with)) = (percentile(&without, 0.95), percentile(&with, 0.95)) {
        round.metrics.insert("figures.itl_p95_without_s", without);
        round
            .metrics
            .insert("figures.interference_ratio", with / without);
    }
    round
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn gaps_belong_to_the_time_they_fell_into() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let answer = |sent, pieces: &[u64]| Answer {
            sent: at(sent),
            pieces: pieces.iter().map(|&piece| at(piece)).collect(),
            ended: at(*pieces.last().unwrap()),
            text: String::new(),
            usage: None,
        };
        let moments = Moments {
            baseline: at(100),
            long_sent: at(205),
            long_prompt: answer(206, &[300]),
        };
        // Before the baseline, four gaps of 20 in it, one across the sending, one within, one after the end.
        let stream = answer(0, &[0, 90, 110, 130, 150, 170, 190, 250, 290, 340, 345]);
        let round = figures(moments, &[stream]);
        let near = |name, expected: f64| {
            let found = round.metrics.get(name).unwrap();
            assert!((found - expected).abs() < 1e-9, "{name}: {found}");
        };
        near("figures.itl_p95_without_s", 0.020);
        near(ITL.max, 0.060);
        near(ITL.p50, 0.050);
        near("ttft_s.p50", 0.094);
        near("figures.interference_ratio", 0.059 / 0.020);
    }
}
