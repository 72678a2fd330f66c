//! Writing the GGUF container: header, metadata and tensor directory, then the tensors' bytes.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, version 3, little-endian, the data
//! aligned to 32 bytes.

use std::io::{self, Write};

use super::element::ElementType;

const VERSION: u32 = 3;
/// Offsets of tensors are multiples of this, the format's default.
const ALIGNMENT: usize = 32;

/// A metadata value that converters write.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MetadataValue {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A value as it stands in another file: its type's number and its bytes.
    Copied(u32, Vec<u8>),
}

/// A tensor of the directory; its bytes follow in the order of the directory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorHeader {
    pub name: String,
    /// Outermost first.
    pub dims: Vec<usize>,
    pub element: ElementType,
}

impl TensorHeader {
    /// Bytes of the data, without padding.
    pub fn bytes(&self) -> io::Result<usize> {
        let impossible = |what: &str| {
            let name = &self.name;
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("tensor '{name}' {what}"),
            )
        };
        let layout = self
            .element
            .layout()
            .ok_or_else(|| impossible("has a type that cannot be written"))?;
        let row = self.dims.last().copied().unwrap_or(1);
        if !row.is_multiple_of(layout.block_elements) {
            return Err(impossible("has rows that are no whole number of blocks"));
        }
        self.dims
            .iter()
            .try_fold(1usize, |product, dim| product.checked_mul(*dim))
            .and_then(|elements| (elements / layout.block_elements).checked_mul(layout.block_bytes))
            .ok_or_else(|| impossible("has more bytes than memory could hold"))
    }
}

/// Everything before the data of a GGUF file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct GgufHeader {
    /// In the order in which they are written; no key twice.
    pub metadata: Vec<(String, MetadataValue)>,
    pub tensors: Vec<TensorHeader>,
}

impl GgufHeader {
    pub fn set(&mut self, key: impl Into<String>, value: MetadataValue) {
        let key = key.into();
        match self.metadata.iter_mut().find(|(known, _)| *known == key) {
            Some((_, present)) => *present = value,
            None => self.metadata.push((key, value)),
        }
    }

    pub fn set_text(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.set(key, MetadataValue::Text(text.into()));
    }

