//! What the next step computes: pure functions of the queues and the limits.
//!
//! Every running sequence that can decode gets its row. How many prompt tokens come on top is given
//! ([`super::budget`]); here they are divided among the prompts that are being computed or could begin.
//! The oldest is sure of half of them, so that it is done in at most twice its time whatever comes
//! after it; the rest goes to whoever is nearest to a first token, so that a short prompt need not wait
//! for a long one. Prompts of equal length are thereby computed in order of arrival.

use crate::ids::SequenceId;

/// A prompt of any length claims at most this part of a step when new ones are let in beside it.
const CLAIMS: usize = 8;

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

/// A waiting sequence that could begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingView {
    pub sequence: SequenceId,
    /// All its tokens; how many of them are cached is not known yet.
    pub tokens: usize,
}

/// Bounds of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Prompt tokens of the step, at least 1.
    pub prefill_tokens: usize,
    /// Sequences that hold blocks at the same time.
    pub max_running: usize,
}

/// What the next step should compute, as far as blocks allow. What prompts get is decided by
/// [`share`], when it is known who was admitted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// One row each.
    pub decodes: Vec<SequenceId>,
    /// Those of `decodes` that need one more block, oldest first.
    pub growth: Vec<SequenceId>,
    /// Whether a running sequence has prompt tokens to compute.
    pub prefills: bool,
    pub admissions: Admissions,
}

/// How many waiting sequences may begin.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Admissions {
    /// In order of arrival.
    pub candidates: Vec<SequenceId>,
    /// How many of them at most.
    pub slots: usize,
    /// The tokens that they may claim together; never more than the step has for prompts.
    pub tokens: usize,
    /// What each claims of these: as many as it has to compute, and at most this many.
    pub claim: usize,
    /// Blocks to keep available: each running sequence may need one more soon.
    pub reserve: usize,
}

/// Decides on the next step. `running` and `waiting` are in order of arrival; `waiting` holds only
/// sequences that are ready (not those that wait for another's promise).
pub fn decide(running: &[RunningView], waiting: &[WaitingView], limits: Limits) -> Decision {
    let mut decision = Decision::default();
    for view in running {
        match view.work {
            Work::Decode { needs_block } => {
                decision.decodes.push(view.sequence);
                if needs_block {
                    decision.growth.push(view.sequence);
                }
            }
            Work::Prefill { .. } => decision.prefills = true,
            Work::Idle => {}
        }
    }
    let slots = limits.max_running.saturating_sub(running.len());
    if slots > 0
        && let Some(oldest) = waiting.first()
    {
        decision.admissions = admissions(running, waiting, *oldest, slots, limits);
    }
    decision
}

/// Who may begin. A prompt that is being computed claims an eighth of the step, or less if it is
/// shorter; what those that are older leave unclaimed is for newcomers, in order of arrival. If they
/// leave nothing, a newcomer that is shorter than all of them is let in all the same.
fn admissions(
    running: &[RunningView],
    waiting: &[WaitingView],
    oldest: WaitingView,
    slots: usize,
    limits: Limits,
) -> Admissions {
    let claim = (limits.prefill_tokens / CLAIMS).max(1);
    let prefills = running.iter().filter_map(|view| match view.work {
        Work::Prefill { remaining } => Some((view.sequence, remaining)),
        _ => None,
    });
    let older = prefills.clone().filter(|(id, _)| *id < oldest.sequence);
    let claimed: usize = older.map(|(_, remaining)| remaining.min(claim)).sum();
    let mut admissions = Admissions {
        candidates: Vec::new(),
        slots,
        tokens: limits.prefill_tokens.saturating_sub(claimed),
        claim,
        reserve: running.len(),
    };
    if admissions.tokens > 0 {
        let first = waiting.iter().take(slots);
        admissions.candidates = first.map(|view| view.sequence).collect();
    } else {
        let shortest_prefill = prefills.map(|(_, remaining)| remaining).min();
        let shortest = waiting.iter().min_by_key(|view| view.tokens);
        let overtaking =
            shortest.filter(|view| shortest_prefill.is_some_and(|most| view.tokens < most));
        admissions.candidates = overtaking.map(|view| view.sequence).into_iter().collect();
        admissions.tokens = 1;
    }
    admissions
}

