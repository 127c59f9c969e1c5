//! `config.json`: from a model that somebody uploaded.

use monoquant::model;

use super::folder::Folder;
use super::{Target, findings};

/// The text of a configuration. Everything is asked of it, and it is that of a small model.
pub struct Config(Folder);

impl Target for Config {
    fn new() -> Self {
        Self(Folder::new())
    }

    fn try_on(&self, input: &[u8]) {
        match model::Config::parse(input) {
            Ok(config) => {
                assert!(config.raw.is_object());
                let _ = (config.text(), config.model_type(), config.architectures(), config.experts());
                let _ = (config.hidden_size(), config.vocab_size(), config.num_hidden_layers());
                let _ =
                    (config.tie_word_embeddings(), config.is_encoder_decoder(), config.quantization_config());
                let written = serde_json::to_vec(&config.raw).expect("JSON can be written");
                assert_eq!(model::Config::parse(&written), Ok(config));
            }
            Err(finding) => findings::check(&[finding]),
        }
        self.0.write("model/config.json", input);
        self.0.check_model();
    }
}
