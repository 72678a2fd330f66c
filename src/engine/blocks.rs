//! How many KV blocks there are.

use super::error::EngineError;
use super::layers::DecoderDescription;
use super::memory;
use super::options::{EngineOptions, KvSize};

/// With [`KvSize::Auto`]: enough for this many tokens, or one context window, is enough.
const AUTO_TOKENS: usize = 262_144;

/// With [`KvSize::Auto`]: the most that is taken of a device whose free memory is not known.
const AUTO_UNKNOWN_BYTES: u64 = 4 << 30;

/// The size of the KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvPoolSize {
    pub blocks: usize,
    pub block_size: usize,
    /// Bytes of one block: keys and values of all layers.
    pub block_bytes: usize,
}

impl KvPoolSize {
    /// Decides the pool's size for a model. With [`KvSize::Auto`], half of the memory that is free now is
    /// the most it takes. `own_memory` says that the device has memory apart from the system's, of which we
    /// know nothing.
    ///
    /// # Errors
    /// When not even one block fits.
    pub fn choose(
        description: &DecoderDescription,
        options: &EngineOptions,
        own_memory: bool,
    ) -> Result<Self, EngineError> {
        let available = if own_memory {
            Some(2 * AUTO_UNKNOWN_BYTES)
        } else {
            memory::available()
        };
        Self::within(description, options, available)
    }

    /// [`Self::choose`] with `available` bytes of free memory, or `None` if that is unknown.
    fn within(
        description: &DecoderDescription,
        options: &EngineOptions,
        available: Option<u64>,
    ) -> Result<Self, EngineError> {
        let block_size = options.block_size;
        let block_bytes = 2
            * description.layers
            * block_size
            * options
                .kv_dtype
                .row_bytes(description.kv_heads, description.head_dim);
        let fitting =
            |bytes: u64| usize::try_from(bytes / block_bytes as u64).unwrap_or(usize::MAX);
        let blocks = match options.kv_size {
            KvSize::Blocks(blocks) => blocks,
            KvSize::Bytes(bytes) => fitting(bytes),
            KvSize::Auto => {
                let context = options.context_window.unwrap_or(description.context_window);
                let wanted = AUTO_TOKENS
                    .max(context.min(description.context_window))
                    .div_ceil(block_size);
                available.map_or(wanted, |bytes| wanted.min(fitting(bytes / 2)))
            }
        };
        // Block and slot numbers are u32 in block tables and on devices.
        let blocks = blocks.min(u32::MAX as usize / (block_size * description.kv_heads));
        if blocks == 0 {
            return Err(EngineError::InvalidOption(format!(
                "not one KV block fits the memory it may take: a block of {block_size} tokens needs {block_bytes} bytes"
            )));
        }
        Ok(Self {
            blocks,
            block_size,
            block_bytes,
        })
    }

    pub fn bytes(&self) -> u64 {
        self.blocks as u64 * self.block_bytes as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::options::KvDtype;

    fn description() -> DecoderDescription {
        DecoderDescription {
            vocabulary: 100,
            hidden: 64,
            layers: 6,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            intermediate: 128,
            norm_epsilon: 1e-6,
            context_window: 32_768,
            inverse_frequencies: vec![1.0; 32],
            qkv_bias: false,
            output_bias: false,
            head_norms: true,
            tied_head: true,
        }
    }

    #[test]
    fn the_pool_takes_what_was_asked_for_or_a_share_of_what_is_free() {
        let size = |kv_size, available| {
            let options = EngineOptions {
                kv_size,
                ..Default::default()
            };
            KvPoolSize::within(&description(), &options, available)
        };
        // 2 x 6 layers x 2 heads x 64 numbers x 32 tokens x 2 bytes.
        let block_bytes = 98_304;
        let auto = size(KvSize::Auto, Some(1 << 40)).expect("fits");
        assert_eq!((auto.blocks, auto.block_bytes), (262_144 / 32, block_bytes));
        assert_eq!(size(KvSize::Auto, None).expect("fits").blocks, 262_144 / 32);
        assert_eq!(
            size(KvSize::Auto, Some(200 * block_bytes as u64))
                .expect("fits")
                .blocks,
            100
        );
        assert_eq!(
            size(KvSize::Bytes(1_000_000), None).expect("fits").blocks,
            10
        );
        assert_eq!(size(KvSize::Blocks(7), Some(0)).expect("fits").blocks, 7);
        assert!(size(KvSize::Auto, Some(1000)).is_err());
        assert!(size(KvSize::Bytes(1000), None).is_err());
        let wide = EngineOptions {
            kv_dtype: KvDtype::F32,
            ..Default::default()
        };
        let wide = KvPoolSize::within(&description(), &wide, None).expect("fits");
        assert_eq!(wide.block_bytes, 2 * block_bytes);
    }
}
