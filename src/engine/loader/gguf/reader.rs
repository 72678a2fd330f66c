//! The GGUF container: header, metadata and tensor directory, read from mapped bytes.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Nothing is allocated by a count that
//! the file states; every count must be backed by bytes that exist.

use std::collections::HashMap;
use std::ops::Range;

use super::element::ElementType;
use super::writer::MetadataValue;
use crate::engine::loader::bytes::FileBytes;
use crate::engine::loader::error::LoadError;

const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;
/// Arrays of arrays may nest this deep.
const MAX_DEPTH: usize = 4;
/// Dimensions of a tensor, by the format.
const MAX_RANK: u32 = 4;
/// No metadata key or tensor name is longer.
const MAX_NAME: usize = 1 << 16;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// An array that stays in the file until it is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    element: u32,
    count: usize,
    start: usize,
}

/// What the directory says about a tensor.
#[derive(Debug, Clone)]
pub(crate) struct TensorEntry {
    pub element: ElementType,
    /// Outermost first, as in safetensors.
    pub dims: Vec<usize>,
    offset: u64,
}

/// An opened GGUF file.
#[derive(Debug)]
pub(crate) struct GgufFile {
    file: String,
    bytes: FileBytes,
    header: Header,
}

impl GgufFile {
    /// Reads the header and the directory, and checks that every tensor lies inside the file.
    pub fn parse(file: String, bytes: FileBytes) -> Result<Self, LoadError> {
        let header = read_header(&bytes).map_err(|damage| LoadError::corrupt(&file, damage.0))?;
        let parsed = Self {
            file,
            bytes,
            header,
        };
        for (name, entry) in &parsed.header.tensors {
            if entry.element.layout().is_some() {
                parsed.tensor_bytes(name, entry)?;
            }
        }
        Ok(parsed)
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.header.tensors.get(name)
    }

