//! How much a forward pass must read and compute, from the model's description and weights alone.

use std::collections::BTreeMap;

use candle_core::DType;

use crate::engine::layers::{Decoder, DecoderDescription, WeightBackend};
use crate::engine::loader::{Weight, Weights};
use crate::engine::{EngineError, KvDtype};

/// Numbers and bytes of projections, by weight format.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Projections(BTreeMap<String, Size>);

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Size {
    numbers: u64,
    bytes: u64,
}

impl Projections {
    fn add(&mut self, weight: &Weight) {
        let numbers = weight.dims().iter().product::<usize>() as u64;
        let bytes = match weight {
            Weight::Dense(tensor) => numbers * tensor.dtype().size_in_bytes() as u64,
            Weight::Quantized(tensor) => tensor.storage_size_in_bytes() as u64,
        };
        let size = self.0.entry(format_of(weight)).or_default();
        size.numbers += numbers;
        size.bytes += bytes;
    }

    fn merge(&mut self, other: &Projections) {
        for (format, other) in &other.0 {
            let size = self.0.entry(format.clone()).or_default();
            size.numbers += other.numbers;
            size.bytes += other.bytes;
        }
    }

    pub fn numbers(&self) -> u64 {
        self.0.values().map(|size| size.numbers).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.0.values().map(|size| size.bytes).sum()
    }

    /// Formats and their share of all numbers.
    pub fn shares(&self) -> impl Iterator<Item = (&str, f64)> {
        let all = self.numbers() as f64;
        let formats = self.0.iter();
        formats.map(move |(format, size)| (format.as_str(), size.numbers as f64 / all))
    }
}

/// The name of a weight's format, as model files write it.
pub fn format_of(weight: &Weight) -> String {
    match weight {
        Weight::Dense(tensor) => match tensor.dtype() {
            DType::F32 => "f32".to_owned(),
            DType::F16 => "f16".to_owned(),
            DType::BF16 => "bf16".to_owned(),
            other => other.as_str().to_owned(),
        },
        Weight::Quantized(tensor) => {
            // GgmlDType's own names lack the underscore of the K-quants (Q4K).
            let name = format!("{:?}", tensor.dtype()).to_lowercase();
            match name.strip_suffix('k') {
                Some(bits) => format!("{bits}_k"),
                None => name,
            }
        }
    }
}

/// Adds up weights instead of packing them.
struct Counting;

impl WeightBackend for Counting {
    type Linear = Projections;
    type Embedding = Projections;
    type Vector = ();

    fn linear(
        &self,
        parts: Vec<Weight>,
        _bias: Option<Vec<f32>>,
    ) -> Result<Projections, EngineError> {
        let mut sum = Projections::default();
        parts.iter().for_each(|part| sum.add(part));
        Ok(sum)
    }

    fn embedding(&self, weight: Weight) -> Result<Projections, EngineError> {
        self.linear(vec![weight], None)
    }

    fn tied_head(&self, embedding: &Projections) -> Result<Projections, EngineError> {
        Ok(embedding.clone())
    }

    fn vector(&self, _values: Vec<f32>) -> Result<(), EngineError> {
        Ok(())
    }
}

/// Rows of one sequence in a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Position of the first.
    pub start: usize,
    pub count: usize,
    /// Whether the last one's logits are wanted.
    pub sample: bool,
}

impl Rows {
    /// One row at the end of a context of `context` positions, its own included.
    pub fn decode(context: usize) -> Self {
        Self {
            start: context - 1,
            count: 1,
            sample: true,
        }
    }
}

/// A model in numbers.
#[derive(Debug)]
pub struct ModelWork {
    layers: u64,
    /// Query, key and value projections of one layer.
    qkv: u64,
    /// The other projections of one layer.
    rest: u64,
    head: u64,
    /// Multiply-adds of one query row with one key, and with one value, in one layer: query heads times
    /// head dimension.
    query_width: u64,
    kv_heads: usize,
    head_dim: usize,
    /// All projections of the layers, and of the head.
    pub projections: Projections,
    /// The projections of the layers alone, which most rows pass.
    pub layer_projections: Projections,
}

