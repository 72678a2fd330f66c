use super::*;

fn sampler(parameters: SamplingParameters) -> SequenceSampler {
    SequenceSampler::new(parameters, &[])
}

fn run(parameters: &SamplingParameters, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = sampler(parameters.clone());
    let mut scratch = SamplingScratch::default();
    (0..count)
        .map(|_| {
            let token = sampler.choose(logits, &mut scratch).expect("finite logits");
            sampler.observe(token);
            token.0
        })
        .collect()
}

fn hot() -> SamplingParameters {
    SamplingParameters {
        temperature: 1.0,
        seed: 7,
        ..Default::default()
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let mut logits = vec![0.0f32; 100];
    logits[37] = 3.0;
    logits[41] = 3.0;
    logits[99] = 3.0;
    assert_eq!(run(&SamplingParameters::default(), &logits, 1), [37]);
}

#[test]
fn nan_and_infinity_are_errors_wherever_they_stand() {
    for length in [1, 15, 16, 17, 100] {
        for at in 0..length {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut logits = vec![1.0f32; length];
                logits[at] = bad;
                let chosen = sampler(hot()).choose(&logits, &mut SamplingScratch::default());
                assert_eq!(chosen, Err(SampleError::NotFinite));
            }
        }
    }
    let nothing = sampler(hot()).choose(&[f32::NEG_INFINITY; 20], &mut SamplingScratch::default());
    assert_eq!(nothing, Err(SampleError::NothingLeft));
}

#[test]
fn seeded_sampling_repeats_and_seeds_differ() {
    let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.37).sin()).collect();
    let first = run(&hot(), &logits, 40);
    assert_eq!(first, run(&hot(), &logits, 40));
    assert_ne!(
        first,
        run(&SamplingParameters { seed: 8, ..hot() }, &logits, 40)
    );
}

#[test]
fn frequencies_follow_the_softmax() {
    let probabilities = [0.5f32, 0.3, 0.15, 0.05];
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
    let drawn = run(&hot(), &logits, 20_000);
    for (id, &p) in probabilities.iter().enumerate() {
        let share = drawn.iter().filter(|&&token| token as usize == id).count() as f32 / 20_000.0;
        assert!(
            (share - p).abs() < 0.02,
            "token {id}: {share} instead of {p}"
        );
    }
}

#[test]
fn top_k_top_p_and_min_p_cut_the_tail() {
    let probabilities = [0.05f32, 0.5, 0.15, 0.3];
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
    let seen = |parameters: SamplingParameters| {
        let mut seen = run(&parameters, &logits, 500);
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(seen(hot()), [0, 1, 2, 3]);
    assert_eq!(seen(SamplingParameters { top_k: 2, ..hot() }), [1, 3]);
    assert_eq!(seen(SamplingParameters { top_k: 1, ..hot() }), [1]);
    assert_eq!(
        seen(SamplingParameters {
            top_p: 0.79,
            ..hot()
        }),
        [1, 3]
    );
    assert_eq!(
        seen(SamplingParameters {
            top_p: 0.9,
            ..hot()
        }),
        [1, 2, 3]
    );
    assert_eq!(
        seen(SamplingParameters {
            top_p: 0.0,
            ..hot()
        }),
        [1]
    );
    assert_eq!(
        seen(SamplingParameters {
            min_p: 0.4,
            ..hot()
        }),
        [1, 3]
    );
}

#[test]
fn the_most_likely_of_many_are_exact() {
    let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 1009) as f32).collect();
    let mut candidates = Vec::new();
    for count in [1, 3, 40, 1000, 4999] {
        keep_most_likely(&logits, count, &mut candidates);
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        ids.truncate(count);
        ids.sort_unstable();
        assert!(
            candidates.iter().map(|c| c.id as usize).eq(ids),
            "top {count}"
        );
    }
}

#[test]
fn the_nucleus_of_a_large_flat_vocabulary_is_exact() {
    let weight = 1.0 / 8192.0;
    let mut candidates: Vec<Candidate> = (0..8192).map(|id| Candidate { id, weight }).collect();
    keep_nucleus(&mut candidates, 0.5);
    assert_eq!(candidates.len(), 4096);
    assert!(
        candidates
            .iter()
            .enumerate()
            .all(|(i, c)| c.id as usize == i)
    );
}

#[test]
fn excluded_tokens_are_not_sampled() {
    let excluded = |parameters: SamplingParameters| SamplingParameters {
        excluded: [TokenId(2), TokenId(0), TokenId(900)].into(),
        ..parameters
    };
    let logits = [2.0f32, 1.0, 3.0, 0.5];
    let greedy = excluded(SamplingParameters::default());
    assert_eq!(run(&greedy, &logits, 1), [1]);
    assert_eq!(run(&greedy, &[2.0, 3.0, 1.0, 0.5], 1), [1], "not needed");
    assert_eq!(run(&greedy, &[2.0, 0.0, 3.0, 0.5], 1), [3]);
    let drawn = run(&excluded(hot()), &logits, 200);
    assert!(drawn.contains(&1) && drawn.contains(&3));
    assert!(drawn.iter().all(|token| [1, 3].contains(token)));
    let biased = SamplingParameters {
        logit_bias: [(TokenId(2), 100.0), (TokenId(3), 10.0)].into(),
        ..excluded(SamplingParameters::default())
    };
    assert_eq!(run(&biased, &logits, 1), [3]);
    let mut scratch = SamplingScratch::default();
    let everything = SamplingParameters {
        excluded: (0..4).map(TokenId).collect(),
        ..SamplingParameters::default()
    };
    assert!(sampler(everything).choose(&logits, &mut scratch).is_err());
    for parameters in [greedy, excluded(hot())] {
        let damaged = [2.0, 1.0, f32::NAN, 0.5];
        let found = sampler(parameters).choose(&damaged, &mut scratch);
        assert_eq!(
            found,
            Err(SampleError::NotFinite),
            "also of what is excluded"
        );
    }
}

#[test]
fn penalties_and_bias_move_the_choice() {
    let logits = [2.0f32, 1.9, 0.0];
    let penalized = |parameters| run(&parameters, &logits, 3);
    assert_eq!(
        penalized(SamplingParameters {
            presence_penalty: 0.5,
            ..Default::default()
        }),
        [0, 1, 0]
    );
    assert_eq!(
        penalized(SamplingParameters {
            frequency_penalty: 0.2,
            ..Default::default()
        }),
        [0, 1, 0]
    );
    assert_eq!(
        penalized(SamplingParameters {
            repetition_penalty: 10.0,
            ..Default::default()
        }),
        [0, 1, 0]
    );
    let biased = SamplingParameters {
        logit_bias: [(TokenId(2), 100.0), (TokenId(900), 1.0)].into(),
        ..Default::default()
    };
    assert_eq!(penalized(biased), [2, 2, 2]);
    let mut seen_in_prompt = SequenceSampler::new(
        SamplingParameters {
            repetition_penalty: 1.5,
            ..Default::default()
        },
        &[TokenId(0)],
    );
    let mut scratch = SamplingScratch::default();
    assert_eq!(seen_in_prompt.choose(&logits, &mut scratch), Ok(TokenId(1)));
    seen_in_prompt.observe(TokenId(1));
    assert_eq!(seen_in_prompt.choose(&logits, &mut scratch), Ok(TokenId(0)));
}
