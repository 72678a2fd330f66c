//! Inputs made from other inputs.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

/// Bytes of an input, at most.
const LARGEST: usize = 512 * 1024;
/// Levels of nesting that [`Mutator::json`] adds at once.
const DEEPEST: usize = 200;

/// Makes new inputs from the seeds.
pub struct Mutator {
    random: StdRng,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    pub fn new(random: StdRng, seeds: Vec<Vec<u8>>) -> Self {
        Self { random, seeds }
    }

    fn seed(&mut self) -> Vec<u8> {
        self.seeds
            .choose(&mut self.random)
            .cloned()
            .unwrap_or_default()
    }

    /// A seed with a few changes to its bytes.
    pub fn bytes(&mut self) -> Vec<u8> {
        let mut input = self.seed();
        for _ in 0..self.random.random_range(1..=4) {
            self.change(&mut input);
        }
        input.truncate(LARGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        const INTERESTING: [u64; 10] = [
            0,
            1,
            7,
            0x7f,
            0xff,
            0xffff,
            0x7fff_ffff,
            0xffff_ffff,
            i64::MAX as u64,
            u64::MAX,
        ];
        let random = &mut self.random;
        // Headers are short and at the beginning: half of the changes go there.
        let within = if random.random() {
            input.len().min(4096)
        } else {
            input.len()
        };
        let at = random.random_range(0..=within);
        let end = (at + random.random_range(1..=16)).min(input.len());
        match random.random_range(0..7) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => {
                let value = INTERESTING
                    .choose(random)
                    .copied()
                    .unwrap_or(0)
                    .to_le_bytes();
                let width = [1, 2, 4, 8]
                    .choose(random)
                    .copied()
                    .unwrap_or(8)
                    .min(input.len() - at.min(input.len()));
                input[at..at + width].copy_from_slice(&value[..width]);
            }
            3 => drop(input.drain(at..end)),
            4 => {
                let piece = input[at..end].to_vec();
                let to = random.random_range(0..=input.len());
                input.splice(to..to, piece);
            }
            5 => input.truncate(at),
            _ => {
                let other = self.seed();
                let from = self.random.random_range(0..=other.len());
                let until = (from + self.random.random_range(0..64)).min(other.len());
                input.splice(at..end, other[from..until].iter().copied());
            }
        }
    }

    /// A seed with a few of its values changed; one in six with changed bytes instead.
    pub fn json(&mut self) -> Vec<u8> {
        let seed = self.seed();
        let parsed = serde_json::from_slice::<Value>(&seed);
        let (Ok(mut value), false) = (parsed, self.random.random_ratio(1, 6)) else {
            return self.bytes();
        };
        for _ in 0..self.random.random_range(1..=4) {
            let places = count(&value);
            let place = self.random.random_range(0..places);
            let other = self.odd_value();
            let action = self.random.random_range(0..6);
            let mut left = place;
            visit(&mut value, &mut left, &mut |found| match action {
                0 => *found = Value::Null,
                1 => *found = json!([found.take()]),
                2 => match found {
                    Value::Array(items) if !items.is_empty() => items.push(items[0].clone()),
                    Value::Array(items) => items.push(other.clone()),
                    Value::Object(members) => remove_any(members, place),
                    _ => *found = other.clone(),
                },
                3 => *found = nested(found.take(), place % DEEPEST),
                _ => *found = other.clone(),
            });
        }
        value.to_string().into_bytes()
    }

    /// A value that is seldom what was expected.
    fn odd_value(&mut self) -> Value {
        let random = &mut self.random;
        match random.random_range(0..14) {
            0 => json!(true),
            1 => json!(-1),
            2 => json!(0),
            3 => json!(1e308),
            4 => json!(u64::MAX),
            5 => json!(0.5),
            6 => json!(""),
            7 => json!("\u{0}\u{202e}\u{1f600}<|im_end|>"),
            8 => json!("x".repeat(random.random_range(0..3000))),
            9 => json!([]),
            10 => json!({}),
            11 => json!({"type": "text", "text": "hi"}),
            12 => json!(["user", 1, null]),
            _ => json!(random.random::<i32>()),
        }
    }

    /// Pieces of the dictionary and of the seeds, one after another.
    pub fn text(&mut self, dictionary: &[&str]) -> Vec<u8> {
        let mut text = if self.random.random() {
            self.seed()
        } else {
            Vec::new()
        };
        for _ in 0..self.random.random_range(1..=12) {
            let piece = match self.random.random_range(0..8) {
                0 => {
                    let seed = self.seed();
                    let from = self.random.random_range(0..=seed.len());
                    let until = self.random.random_range(from..=seed.len());
                    seed[from..until].to_vec()
                }
                1 => char::from_u32(self.random.random_range(0..0x1_1000))
                    .unwrap_or('\u{fffd}')
                    .to_string()
                    .into_bytes(),
                _ => dictionary
                    .choose(&mut self.random)
                    .copied()
                    .unwrap_or_default()
                    .into(),
            };
            let at = if self.random.random_ratio(1, 3) {
                self.random.random_range(0..=text.len())
            } else {
                text.len()
            };
            text.splice(at..at, piece);
        }
        if self.random.random_ratio(1, 8) {
            let repeated = text.clone();
            while text.len() < 20_000 && !repeated.is_empty() {
                text.extend_from_slice(&repeated);
            }
        }
        text.truncate(LARGEST);
        text
    }
}

/// An object without one of its members, whichever.
fn remove_any(members: &mut Map<String, Value>, place: usize) {
    if let Some(name) = members.keys().nth(place % members.len().max(1)).cloned() {
        members.remove(&name);
    }
}

/// `value` in so many arrays.
fn nested(value: Value, levels: usize) -> Value {
    (0..levels).fold(value, |inner, _| json!([inner]))
}

/// How many values there are, the outermost included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

/// Calls `change` on the value with this number, in the order of the text.
fn visit(value: &mut Value, left: &mut usize, change: &mut impl FnMut(&mut Value)) -> bool {
    if *left == 0 {
        change(value);
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| visit(item, left, change)),
        Value::Object(members) => members
            .values_mut()
            .any(|member| visit(member, left, change)),
        _ => false,
    }
}
