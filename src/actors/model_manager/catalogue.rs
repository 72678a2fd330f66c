//! Which models are configured, and which names mean which.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::Config;
use crate::engine::loader::{LoadError, ModelSource};

/// The id of the demo model inside the binary.
pub const DEMO_ID: &str = "trunkline-demo";

/// The place of a model in its [`Catalogue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelIndex(usize);

/// One configured model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// The full id, as clients see it.
    pub id: String,
    pub source: ModelSource,
}

/// The configuration's models and names. It never changes while a server runs.
#[derive(Debug)]
pub struct Catalogue {
    /// The models that requests can reach: the default model first, and the others if swapping is on.
    entries: Vec<CatalogueEntry>,
    /// Ids, aliases and served names.
    names: BTreeMap<String, ModelIndex>,
    /// Any name that is not in `names` means the default model.
    any_name: bool,
}

/// A model setting that means nothing.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error(transparent)]
    Source(#[from] LoadError),
    #[error(
        "the alias {alias} stands for {target}, which is not a configured model (there are {available})"
    )]
    AliasOfNothing {
        alias: String,
        target: String,
        available: String,
    },
}

/// A requested name that means no model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownModel {
    pub requested: String,
    pub available: Vec<String>,
}

impl Catalogue {
    /// Reads the models and names of a configuration; looks at the file system to tell a folder from a
    /// hub name.
    ///
    /// # Errors
    /// A source that cannot be a model, or an alias of a model that is not configured.
    pub fn new(config: &Config) -> Result<Self, CatalogueError> {
        let mut entries = Vec::new();
        match config
            .models
            .iter()
            .find(|entry| entry.name == config.model)
        {
            Some(default) => entries.push(entry(&default.name, &default.value)?),
            None => {
                let source = ModelSource::parse(&config.model)?;
                entries.push(CatalogueEntry {
                    id: default_id(&source),
                    source,
                });
            }
        }
        for further in &config.models {
            // Also read when it cannot be reached, so that a mistake shows at start.
            let further = entry(&further.name, &further.value)?;
            if config.allow_swap && entries.iter().all(|known| known.id != further.id) {
                entries.push(further);
            }
        }

        let mut names: BTreeMap<String, ModelIndex> = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (entry.id.clone(), ModelIndex(index)))
            .collect();
        for alias in &config.aliases {
            let configured = config.models.iter().any(|entry| entry.name == alias.value);
            match names.get(&alias.value) {
                Some(&index) => {
                    names.entry(alias.name.clone()).or_insert(index);
                }
                // Configured, and out of reach without allow_swap.
                None if configured => {}
                None => {
                    return Err(CatalogueError::AliasOfNothing {
                        alias: alias.name.clone(),
                        target: alias.value.clone(),
                        available: names.into_keys().collect::<Vec<_>>().join(", "),
                    });
                }
            }
        }
        for name in config.served_model_name.iter().filter(|name| *name != "*") {
            names.entry(name.clone()).or_insert(ModelIndex(0));
        }
        Ok(Catalogue {
            entries,
            names,
            any_name: config.served_model_name.iter().any(|name| name == "*"),
        })
    }

    /// The model served first.
    pub fn default_model(&self) -> ModelIndex {
        ModelIndex(0)
    }

    /// The model of this index.
    pub fn get(&self, index: ModelIndex) -> &CatalogueEntry {
        &self.entries[index.0]
    }

    /// The models that requests can reach, the default one first.
    pub fn entries(&self) -> impl Iterator<Item = (ModelIndex, &CatalogueEntry)> {
        self.entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (ModelIndex(index), entry))
    }

    /// Names beside its id that mean this model.
    pub fn aliases_of(&self, index: ModelIndex) -> Vec<String> {
        let id = &self.get(index).id;
        self.names
            .iter()
            .filter(|(name, target)| **target == index && *name != id)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The model that a client's name means.
    ///
    /// # Errors
    /// The name is unknown; the answer to the client lists what there is.
    pub fn resolve(&self, requested: &str) -> Result<ModelIndex, UnknownModel> {
        match self.names.get(requested) {
            Some(index) => Ok(*index),
            None if self.any_name => Ok(self.default_model()),
            None => Err(UnknownModel {
                requested: requested.to_owned(),
                available: self.names.keys().cloned().collect(),
            }),
        }
    }
}