    /// All tensors, in the order of their data.
    pub fn tensors(&self) -> Vec<(&str, &TensorEntry)> {
        let mut tensors: Vec<_> = self
            .header
            .tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), entry))
            .collect();
        tensors.sort_by_key(|(name, entry)| (entry.offset, *name));
        tensors
    }

    /// Every key with its value as it stands, in the order of the file.
    pub fn copied_metadata(&self) -> impl Iterator<Item = (String, MetadataValue)> {
        self.header.places.iter().filter_map(|place| {
            let bytes = self.bytes.get(place.bytes.clone())?.to_vec();
            Some((place.key.clone(), MetadataValue::Copied(place.kind, bytes)))
        })
    }

    /// The bytes of a tensor, aligned to 8 when the file is mapped.
    pub fn tensor_bytes(&self, name: &str, entry: &TensorEntry) -> Result<&[u8], LoadError> {
        let damaged =
            |message: String| LoadError::corrupt(&self.file, format!("tensor '{name}' {message}"));
        let layout = entry
            .element
            .layout()
            .ok_or_else(|| LoadError::UnsupportedElementType {
                name: name.to_owned(),
                found: entry.element.to_string(),
                supported: ElementType::SUPPORTED,
            })?;
        let row = entry.dims.last().copied().unwrap_or(1);
        if !row.is_multiple_of(layout.block_elements) {
            return Err(damaged(format!(
                "has rows of {row} elements, which is no multiple of the {} of a {} block",
                layout.block_elements, entry.element
            )));
        }
        let length = entry
            .dims
            .iter()
            .try_fold(1usize, |product, dim| product.checked_mul(*dim))
            .and_then(|elements| (elements / layout.block_elements).checked_mul(layout.block_bytes))
            .ok_or_else(|| damaged(format!("has an impossible shape {:?}", entry.dims)))?;
        usize::try_from(entry.offset)
            .ok()
            .and_then(|offset| self.header.data_start.checked_add(offset))
            .and_then(|start| Some(start..start.checked_add(length)?))
            .and_then(|range| self.bytes.get(range))
            .ok_or_else(|| {
                damaged(format!(
                    "needs {length} bytes at offset {} of the data, beyond the end of the file ({} bytes; an \
                     interrupted download or copy?)",
                    entry.offset,
                    self.bytes.len()
                ))
            })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    pub fn error(&self, key: &str, message: impl Into<String>) -> LoadError {
        LoadError::field(&self.file, key, message)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let wrong = || self.error(key, format!("must be {expected}"));
        self.value(key)
            .map(|value| convert(value).ok_or_else(wrong))
            .transpose()
    }

    pub fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.typed(
            key,
            "one whole number that is not negative",
            |value| match value {
                Value::Unsigned(number) => usize::try_from(*number).ok(),
                Value::Signed(number) => usize::try_from(*number).ok(),
                _ => None,
            },
        )
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a number", |value| match value {
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.typed(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    fn array(&self, key: &str) -> Result<Option<&Array>, LoadError> {
        self.typed(key, "an array", |value| match value {
            Value::Array(array) => Some(array),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, LoadError> {
        self.elements(key, "an array of strings", |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        })
    }

    /// An array of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, LoadError> {
        self.elements(key, "an array of numbers", |value| match value {
            Value::Unsigned(number) => Some(number as f64),
            Value::Signed(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            _ => None,
        })
    }

    fn elements<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, LoadError> {
        let Some(array) = self.array(key)? else {
            return Ok(None);
        };
        let mut cursor = Cursor {
            bytes: &self.bytes,
            position: array.start,
        };
        let mut elements = Vec::new();
        for _ in 0..array.count {
            let value = cursor
                .value(array.element, 1)
                .map_err(|damage| self.error(key, damage.0))?;
            elements.push(
                convert(value).ok_or_else(|| self.error(key, format!("must be {expected}")))?,
            );
        }
        Ok(Some(elements))
    }
}

/// Why the container cannot be read.
#[derive(Debug)]
struct Damage(String);

/// What stands before the data.
#[derive(Debug)]
struct Header {
    metadata: HashMap<String, Value>,
    /// Where the values of the metadata are, in the order of the file.
    places: Vec<MetadataPlace>,
    tensors: HashMap<String, TensorEntry>,
    data_start: usize,
}

#[derive(Debug)]
struct MetadataPlace {
    key: String,
    kind: u32,
    bytes: Range<usize>,
}

fn read_header(bytes: &[u8]) -> Result<Header, Damage> {
    let mut cursor = Cursor { bytes, position: 0 };
    if cursor.take(MAGIC.len())? != MAGIC {
        return Err(Damage(
            "it does not begin with 'GGUF': not a GGUF file".to_owned(),
        ));
    }
    let version = cursor.u32()?;
    if version.swap_bytes() < 1 << 16 && version >= 1 << 16 {
        return Err(Damage(
            "it is a big-endian GGUF file, which is not supported".to_owned(),
        ));
    }
    if !matches!(version, 2 | 3) {
        return Err(Damage(format!(
            "GGUF version {version} is not supported (only 2 and 3)"
        )));
    }
    let tensor_count = cursor.u64()?;
    let metadata_count = cursor.u64()?;
    let mut metadata = HashMap::new();
    let mut places = Vec::new();
    for _ in 0..metadata_count {
        let key = cursor.name("metadata key")?;
        let kind = cursor.u32()?;
        let start = cursor.position;
        let value = cursor
            .value(kind, 0)
            .map_err(|damage| Damage(format!("metadata '{key}': {}", damage.0)))?;
        places.push(MetadataPlace {
            key: key.clone(),
            kind,
            bytes: start..cursor.position,
        });
        metadata.insert(key, value);
    }
    let alignment = alignment(&metadata)?;
    let mut tensors = HashMap::new();
    for _ in 0..tensor_count {
        let name = cursor.name("tensor name")?;
        let entry = cursor.tensor_entry(&name)?;
        if !entry.offset.is_multiple_of(alignment as u64) {
            return Err(Damage(format!(
                "tensor '{name}' is at offset {}, which is no multiple of the alignment {alignment}",
                entry.offset
            )));
        }
        tensors.insert(name, entry);
    }
    let data_start = cursor.position.next_multiple_of(alignment);
    Ok(Header {
        metadata,
        places,
        tensors,
        data_start,
    })
}

/// `general.alignment`: a multiple of 8, by the format.
fn alignment(metadata: &HashMap<String, Value>) -> Result<usize, Damage> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(value))
            if *value != 0 && value.is_multiple_of(8) && *value <= 1 << 20 =>
        {
            Ok(*value as usize)
        }
        Some(other) => Err(Damage(format!(
            "{KEY} is {other:?}; it must be a multiple of 8"
        ))),
    }
}

