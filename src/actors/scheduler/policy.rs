//! What the next step computes: a pure function of the queues and the limits.
//!
//! Every running sequence that can decode gets its row. What the token budget leaves goes to prefill
//! chunks, the oldest sequence first, and to admissions, in order of arrival.

use crate::ids::SequenceId;

/// A running sequence, as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningView {
    pub sequence: SequenceId,
    pub work: Work,
}

/// What a running sequence could do in the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Compute some of `remaining` known tokens (at least 1).
    Prefill { remaining: usize },
    /// Compute the token sampled last and sample the next.
    Decode { needs_block: bool },
    /// Nothing: all it may compute is at the engine already, or it is ending.
    Idle,
}

/// Bounds of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Token rows of a step. Decode rows take no heed of it (there are at most `max_running`).
    pub batch_tokens: usize,
    /// Rows that prefill gets even when decode rows alone fill the step, so that it never starves.
    pub min_prefill_tokens: usize,
    /// Sequences that hold blocks at the same time.
    pub max_running: usize,
}

/// What the next step should compute, as far as blocks allow.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// One row each.
    pub decodes: Vec<SequenceId>,
    /// Those of `decodes` that need one more block, oldest first.
    pub growth: Vec<SequenceId>,
    /// So many tokens each.
    pub prefills: Vec<(SequenceId, usize)>,
    pub admissions: Admissions,
}

/// How many waiting sequences may begin.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Admissions {
    /// In order of arrival.
    pub candidates: Vec<SequenceId>,
    /// How many of them at most.
    pub slots: usize,
    /// Tokens of the step that are left for them.
    pub tokens: usize,
    /// Blocks to keep available: each running sequence may need one more soon.
    pub reserve: usize,
}

/// Decides on the next step. `running` and `waiting` are in order of arrival; `waiting` holds only
/// sequences that are ready (not those that wait for another's promise).
pub fn decide(running: &[RunningView], waiting: &[SequenceId], limits: Limits) -> Decision {
    let mut decision = Decision::default();
    for view in running {
        if let Work::Decode { needs_block } = view.work {
            decision.decodes.push(view.sequence);
            if needs_block {
                decision.growth.push(view.sequence);
            }
        }
    }

    let least = limits.min_prefill_tokens.min(limits.batch_tokens).max(1);
    let mut tokens = limits
        .batch_tokens
        .saturating_sub(decision.decodes.len())
        .max(least);
    for view in running {
        if let Work::Prefill { remaining } = view.work
            && tokens > 0
        {
            let chunk = remaining.min(tokens);
            decision.prefills.push((view.sequence, chunk));
            tokens -= chunk;
        }
    }

    let slots = limits.max_running.saturating_sub(running.len());
    if slots > 0 && tokens > 0 {
        decision.admissions = Admissions {
            candidates: waiting.iter().copied().take(slots).collect(),
            slots,
            tokens,
            reserve: running.len(),
        };
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        batch_tokens: 10,
        min_prefill_tokens: 2,
        max_running: 4,
    };

    fn view(id: u64, work: Work) -> RunningView {
        RunningView {
            sequence: SequenceId(id),
            work,
        }
    }

    fn ids(ids: &[u64]) -> Vec<SequenceId> {
        ids.iter().copied().map(SequenceId).collect()
    }

    #[test]
    fn decode_rows_come_first_and_prefill_gets_the_rest_in_order_of_arrival() {
        let running = [
            view(1, Work::Prefill { remaining: 6 }),
            view(2, Work::Decode { needs_block: false }),
            view(3, Work::Prefill { remaining: 6 }),
        ];
        let decision = decide(&running, &ids(&[4]), LIMITS);
        assert_eq!(decision.decodes, ids(&[2]));
        assert_eq!(decision.growth, []);
        assert_eq!(decision.prefills, [(SequenceId(1), 6), (SequenceId(3), 3)]);
        assert_eq!(
            decision.admissions,
            Admissions::default(),
            "the budget is used up"
        );
    }

    #[test]
    fn prefill_never_starves_behind_decode_rows() {
        let running: Vec<_> = (1..=20)
            .map(|id| view(id, Work::Decode { needs_block: true }))
            .chain([view(21, Work::Prefill { remaining: 100 })])
            .collect();
        let decision = decide(&running, &[], LIMITS);
        assert_eq!(decision.decodes.len(), 20);
        assert_eq!(decision.growth, decision.decodes);
        assert_eq!(decision.prefills, [(SequenceId(21), 2)]);
    }

    #[test]
    fn admissions_keep_to_the_slots_and_leave_blocks_to_grow() {
        let running = [
            view(1, Work::Idle),
            view(2, Work::Decode { needs_block: false }),
        ];
        let decision = decide(&running, &ids(&[3, 4, 5]), LIMITS);
        let expected = Admissions {
            candidates: ids(&[3, 4]),
            slots: 2,
            tokens: 9,
            reserve: 2,
        };
        assert_eq!(decision.admissions, expected);
    }

    #[test]
    fn a_full_house_admits_nobody() {
        let running: Vec<_> = (1..=4).map(|id| view(id, Work::Idle)).collect();
        assert_eq!(decide(&running, &ids(&[5]), LIMITS), Decision::default());
    }
}
