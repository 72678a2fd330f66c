//! The demo model that is part of the binary.

/// Model files as bytes of the binary.
#[derive(Debug)]
pub struct EmbeddedModel {
    pub id: &'static str,
    files: &'static [(&'static str, &'static [u8])],
}

impl EmbeddedModel {
    /// A model of the given files, by their names in a model folder.
    pub const fn new(id: &'static str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { id, files }
    }

    /// The bytes of a file.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        self.files
            .iter()
            .find(|(file, _)| *file == name)
            .map(|(_, bytes)| *bytes)
    }
}

/// A file of `models/demo/`.
macro_rules! demo_file {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/", $name)).as_slice(),
        )
    };
}

static DEMO: EmbeddedModel = EmbeddedModel::new(
    "trunkline-demo",
    &[
        demo_file!("config.json"),
        demo_file!("generation_config.json"),
        demo_file!("tokenizer.json"),
        demo_file!("tokenizer_config.json"),
        demo_file!("chat_template.jinja"),
        demo_file!("model.safetensors"),
    ],
);

/// The demo model.
pub(crate) fn demo() -> &'static EmbeddedModel {
    &DEMO
}
