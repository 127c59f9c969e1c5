//! Small models made in code: Llama-like by default, and whatever a test makes of them.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

/// Layers of a small model.
const LAYERS: usize = 2;

const HIDDEN: usize = 128;
const INTERMEDIATE: usize = 256;
const VOCABULARY: usize = 64;

#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A model to be written: BF16 in two shards with an index, a config and a tokenizer, unless a test says otherwise.
#[derive(Debug, Clone)]
pub struct Model {
    pub config: Map<String, Value>,
    tensors: Vec<Tensor>,
    shards: usize,
}

impl Model {
    /// A Llama of two layers with its own head.
    pub fn llama() -> Self {
        Self::sized(HIDDEN, INTERMEDIATE)
    }

    /// A model without tensors.
    pub fn empty(config: Map<String, Value>) -> Self {
        Self { config, tensors: Vec::new(), shards: 2 }
    }

    /// A Llama whose embeddings are its head.
    pub fn tied() -> Self {
        let mut model = Self::llama();
        model.config.insert("tie_word_embeddings".to_owned(), json!(true));
        model.without("lm_head.weight")
    }

    /// A Llama of two layers with other widths.
    pub fn sized(hidden: usize, intermediate: usize) -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": false,
            "dtype": "bfloat16",
        });
        let Value::Object(config) = config else { unreachable!("an object was written") };
        let mut model = Self { config, tensors: Vec::new(), shards: 2 };
        model.add("model.embed_tokens.weight", &[VOCABULARY, hidden]);
        for layer in 0..LAYERS {
            for (name, rows, columns) in [
                ("self_attn.q_proj", hidden, hidden),
                ("self_attn.k_proj", hidden / 2, hidden),
                ("self_attn.v_proj", hidden / 2, hidden),
                ("self_attn.o_proj", hidden, hidden),
                ("mlp.gate_proj", intermediate, hidden),
                ("mlp.up_proj", intermediate, hidden),
                ("mlp.down_proj", hidden, intermediate),
            ] {
                model.add(&format!("model.layers.{layer}.{name}.weight"), &[rows, columns]);
            }
            model.add(&format!("model.layers.{layer}.input_layernorm.weight"), &[hidden]);
            model.add(&format!("model.layers.{layer}.post_attention_layernorm.weight"), &[hidden]);
        }
        model.add("model.norm.weight", &[hidden]);
        model.add("lm_head.weight", &[VOCABULARY, hidden]);
        model
    }

    /// A Llama whose weights have heavy tails, so that int4 in groups loses some dB.
    pub fn heavy() -> Self {
        let mut model = Self::llama();
        for tensor in model.tensors.iter_mut().filter(|tensor| tensor.shape.len() == 2) {
            let values = gaussian(&tensor.name, tensor.shape.iter().product());
            tensor.bytes =
                values.iter().flat_map(|v| bf16::from_f32(v * v * v * 1000.0).to_le_bytes()).collect();
        }
        model
    }

    /// A Llama whose weights have the tails of many trained layers: a double exponential, made of four Gaussian numbers.
    pub fn laplace() -> Self {
        let mut model = Self::llama();
        for tensor in model.tensors.iter_mut().filter(|tensor| tensor.shape.len() == 2) {
            let numbers = gaussian(&tensor.name, 4 * tensor.shape.iter().product::<usize>());
            let value = |x: &[f32]| (x[0] * x[1] + x[2] * x[3]) * 50.0;
            tensor.bytes = numbers.chunks(4).flat_map(|x| bf16::from_f32(value(x)).to_le_bytes()).collect();
        }
        model
    }

    /// A Llama in which single weights, up and down, stretch the ranges of their groups: 4 bits round most others to zero.
    pub fn stretched() -> Self {
        let mut model = Self::llama();
        for tensor in model.tensors.iter_mut().filter(|tensor| tensor.shape.len() == 2) {
            let values = gaussian(&tensor.name, tensor.shape.iter().product());
            let value = |(at, v): (usize, &f32)| match at % 64 {
                3 => 0.4,
                17 => -0.4,
                _ => *v,
            };
            let bytes = |it: (usize, &f32)| bf16::from_f32(value(it)).to_le_bytes();
            tensor.bytes = values.iter().enumerate().flat_map(bytes).collect();
        }
        model
    }

    /// Adds a BF16 tensor of Gaussian weights; the same name gives the same weights.
    pub fn add(&mut self, name: &str, shape: &[usize]) {
        let values = gaussian(name, shape.iter().product());
        self.add_values(name, shape, &values);
    }

    /// Adds a BF16 tensor with these values.
    pub fn add_values(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        let bytes = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        self.tensors.retain(|tensor| tensor.name != name);
        self.tensors.push(Tensor { name: name.to_owned(), dtype: Dtype::BF16, shape: shape.to_vec(), bytes });
    }

    /// Adds a tensor with these bytes.
    pub fn add_bytes(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        self.tensors.push(Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes });
    }

    /// The model with the same weights in F32.
    pub fn in_f32(mut self) -> Self {
        for tensor in &mut self.tensors {
            let values = tensor.bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32());
            tensor.bytes = values.flat_map(f32::to_le_bytes).collect();
            tensor.dtype = Dtype::F32;
        }
        self.config.insert("dtype".to_owned(), json!("float32"));
        self
    }

    /// The model in F64, with weights that F32 does not hold.
    pub fn in_f64(mut self) -> Self {
        for tensor in &mut self.tensors {
            let values = tensor.bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64());
            tensor.bytes = values.flat_map(|value| (value * (1.0 + 1e-12)).to_le_bytes()).collect();
            tensor.dtype = Dtype::F64;
        }
        self.config.insert("dtype".to_owned(), json!("float64"));
        self
    }

    /// The model with the same weights in F16, as far as it holds them.
    pub fn in_f16(mut self) -> Self {
        for tensor in &mut self.tensors {
            let values = tensor.bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32());
            tensor.bytes = values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect();
            tensor.dtype = Dtype::F16;
        }
        self.config.insert("dtype".to_owned(), json!("float16"));
        self
    }

    /// The model with the values of a BF16 tensor multiplied.
    pub fn scaled(mut self, name: &str, by: f32) -> Self {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("the tensor is there");
        for bytes in tensor.bytes.chunks_exact_mut(2) {
            let value = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            bytes.copy_from_slice(&bf16::from_f32(value * by).to_le_bytes());
        }
        self
    }

    /// The model without a tensor.
    pub fn without(mut self, name: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| tensor.name != name);
        assert_eq!(self.tensors.len() + 1, before, "{name} was there");
        self
    }

    /// The model with one value of a BF16 tensor changed.
    pub fn with_value(mut self, name: &str, element: usize, value: f32) -> Self {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("the tensor is there");
        tensor.bytes[2 * element..2 * element + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
        self
    }

    /// The model in this many files; of one file there is no index.
    pub fn in_shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// The model with another value in its config.
    pub fn with_config(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Writes the model into a folder.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).expect("a folder");
        let put = |name: &str, value: &Value| {
            fs::write(folder.join(name), serde_json::to_string_pretty(value).expect("JSON")).expect("a file");
        };
        put("config.json", &Value::Object(self.config.clone()));
        put("generation_config.json", &json!({"max_length": 64}));
        put(
            "tokenizer.json",
            &json!({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}),
        );
        let per_shard = self.tensors.len().div_ceil(self.shards);
        let mut weight_map = Map::new();
        for (shard, tensors) in self.tensors.chunks(per_shard).enumerate() {
            let file = match self.shards {
                1 => "model.safetensors".to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
            };
            let views = tensors.iter().map(|tensor| {
                let view =
                    TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("a tensor");
                (tensor.name.clone(), view)
            });
            safetensors::serialize_to_file(views, None, &folder.join(&file)).expect("a weight file");
            weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))));
        }
        if self.shards > 1 {
            let total: usize = self.tensors.iter().map(|tensor| tensor.bytes.len()).sum();
            let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
            put("model.safetensors.index.json", &index);
        }
    }
}

/// Numbers that look like weights: nearly Gaussian with a deviation of 0.02, the same ones for the same name.
pub fn gaussian(name: &str, count: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let mut uniform = || {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
    };
    (0..count).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 0.02).collect()
}