fn entry(id: &str, source: &str) -> Result<CatalogueEntry, CatalogueError> {
    Ok(CatalogueEntry {
        id: id.to_owned(),
        source: ModelSource::parse(source)?,
    })
}

/// The id of a model that the configuration gives none.
fn default_id(source: &ModelSource) -> String {
    let name = |path: &Path, name: Option<&std::ffi::OsStr>| {
        name.map_or_else(
            || path.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    match source {
        ModelSource::Embedded => DEMO_ID.to_owned(),
        // "." has no name of its own.
        ModelSource::Directory(path) => match path.canonicalize() {
            Ok(whole) => name(&whole, whole.file_name()),
            Err(_) => name(path, path.file_name()),
        },
        ModelSource::Gguf(path) => name(path, path.file_stem()),
        ModelSource::Hub { repository, .. } => repository.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NamedValue;

    fn named(name: &str, value: &str) -> NamedValue {
        NamedValue {
            name: name.into(),
            value: value.into(),
        }
    }

    fn two_models(allow_swap: bool) -> Config {
        Config {
            model: "small".into(),
            models: vec![named("large", "org/large@v2"), named("small", "org/small")],
            aliases: vec![named("l", "large"), named("s", "small")],
            served_model_name: vec!["gpt-4o".into()],
            allow_swap,
            ..Config::default()
        }
    }

    #[test]
    fn the_default_is_the_demo_model() {
        let catalogue = Catalogue::new(&Config::default()).unwrap();
        let index = catalogue.resolve(DEMO_ID).unwrap();
        assert_eq!(index, catalogue.default_model());
        assert_eq!(catalogue.get(index).source, ModelSource::Embedded);
    }

    #[test]
    fn names_and_aliases() {
        let catalogue = Catalogue::new(&two_models(true)).unwrap();
        let large = catalogue.resolve("l").unwrap();
        assert_eq!(
            catalogue.get(large).source,
            ModelSource::Hub {
                repository: "org/large".into(),
                revision: Some("v2".into())
            }
        );
        assert_eq!(catalogue.resolve("gpt-4o"), Ok(catalogue.default_model()));
        assert_eq!(
            catalogue.aliases_of(catalogue.default_model()),
            ["gpt-4o", "s"]
        );
        let unknown = catalogue.resolve("other").unwrap_err();
        assert_eq!(unknown.available, ["gpt-4o", "l", "large", "s", "small"]);
    }

    #[test]
    fn without_swap_only_the_default_is_reachable() {
        let catalogue = Catalogue::new(&two_models(false)).unwrap();
        assert_eq!(catalogue.entries().count(), 1);
        assert!(catalogue.resolve("large").is_err() && catalogue.resolve("l").is_err());
        assert_eq!(catalogue.resolve("s"), Ok(catalogue.default_model()));
    }

    #[test]
    fn a_star_accepts_any_name() {
        let config = Config {
            served_model_name: vec!["*".into()],
            ..two_models(true)
        };
        let catalogue = Catalogue::new(&config).unwrap();
        assert_eq!(catalogue.resolve("whatever"), Ok(catalogue.default_model()));
        assert_ne!(catalogue.resolve("large"), Ok(catalogue.default_model()));
    }

    #[test]
    fn a_gguf_file_is_called_by_its_stem() {
        let folder = tempfile::tempdir().unwrap();
        let gguf = folder.path().join("tiny-q4.gguf");
        std::fs::write(&gguf, "").unwrap();
        let config = Config {
            model: gguf.to_str().unwrap().into(),
            ..Config::default()
        };
        let catalogue = Catalogue::new(&config).unwrap();
        assert!(catalogue.resolve("tiny-q4").is_ok());
    }

    #[test]
    fn an_alias_of_nothing_is_an_error() {
        let config = Config {
            aliases: vec![named("x", "missing")],
            ..Config::default()
        };
        let error = Catalogue::new(&config).unwrap_err().to_string();
        assert!(
            error.contains("missing") && error.contains(DEMO_ID),
            "{error}"
        );
    }
}
