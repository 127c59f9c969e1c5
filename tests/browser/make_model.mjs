// A model of many small layers, and a recipe for it: make_model.mjs FOLDER LAYERS
import { mkdirSync, openSync, writeFileSync, writeSync, closeSync } from "node:fs";

const [folder, count] = [process.argv[2], Number(process.argv[3])];
const [hidden, vocabulary] = [64, 64];
mkdirSync(`${folder}/model`, { recursive: true });
const config = {
  architectures: ["LlamaForCausalLM"], model_type: "llama", hidden_size: hidden, intermediate_size: hidden,
  num_attention_heads: 2, num_key_value_heads: 2, head_dim: hidden / 2, num_hidden_layers: count, vocab_size: vocabulary,
  rms_norm_eps: 1e-5, rope_theta: 10000, max_position_embeddings: 128, torch_dtype: "bfloat16", tie_word_embeddings: false,
};
writeFileSync(`${folder}/model/config.json`, JSON.stringify(config));

const tensors = [["model.embed_tokens.weight", [vocabulary, hidden]], ["lm_head.weight", [vocabulary, hidden]], ["model.norm.weight", [hidden]],
  ["model.<script>window.wrong=1</script>.weight", [hidden, hidden]]];
for (let layer = 0; layer < count; layer += 1) {
  for (const name of ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]) {
    tensors.push([`model.layers.${layer}.${name}.weight`, [hidden, hidden]]);
  }
  for (const name of ["input_layernorm", "post_attention_layernorm"]) tensors.push([`model.layers.${layer}.${name}.weight`, [hidden]]);
}
const header = {};
let at = 0;
for (const [name, shape] of tensors) {
  const bytes = 2 * shape.reduce((a, b) => a * b);
  header[name] = { dtype: "BF16", shape, data_offsets: [at, at + bytes] };
  at += bytes;
}
let text = JSON.stringify(header);
text += " ".repeat((8 - text.length % 8) % 8);
const length = Buffer.alloc(8);
length.writeBigUInt64LE(BigInt(text.length));
const file = openSync(`${folder}/model/model.safetensors`, "w");
writeSync(file, length);
writeSync(file, text);
// Numbers that look like weights, the same each time.
let state = 1;
const random = () => { state = (state * 48271) % 2147483647; return state / 2147483647; };
for (const [name, shape] of tensors) {
  const values = new Float32Array(shape.reduce((a, b) => a * b));
  for (let n = 0; n < values.length; n += 1) values[n] = (random() + random() + random() - 1.5) * 0.05;
  // Some layers have outliers.
  if (name.includes("down_proj") && random() < 0.3) for (let n = 0; n < values.length; n += 97) values[n] *= 4 + 8 * random();
  const words = new Uint16Array(new Uint32Array(values.buffer).map(word => word >>> 16));
  writeSync(file, Buffer.from(words.buffer));
}
closeSync(file);
writeFileSync(`${folder}/recipe.yaml`, `version: 1
name: ${count} layers
stages:
  - stage: load
    model: model
  - stage: resolve-skips
    modules_to_not_convert: [lm_head]
  # Four bits, in groups.
  - stage: quantize-int4
    group_size: 64
  - stage: validate
  - stage: check-warnings
    sqnr_warning_threshold: 18
    sqnr_error_threshold: 15
    on_failure: warn
  - stage: export
    path: out
`);
