//! Which files of a repository are needed.

use super::error::HubError;
use crate::engine::loader::source::has_gguf_extension;

/// Everything the loader reads besides weights, where the repository has it.
const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
];
pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Quantizations in the order in which they are taken when a repository has several GGUF files.
const GGUF_PREFERENCE: [&str; 9] = [
    "Q4_K_M", "Q8_0", "Q6_K", "Q5_K_M", "Q4_0", "Q4_K_S", "BF16", "F16", "F32",
];

/// The weights of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// One safetensors file and what belongs to it.
    Single { files: Vec<String> },
    /// Shards that the index (one of the files) names.
    Sharded { files: Vec<String> },
    /// One file that holds everything.
    Gguf { file: String },
}

/// Chooses among all files of a repository.
pub(super) fn select(repository: &str, files: &[String]) -> Result<Selection, HubError> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let small = || {
        SMALL_FILES
            .into_iter()
            .filter(|name| has(name))
            .map(str::to_owned)
    };
    if has(SINGLE_FILE) {
        return Ok(Selection::Single {
            files: small().chain([SINGLE_FILE.to_owned()]).collect(),
        });
    }
    if has(INDEX_FILE) {
        return Ok(Selection::Sharded {
            files: small().chain([INDEX_FILE.to_owned()]).collect(),
        });
    }
    let no_weights = |reason: String| HubError::NoWeights {
        repository: repository.to_owned(),
        reason,
    };
    let mut gguf: Vec<&String> = files.iter().filter(|file| is_whole_gguf(file)).collect();
    gguf.sort_unstable();
    let preferred = GGUF_PREFERENCE
        .into_iter()
        .find_map(|kind| gguf.iter().copied().find(|file| is_of_kind(file, kind)));
    match (gguf.as_slice(), preferred) {
        ([], _) => Err(no_weights(format!(
            "there is no {SINGLE_FILE}, {INDEX_FILE} or .gguf file"
        ))),
        ([only], _) => Ok(Selection::Gguf {
            file: (*only).clone(),
        }),
        (_, Some(preferred)) => Ok(Selection::Gguf {
            file: preferred.clone(),
        }),
        (several, None) => {
            let names: Vec<&str> = several.iter().take(12).map(|name| name.as_str()).collect();
            Err(no_weights(format!(
                "it has several .gguf files ({}); download one and give its path",
                names.join(", ")
            )))
        }
    }
}

/// A GGUF file at the top that is a language model by itself: no part of several, no vision projector.
fn is_whole_gguf(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    has_gguf_extension(file.as_ref())
        && is_plain_name(file)
        && !lower.contains("-of-")
        && !lower.starts_with("mmproj")
}

fn is_of_kind(file: &str, kind: &str) -> bool {
    let stem = file
        .rsplit_once('.')
        .map_or(file, |(stem, _)| stem)
        .to_ascii_uppercase();
    stem.strip_suffix(kind)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '_']))
}

/// A file name that cannot lead out of its folder.
pub(super) fn is_plain_name(file: &str) -> bool {
    !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\', '\0', '?', '#', '%'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select_from(files: &[&str]) -> Result<Selection, HubError> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        select("org/name", &files)
    }

    #[test]
    fn takes_only_what_is_read() {
        let files = [
            ".gitattributes",
            "README.md",
            "config.json",
            "tokenizer.json",
            "vocab.json",
            "pytorch_model.bin",
            "model.safetensors",
            "model.gguf",
        ];
        assert_eq!(
            select_from(&files).expect("weights"),
            Selection::Single {
                files: ["config.json", "tokenizer.json", "model.safetensors"]
                    .map(str::to_owned)
                    .into()
            }
        );
        let sharded = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        assert_eq!(
            select_from(&sharded).expect("weights"),
            Selection::Sharded {
                files: ["config.json", "model.safetensors.index.json"]
                    .map(str::to_owned)
                    .into()
            }
        );
    }

    #[test]
    fn takes_one_gguf_where_there_is_nothing_else() {
        let gguf = |file: &str| Selection::Gguf {
            file: file.to_owned(),
        };
        assert_eq!(
            select_from(&["README.md", "a.gguf"]).expect("weights"),
            gguf("a.gguf")
        );
        let several = [
            "m-F16.gguf",
            "m-Q8_0.gguf",
            "m-q4_k_m.gguf",
            "mmproj-m-F16.gguf",
            "big-00001-of-00003.gguf",
        ];
        assert_eq!(
            select_from(&several).expect("weights"),
            gguf("m-q4_k_m.gguf")
        );
        assert!(
            select_from(&["one.gguf", "two.gguf"])
                .expect_err("ambiguous")
                .to_string()
                .contains("two.gguf")
        );
        assert!(
            select_from(&["pytorch_model.bin", "../x.gguf"])
                .expect_err("none")
                .to_string()
                .contains("model.safetensors")
        );
    }
}