impl ModelWork {
    /// Reads all weights once.
    ///
    /// # Errors
    /// When one is missing or damaged.
    pub fn of(
        description: &DecoderDescription,
        weights: &dyn Weights,
    ) -> Result<Self, EngineError> {
        let decoder = Decoder::build(description.clone(), weights, &Counting)?;
        let d = &decoder.description;
        let mut layer_projections = Projections::default();
        for layer in &decoder.layers {
            for part in [&layer.qkv, &layer.output, &layer.gate_up, &layer.down] {
                layer_projections.merge(part);
            }
        }
        let mut projections = layer_projections.clone();
        projections.merge(&decoder.head);
        let (hidden, intermediate) = (d.hidden as u64, d.intermediate as u64);
        Ok(Self {
            layers: d.layers as u64,
            qkv: d.qkv_width() as u64 * hidden,
            rest: d.query_width() as u64 * hidden + 3 * hidden * intermediate,
            head: decoder.head.numbers(),
            query_width: d.query_width() as u64,
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            projections,
            layer_projections,
        })
    }

    /// Bytes of weights that one pass reads: all projections, once.
    pub fn weight_bytes(&self) -> u64 {
        self.projections.bytes()
    }

    /// Bytes of keys and values of so many positions, in all layers.
    pub fn kv_bytes(&self, positions: usize, kind: KvDtype) -> u64 {
        let row = kind.row_bytes(self.kv_heads, self.head_dim);
        self.layers * (positions * 2 * row) as u64
    }

    /// Floating-point operations that a pass cannot do without: two for each multiply-add of projections
    /// and attention. In the last layer only sampled rows need more than their keys and values.
    pub fn flops(&self, batch: &[Rows]) -> f64 {
        let mut multiply_adds = 0;
        for rows in batch {
            let count = rows.count as u64;
            let sampled = u64::from(rows.sample);
            let upper = self.layers - 1;
            multiply_adds += self.layers * count * self.qkv;
            multiply_adds += (upper * count + sampled) * self.rest + sampled * self.head;
            // Row i sees start + i + 1 keys, and as many values.
            let start = rows.start as u64;
            let keys: u64 = count * start + count * (count + 1) / 2;
            let last_keys = start + count;
            multiply_adds += (upper * keys + sampled * last_keys) * 2 * self.query_width;
        }
        2.0 * multiply_adds as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::loader::{self, HubOptions, ModelSource, hub};
    use crate::engine::models;

    fn demo() -> (ModelWork, DecoderDescription) {
        let source = ModelSource::Embedded;
        let files = loader::resolve(&source, &HubOptions::from_env(), &hub::Silent).unwrap();
        let model = loader::load(&files).unwrap();
        let description = models::describe(&model.config);
        let work = ModelWork::of(&description, model.weights.as_ref()).unwrap();
        (work, description)
    }

    #[test]
    fn work_adds_up() {
        let (work, d) = demo();
        let per_layer =
            d.qkv_width() * d.hidden + d.query_width() * d.hidden + 3 * d.hidden * d.intermediate;
        let numbers = (d.layers * per_layer + d.vocabulary * d.hidden) as u64;
        assert_eq!(work.projections.numbers(), numbers);
        assert_eq!(work.weight_bytes(), 2 * numbers, "the demo model is bf16");
        let shares: Vec<_> = work.projections.shares().collect();
        assert_eq!(shares, [("bf16", 1.0)]);

        let attention = |keys: usize| (d.layers * 2 * d.query_width() * keys) as f64;
        let one = work.flops(&[Rows::decode(1)]);
        assert_eq!(one, 2.0 * (numbers as f64 + attention(1)));
        assert_eq!(work.flops(&[Rows::decode(100)]) - one, 2.0 * attention(99));
        // A prompt at once or in two parts costs the same.
        let rows = |start, count, sample| Rows {
            start,
            count,
            sample,
        };
        let whole = work.flops(&[rows(0, 64, true)]);
        assert_eq!(whole, work.flops(&[rows(0, 40, false), rows(40, 24, true)]));
        // Without the last layer's attention and feed-forward for all but one row.
        assert!(whole < 64.0 * work.flops(&[Rows::decode(64)]));
    }
}