    /// The header's bytes, padded so that the data may follow.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut out = b"GGUF".to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0usize;
        for tensor in &self.tensors {
            put_text(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            for dim in tensor.dims.iter().rev() {
                out.extend((*dim as u64).to_le_bytes());
            }
            out.extend(tensor.element.id().to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = padded(offset + tensor.bytes()?);
        }
        out.resize(padded(out.len()), 0);
        Ok(out)
    }

    /// Bytes of the whole file.
    pub fn file_size(&self) -> io::Result<u64> {
        let mut size = self.to_bytes()?.len();
        for tensor in &self.tensors {
            size += padded(tensor.bytes()?);
        }
        Ok(size as u64)
    }
}

/// Writes the padding behind a tensor of this many bytes.
pub(crate) fn pad(writer: &mut impl Write, bytes: usize) -> io::Result<()> {
    writer.write_all(&[0; ALIGNMENT][..padded(bytes) - bytes])
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_array<T>(out: &mut Vec<u8>, kind: u32, values: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    const ARRAY: u32 = 9;
    out.extend(ARRAY.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| put(out, value));
}

/// A value's type (`gguf_metadata_value_type`) and bytes.
fn put_value(out: &mut Vec<u8>, value: &MetadataValue) {
    let mut kind = |number: u32| out.extend(number.to_le_bytes());
    match value {
        MetadataValue::U32(number) => {
            kind(4);
            out.extend(number.to_le_bytes());
        }
        MetadataValue::I32(number) => {
            kind(5);
            out.extend(number.to_le_bytes());
        }
        MetadataValue::F32(number) => {
            kind(6);
            out.extend(number.to_le_bytes());
        }
        MetadataValue::Bool(truth) => {
            kind(7);
            out.push(u8::from(*truth));
        }
        MetadataValue::Text(text) => {
            kind(8);
            put_text(out, text);
        }
        MetadataValue::Texts(texts) => put_array(out, 8, texts, |out, text| put_text(out, text)),
        MetadataValue::I32s(numbers) => {
            put_array(out, 5, numbers, |out, number| {
                out.extend(number.to_le_bytes())
            });
        }
        MetadataValue::F32s(numbers) => {
            put_array(out, 6, numbers, |out, number| {
                out.extend(number.to_le_bytes())
            });
        }
        MetadataValue::Copied(number, bytes) => {
            kind(*number);
            out.extend(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::engine::loader::bytes::FileBytes;
    use crate::engine::loader::gguf::reader::GgufFile;

    fn header() -> GgufHeader {
        let mut header = GgufHeader::default();
        header.set("a.count", MetadataValue::U32(7));
        header.set("a.offset", MetadataValue::I32(-7));
        header.set("a.number", MetadataValue::F32(0.5));
        header.set("a.flag", MetadataValue::Bool(true));
        header.set_text("a.text", "first");
        header.set_text("a.text", "héllo");
        header.set(
            "a.texts",
            MetadataValue::Texts(vec!["x".into(), String::new()]),
        );
        header.set("a.ids", MetadataValue::I32s(vec![-1, 2]));
        header.set("a.scores", MetadataValue::F32s(vec![1.5]));
        header.tensors.push(TensorHeader {
            name: "one".into(),
            dims: vec![3],
            element: ElementType::Dense(DType::F32),
        });
        header.tensors.push(TensorHeader {
            name: "two".into(),
            dims: vec![2, 64],
            element: ElementType::Quantized(GgmlDType::Q8_0),
        });
        header
    }

    #[test]
    fn our_reader_reads_what_was_written() {
        let header = header();
        let mut bytes = header.to_bytes().expect("sizes that fit");
        for tensor in &header.tensors {
            let length = tensor.bytes().expect("sizes that fit");
            bytes.extend(std::iter::repeat_n(tensor.dims.len() as u8, length));
            pad(&mut bytes, length).expect("memory");
        }
        assert_eq!(
            bytes.len() as u64,
            header.file_size().expect("sizes that fit")
        );
        let file = GgufFile::parse("test".into(), FileBytes::Owned(bytes.into())).expect("valid");
        assert_eq!(file.count("a.count").unwrap(), Some(7));
        assert_eq!(file.number("a.offset").unwrap(), Some(-7.0));
        assert_eq!(file.number("a.number").unwrap(), Some(0.5));
        assert_eq!(file.flag("a.flag").unwrap(), Some(true));
        assert_eq!(file.text("a.text").unwrap(), Some("héllo"));
        assert_eq!(file.texts("a.texts").unwrap().unwrap(), ["x", ""]);
        assert_eq!(file.numbers("a.ids").unwrap().unwrap(), [-1.0, 2.0]);
        assert_eq!(file.numbers("a.scores").unwrap().unwrap(), [1.5]);
        for tensor in &header.tensors {
            let entry = file.tensor(&tensor.name).expect("it was written");
            assert_eq!((&entry.dims, entry.element), (&tensor.dims, tensor.element));
            let read = file.tensor_bytes(&tensor.name, entry).expect("inside");
            assert!(read.iter().all(|byte| *byte == tensor.dims.len() as u8));
        }
    }

    #[test]
    fn copied_values_keep_type_and_bytes() {
        let bytes = header().to_bytes().expect("sizes that fit");
        let mut bytes = bytes;
        bytes.resize(4096, 0);
        let file = GgufFile::parse("test".into(), FileBytes::Owned(bytes.into())).expect("valid");
        let mut copy = GgufHeader {
            metadata: file.copied_metadata().collect(),
            ..header()
        };
        copy.tensors.clear();
        let mut original = header();
        original.tensors.clear();
        assert_eq!(copy.to_bytes().unwrap(), original.to_bytes().unwrap());
    }

    #[test]
    fn impossible_tensors_are_refused() {
        let mut header = header();
        header.tensors[1].dims = vec![2, 63];
        let message = header.to_bytes().unwrap_err().to_string();
        assert!(message.contains("'two'"), "{message}");
        header.tensors[1].dims = vec![usize::MAX, 64];
        assert!(header.to_bytes().is_err());
    }
}
