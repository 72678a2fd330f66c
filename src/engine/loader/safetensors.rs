//! Weights from safetensors files: one, or shards with an index.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};

use super::bytes::FileBytes;
use super::error::LoadError;
use super::files::{Folder, LARGE_FILE};
use super::json::JsonObject;
use super::{Weight, Weights};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// One mapped file and its header.
struct Shard {
    file: String,
    bytes: FileBytes,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data_start: usize,
}

impl Shard {
    fn new(file: String, bytes: FileBytes) -> Result<Self, LoadError> {
        let (header_length, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|cause| LoadError::corrupt(&file, explain(&cause, &bytes)))?;
        Ok(Self {
            file,
            data_start: size_of::<u64>() + header_length,
            bytes,
            metadata,
        })
    }
}

/// A safetensors error in words a user can act on.
fn explain(cause: &safetensors::SafeTensorError, bytes: &[u8]) -> String {
    use safetensors::SafeTensorError as E;
    match cause {
        E::MetadataIncompleteBuffer => format!(
            "the header describes another size than the file's {} bytes (an interrupted download or copy?)",
            bytes.len()
        ),
        E::HeaderTooSmall | E::InvalidHeaderLength => {
            format!(
                "the file's {} bytes end before its header does",
                bytes.len()
            )
        }
        E::HeaderTooLarge | E::InvalidHeader(_) | E::InvalidHeaderDeserialization(_) => {
            format!("it is not a safetensors file ({cause})")
        }
        other => other.to_string(),
    }
}

/// All weights of a safetensors model.
pub(crate) struct SafetensorsWeights {
    shards: Vec<Shard>,
    /// Tensor name to shard.
    routing: HashMap<String, usize>,
}

impl SafetensorsWeights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(folder: Folder<'_>) -> Result<Self, LoadError> {
        let root = match folder {
            Folder::Embedded(model) => {
                let bytes = model
                    .file(SINGLE_FILE)
                    .ok_or_else(|| missing_weights(Path::new(model.id)))?;
                return Self::from_shards(vec![Shard::new(
                    SINGLE_FILE.to_owned(),
                    FileBytes::Static(bytes),
                )?]);
            }
            Folder::Disk(root) => root,
        };
        let single = root.join(SINGLE_FILE);
        if single.exists() {
            let shard = Shard::new(single.display().to_string(), FileBytes::open(&single)?)?;
            return Self::from_shards(vec![shard]);
        }
        let Some(index) = folder.read(INDEX_FILE, LARGE_FILE)? else {
            return Err(missing_weights(root));
        };
        let shards = shard_names(&JsonObject::parse(INDEX_FILE, &index)?)?
            .into_iter()
            .map(|name| {
                let path = root.join(&name);
                if !path.exists() {
                    return Err(LoadError::MissingFile {
                        path,
                        need: format!("{INDEX_FILE} lists it as a shard of the weights"),
                    });
                }
                Shard::new(path.display().to_string(), FileBytes::open(&path)?)
            })
            .collect::<Result<_, _>>()?;
        Self::from_shards(shards)
    }

    fn from_shards(shards: Vec<Shard>) -> Result<Self, LoadError> {
        let mut routing = HashMap::new();
        for (index, shard) in shards.iter().enumerate() {
            for name in shard.metadata.offset_keys() {
                if let Some(other) = routing.insert(name.clone(), index)
                    && other != index
                {
                    return Err(LoadError::corrupt(
                        &shard.file,
                        format!("tensor '{name}' is also in {}", shards[other].file),
                    ));
                }
            }
        }
        Ok(Self { shards, routing })
    }
}

fn missing_weights(folder: &Path) -> LoadError {
    LoadError::MissingFile {
        path: folder.join(SINGLE_FILE),
        need: format!("the folder has neither {SINGLE_FILE} nor {INDEX_FILE}"),
    }
}

/// The shard files of an index, each once. Names that leave the folder are refused.
pub(crate) fn shard_names(index: &JsonObject) -> Result<Vec<String>, LoadError> {
    let map = index.required("weight_map", index.object("weight_map")?)?;
    let mut names: Vec<String> = Vec::new();
    for (tensor, _) in map.keys() {
        let name = map.required(tensor, map.text(tensor)?)?;
        if name.contains(['/', '\\']) || !name.ends_with(".safetensors") {
            return Err(map.error(
                tensor,
                format!("names the shard '{name}', which is not a .safetensors file name"),
            ));
        }
        names.push(name.to_owned());
    }
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Err(index.error("weight_map", "is empty"));
    }
    Ok(names)
}

/// A tensor's bytes where they lie.
pub(crate) struct RawTensor<'a> {
    pub bytes: &'a [u8],
    /// F32, F16 or BF16, little-endian.
    pub element: DType,
    /// Outermost first.
    pub dims: &'a [usize],
}

impl SafetensorsWeights {
    /// A tensor without a copy.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>, LoadError> {
        let missing = || LoadError::MissingTensor {
            name: name.to_owned(),
        };
        let shard = &self.shards[*self.routing.get(name).ok_or_else(missing)?];
        let info = shard.metadata.info(name).ok_or_else(missing)?;
        let element = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(LoadError::UnsupportedElementType {
                    name: name.to_owned(),
                    found: format!("{other:?}"),
                    supported: "F32, F16, BF16",
                });
            }
        };
        let (start, end) = info.data_offsets;
        let bytes = shard
            .bytes
            .get(shard.data_start + start..shard.data_start + end)
            .ok_or_else(|| {
                LoadError::corrupt(
                    &shard.file,
                    format!("tensor '{name}' lies outside of the file"),
                )
            })?;
        Ok(RawTensor {
            bytes,
            element,
            dims: &info.shape,
        })
    }
}

impl Weights for SafetensorsWeights {
    fn get(&self, name: &str) -> Result<Weight, LoadError> {
        let raw = self.raw(name)?;
        let tensor = Tensor::from_raw_buffer(raw.bytes, raw.element, raw.dims, &Device::Cpu)
            .map_err(|cause| LoadError::Tensor {
                name: name.to_owned(),
                message: cause.to_string(),
            })?;
        Ok(Weight::Dense(tensor))
    }

    fn contains(&self, name: &str) -> bool {
        self.routing.contains_key(name)
    }
}