/// A running sequence that has tokens of its prompt to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefillView {
    pub sequence: SequenceId,
    /// At least 1.
    pub remaining: usize,
    /// Tokens to a first token: its own, or that of a shorter sequence that waits for what it computes.
    pub distance: usize,
    /// It has just been admitted: the engine must learn of its blocks, so it gets a token at least.
    pub admitted: bool,
}

/// Divides `tokens` among `prefills`, which are in order of arrival. At most `tokens` of them have just
/// been admitted. Returns those that get any.
pub fn share(prefills: &[PrefillView], tokens: usize) -> Vec<(SequenceId, usize)> {
    let mut chunks = vec![0; prefills.len()];
    let mut left = tokens;
    let mut give = |index: usize, most: usize| {
        let wanted = prefills[index].remaining - chunks[index];
        let given = wanted.min(most).min(left);
        chunks[index] += given;
        left -= given;
    };
    for (index, view) in prefills.iter().enumerate() {
        if view.admitted {
            give(index, 1);
        }
    }
    if !prefills.is_empty() {
        give(0, tokens.div_ceil(2));
    }
    let mut nearest: Vec<_> = (0..prefills.len()).collect();
    // Stable: of equals, the older is first.
    nearest.sort_by_key(|&index| prefills[index].distance);
    for index in nearest {
        give(index, usize::MAX);
    }
    let shares = prefills.iter().zip(chunks);
    shares
        .filter(|(_, chunk)| *chunk > 0)
        .map(|(view, chunk)| (view.sequence, chunk))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        prefill_tokens: 16,
        max_running: 4,
    };

    fn running(id: u64, work: Work) -> RunningView {
        RunningView {
            sequence: SequenceId(id),
            work,
        }
    }

    fn prefilling(id: u64, remaining: usize) -> RunningView {
        running(id, Work::Prefill { remaining })
    }

    fn waiting(views: &[(u64, usize)]) -> Vec<WaitingView> {
        let view = |&(id, tokens): &(u64, usize)| WaitingView {
            sequence: SequenceId(id),
            tokens,
        };
        views.iter().map(view).collect()
    }

    fn ids(ids: &[u64]) -> Vec<SequenceId> {
        ids.iter().copied().map(SequenceId).collect()
    }

    #[test]
    fn every_stream_gets_its_row() {
        let views = [
            prefilling(1, 6),
            running(2, Work::Decode { needs_block: false }),
            running(3, Work::Idle),
            running(4, Work::Decode { needs_block: true }),
        ];
        let decision = decide(&views, &[], LIMITS);
        assert_eq!(decision.decodes, ids(&[2, 4]));
        assert_eq!(decision.growth, ids(&[4]));
        assert!(decision.prefills);
        assert_eq!(decision.admissions, Admissions::default());
    }

    #[test]
    fn admissions_keep_to_the_slots_and_leave_blocks_to_grow() {
        let views = [
            running(1, Work::Idle),
            running(2, Work::Decode { needs_block: false }),
        ];
        let decision = decide(&views, &waiting(&[(3, 9), (4, 9), (5, 9)]), LIMITS);
        let expected = Admissions {
            candidates: ids(&[3, 4]),
            slots: 2,
            tokens: 16,
            claim: 2,
            reserve: 2,
        };
        assert_eq!(decision.admissions, expected);
    }

    #[test]
    fn a_full_house_admits_nobody() {
        let views: Vec<_> = (1..=4).map(|id| running(id, Work::Idle)).collect();
        let decision = decide(&views, &waiting(&[(5, 1)]), LIMITS);
        assert_eq!(decision, Decision::default());
    }

    #[test]
    fn a_long_prompt_leaves_room_for_newcomers() {
        let decision = decide(&[prefilling(1, 30_000)], &waiting(&[(2, 40)]), LIMITS);
        assert_eq!(decision.admissions.candidates, ids(&[2]));
        assert_eq!(decision.admissions.tokens, 14);
    }

    #[test]
    fn behind_many_long_prompts_only_a_shorter_one_is_let_in() {
        let many: Vec<_> = (1..=8).map(|id| prefilling(id, 1000)).collect();
        let limits = Limits {
            max_running: 20,
            ..LIMITS
        };
        let decide = |views: &[(u64, usize)]| decide(&many, &waiting(views), limits).admissions;
        assert_eq!(decide(&[(9, 1000), (10, 5000)]).candidates, []);
        let overtaking = decide(&[(9, 1000), (10, 50), (11, 40), (12, 40)]);
        assert_eq!(overtaking.candidates, ids(&[11]));
        assert_eq!(overtaking.tokens, 1);
    }

    #[test]
    fn who_came_later_claims_nothing_of_the_oldest() {
        let later: Vec<_> = (2..=9).map(|id| prefilling(id, 1000)).collect();
        let limits = Limits {
            max_running: 20,
            ..LIMITS
        };
        let decision = decide(&later, &waiting(&[(1, 5000)]), limits);
        assert_eq!(decision.admissions.candidates, ids(&[1]));
        assert_eq!(decision.admissions.tokens, 16);
    }

    fn shares(prefills: &[(usize, usize, bool)], tokens: usize) -> Vec<(u64, usize)> {
        let view = |(index, &(remaining, distance, admitted)): (usize, &(usize, usize, bool))| {
            PrefillView {
                sequence: SequenceId(index as u64 + 1),
                remaining,
                distance,
                admitted,
            }
        };
        let views: Vec<_> = prefills.iter().enumerate().map(view).collect();
        let shares = share(&views, tokens);
        shares
            .into_iter()
            .map(|(id, chunk)| (id.0, chunk))
            .collect()
    }

    /// Prompts that nobody else waits for, admitted earlier.
    fn plain(remaining: &[usize], tokens: usize) -> Vec<(u64, usize)> {
        let views: Vec<_> = remaining.iter().map(|&left| (left, left, false)).collect();
        shares(&views, tokens)
    }

    #[test]
    fn prompts_of_equal_length_are_computed_in_order_of_arrival() {
        assert_eq!(plain(&[900, 900, 900], 512), [(1, 512)]);
        assert_eq!(plain(&[388, 900, 900], 512), [(1, 388), (2, 124)]);
        assert_eq!(plain(&[], 512), []);
    }

    #[test]
    fn the_oldest_is_sure_of_half_and_the_nearest_to_a_first_token_gets_the_rest() {
        assert_eq!(plain(&[30_000, 40], 512), [(1, 472), (2, 40)]);
        assert_eq!(plain(&[30_000, 4000, 300], 512), [(1, 256), (3, 256)]);
        assert_eq!(
            plain(&[30_000, 4000, 44], 512),
            [(1, 256), (2, 212), (3, 44)]
        );
        assert_eq!(plain(&[30_000, 40], 1), [(1, 1)], "it is never starved");
    }

    /// However many short prompts come, the long one is done in twice its time.
    #[test]
    fn short_prompts_without_end_take_no_more_than_half() {
        let mut long = 30_000;
        let mut steps = 0;
        while long > 0 {
            let chunks = plain(&[long, 40, 40, 40, 40, 40, 40, 40, 40], 100);
            assert_eq!(chunks.iter().map(|(_, chunk)| chunk).sum::<usize>(), 100);
            long -= chunks[0].1;
            steps += 1;
        }
        assert_eq!(steps, 600);
    }

    /// The second is long itself, but a short one waits for its beginning.
    #[test]
    fn a_prompt_is_as_urgent_as_who_waits_for_it() {
        let prefills = [
            (30_000, 30_000, false),
            (20_000, 300, false),
            (900, 900, false),
        ];
        assert_eq!(shares(&prefills, 512), [(1, 256), (2, 256)]);
    }

    #[test]
    fn who_was_just_admitted_gets_a_token_at_least() {
        let prefills = [(900, 900, false), (20, 20, true), (5000, 5000, true)];
        assert_eq!(shares(&prefills, 32), [(1, 16), (2, 15), (3, 1)]);
        assert_eq!(shares(&prefills, 2), [(2, 1), (3, 1)]);
    }
}
