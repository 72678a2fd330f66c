//! From the engine's answers to the sequences' progress.

use std::collections::HashMap;
use std::time::Instant;

use super::{RowsInFlight, SchedulerState};
use crate::actors::messages::{Finished, GenerationEvent, GenerationFailure};
use crate::actors::scheduler::budget::StepCost;
use crate::actors::scheduler::sequence::{EventSink, Phase};
use crate::engine::sampler::TokenLogprobs;
use crate::engine::step::{SampledToken, StepOutput};
use crate::ids::SequenceId;

/// What a sequence's rows led to, or why they were not computed.
type Outcome = Result<Results, String>;

struct Results {
    /// The token, if one was to be sampled.
    sampled: Option<SampledToken>,
    /// Of prompt rows, if they were asked for.
    scored: Vec<TokenLogprobs>,
}

impl<E: EventSink> SchedulerState<E> {
    /// Takes the engine's answer to the oldest plan in flight.
    pub fn take_output(&mut self, output: StepOutput, now: Instant) {
        // After the engine stopped there may be stragglers.
        let Some(plan) = self.plans.pop_front() else {
            return;
        };
        debug_assert_eq!(plan.number, output.number, "outputs come in plan order");
        self.stirred = true;
        self.observe(&output, plan.prefill_tokens, plan.goes_on);

        let mut failed: HashMap<_, _> = output.failed.into_iter().collect();
        let mut scored: HashMap<_, _> = output.scored.into_iter().collect();
        let mut sampled: HashMap<_, _> = output
            .sampled
            .into_iter()
            .map(|sampled| (sampled.sequence, sampled))
            .collect();
        for rows in plan.rows {
            let id = rows.sequence;
            let sampled = sampled.remove(&id);
            let outcome = match failed.remove(&id) {
                Some(reason) => Err(reason),
                None if rows.sample && sampled.is_none() => {
                    Err("the engine sampled no token".to_owned())
                }
                None => Ok(Results {
                    sampled,
                    scored: scored.remove(&id).unwrap_or_default(),
                }),
            };
            let finished = if self.running.contains_key(&id) {
                self.take_running(rows, outcome, now)
            } else {
                self.take_preempted(rows, outcome, now)
            };
            if let Some(finished) = finished {
                self.finish(id, finished, now);
            }
        }
    }

    fn observe(&mut self, output: &StepOutput, prefill_tokens: usize, goes_on: bool) {
        let step = &output.statistics;
        if step.sequences > 0 {
            self.metrics
                .step_duration_seconds
                .observe(step.duration.as_secs_f64());
            if goes_on {
                self.metrics
                    .engine_wait_seconds
                    .inc_by(step.waited.as_secs_f64());
            }
            self.metrics.step_rows.observe(step.sequences as f64);
            self.metrics.step_tokens.observe(step.tokens as f64);
        }
        // A plan in which rows failed was not computed as it was made.
        if output.failed.is_empty() {
            self.budget.observe(StepCost {
                // Rows of sequences that ended meanwhile were skipped.
                decode_rows: step.tokens.saturating_sub(prefill_tokens),
                prefill_tokens,
                duration: step.duration,
            });
        }
        self.metrics
            .generation_tokens
            .inc_by(output.sampled.len() as u64);
    }

    /// Takes what became of the rows of a sequence that still holds its blocks.
    fn take_running(
        &mut self,
        rows: RowsInFlight,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Finished> {
        let id = rows.sequence;
        let running = self.running.get_mut(&id)?;
        running.sequence.answered(rows.sample);
        let ending = matches!(running.phase, Phase::Ending);
        let Results { sampled, scored } = match outcome {
            Ok(results) => results,
            Err(reason) => {
                // What later rows of it compute rests on what is missing: none of it is kept.
                if !ending {
                    self.fail(id, GenerationFailure::Engine(reason));
                }
                self.end_running(id);
                return None;
            }
        };
        running.advance(rows.tokens);
        if !ending {
            running.sequence.take_scored(scored);
            return running.sequence.take_token(sampled?, now);
        }
        // Nobody hears it, but it tells which token a further row has computed.
        let token = sampled.map(|sampled| sampled.token);
        running.sequence.generated.extend(token);
        if running.sequence.in_flight == 0 {
            self.end_running(id);
        }
        None
    }

    /// Takes what became of the rows of a sequence that was preempted after they were handed over:
    /// their blocks are lost, but their token counts. Sequences that have ended are ignored.
    fn take_preempted(
        &mut self,
        rows: RowsInFlight,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Finished> {
        let waiting = self.waiting.get_mut(&rows.sequence)?;
        waiting.sequence.answered(rows.sample);
        match outcome {
            Ok(Results { sampled, scored }) => {
                waiting.sequence.take_scored(scored);
                waiting.take_token(sampled?, now)
            }
            Err(reason) => {
                self.fail(rows.sequence, GenerationFailure::Engine(reason));
                None
            }
        }
    }

    fn finish(&mut self, id: SequenceId, finished: Finished, now: Instant) {
        let running = self.running.get(&id).map(|running| &running.sequence);
        let waiting = self.waiting.get(&id).map(|waiting| &waiting.sequence);
        if let Some(sequence) = running.or(waiting) {
            sequence.events.send(GenerationEvent::Finished(finished));
            self.deadlines.remove(&(sequence.request.deadline, id));
        }
        self.pace.completed(now);
        self.end_running(id);
        self.end_waiting(id);
    }
}