/// A position in the file that never leaves it.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Damage> {
        let taken = self
            .position
            .checked_add(length)
            .and_then(|end| self.bytes.get(self.position..end))
            .ok_or_else(|| {
                Damage(format!(
                    "{length} bytes are announced at offset {}, but the file ends at {}",
                    self.position,
                    self.bytes.len()
                ))
            })?;
        self.position += length;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let mut fixed = [0; N];
        fixed.copy_from_slice(self.take(N)?);
        Ok(fixed)
    }

    fn u32(&mut self) -> Result<u32, Damage> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    fn u64(&mut self) -> Result<u64, Damage> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    fn text_bytes(&mut self) -> Result<&'a [u8], Damage> {
        let length = self.u64()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<String, Damage> {
        let bytes = self.text_bytes()?;
        // Some writers end strings with NUL, against the format.
        let end = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        match std::str::from_utf8(&bytes[..end]) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Damage(format!(
                "a string before offset {} is not UTF-8",
                self.position
            ))),
        }
    }

    fn name(&mut self, what: &str) -> Result<String, Damage> {
        let start = self.position;
        let name = self.text()?;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Damage(format!(
                "the {what} at offset {start} has {} bytes",
                name.len()
            )));
        }
        Ok(name)
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, Damage> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.fixed::<1>()?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.fixed()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.fixed()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.fixed()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.fixed()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.fixed()?))),
            7 => Value::Bool(self.fixed::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 => Value::Array(self.array(depth)?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.fixed()?)),
            12 => Value::Float(f64::from_le_bytes(self.fixed()?)),
            other => return Err(Damage(format!("value type {other} does not exist"))),
        })
    }

    /// Notes where an array is and steps over it.
    fn array(&mut self, depth: usize) -> Result<Array, Damage> {
        if depth >= MAX_DEPTH {
            return Err(Damage(format!(
                "arrays are nested more than {MAX_DEPTH} deep"
            )));
        }
        let element = self.u32()?;
        let count = self.u64()?;
        let count = usize::try_from(count)
            .map_err(|_| Damage(format!("an array announces {count} elements")))?;
        let start = self.position;
        match element {
            8 => (0..count).try_for_each(|_| self.text_bytes().map(|_| ()))?,
            9 => (0..count).try_for_each(|_| self.array(depth + 1).map(|_| ()))?,
            fixed => {
                let size = fixed_size(fixed)
                    .ok_or_else(|| Damage(format!("value type {fixed} does not exist")))?;
                self.take(count.saturating_mul(size))?;
            }
        }
        Ok(Array {
            element,
            count,
            start,
        })
    }

    fn tensor_entry(&mut self, name: &str) -> Result<TensorEntry, Damage> {
        let rank = self.u32()?;
        if rank > MAX_RANK {
            return Err(Damage(format!(
                "tensor '{name}' has {rank} dimensions; at most {MAX_RANK} are possible"
            )));
        }
        let mut dims = Vec::new();
        for _ in 0..rank {
            let dim = self.u64()?;
            dims.push(usize::try_from(dim).unwrap_or(usize::MAX));
        }
        dims.reverse();
        Ok(TensorEntry {
            dims,
            element: ElementType::from_id(self.u32()?),
            offset: self.u64()?,
        })
    }
}

/// Bytes of one value of a type whose size does not vary.
fn fixed_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
