//! The trained example, rounded in sequence: what it answers afterwards.

use super::{Files, run};
use crate::support::root;
use monoquant::network::tokens::{Tokenizer, documents, windows};
use monoquant::network::{
    Backwards, Description, LayerWeights, Linear, OutputMoments, Pass, Rounding, Sequence, Silent,
    StageMoments, compare_logits, round_stage,
};
use monoquant::quant::{Bits, FloatType, Granularity, Isa, Observer, Quantizer, Scheme, Storage};

/// Stored as in `llama-int4.yaml`.
fn quantizer(matrix: &Linear) -> Quantizer {
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Group(128),
        scale_type: FloatType::Bf16,
        storage: Storage::Packed,
    };
    Quantizer::new(scheme, Observer::Minmax, FloatType::Bf16, matrix.columns, Isa::detect())
}

/// The trained example, its calibration text in windows, and the text that its answers are compared on.
struct Example {
    weights: Files,
    description: Description,
    calibration: Vec<Vec<u32>>,
    held_out: Vec<Vec<u32>>,
}

impl Example {
    fn read() -> Self {
        let read = |name: &str| std::fs::read(root().join("examples").join(name)).expect("a file");
        let weights = Files::read(&root().join("examples/tiny-llama"));
        let config = serde_json::from_slice(&read("tiny-llama/config.json")).expect("a config");
        let description = Description::new(&config, &weights).expect("described");
        let settings = read("tiny-llama/tokenizer_config.json");
        let tokenizer = Tokenizer::new(&read("tiny-llama/tokenizer.json"), Some(&settings), None);
        let tokenizer = tokenizer.expect("a tokenizer");
        let cut = |file: &str, samples: Option<usize>| {
            let text = documents(file, &read(&format!("calibration/{file}"))).expect("text");
            windows(&tokenizer.encode(&text, None).expect("tokens"), 256, samples).expect("windows")
        };
        let (calibration, held_out) = (cut("calibration.txt", Some(192)), cut("held-out.txt", None));
        Self { weights, description, calibration, held_out }
    }

    /// Moments of the gradients of all matrices, layer by layer, over so many windows.
    fn outputs(&self, count: usize) -> Vec<OutputMoments> {
        let pass = Pass::new(&self.description, &self.calibration[..count]).expect("a pass");
        let mut out = Vec::new();
        let mut keep = |_: usize, outputs: OutputMoments| {
            out.push(outputs);
            Ok(())
        };
        let blocks = |_: usize, matrix: &Linear| Some(matrix.rows);
        let how = Backwards { weights: &self.weights, seed: 0, blocks: &blocks, tell: &|_, _| Ok(()) };
        pass.output_moments(&how, &mut || Ok(None), &mut keep).expect("gradients");
        out.reverse();
        out
    }

    /// The divergence of the answers after all layers were rounded in sequence.
    fn divergence(&self, outputs: Option<&[OutputMoments]>, is_signed: bool) -> f64 {
        let Self { weights, description, calibration, held_out } = self;
        let pass = Pass::new(description, calibration).expect("a pass");
        let [mut first, mut second] = [(); 2].map(|()| pass.embed(weights, None).expect("embedded"));
        let mut tensors = weights.0.clone();
        for (layer, program) in description.layers.iter().enumerate() {
            let own = LayerWeights::read(program, weights).expect("weights");
            let mut other = own.clone();
            let how = |matrix: &Linear| Rounding {
                nearest: quantizer(matrix),
                is_signed,
                outputs: outputs.map(|outputs| outputs[layer].get(matrix).expect("moments")),
            };
            let mut round = |moments: StageMoments<'_>, own: &LayerWeights| {
                let names: Vec<_> = moments.matrices.iter().map(|matrix| matrix.tensor.clone()).collect();
                let rounded = round_stage(moments, own, &how).expect("moments");
                let mut out = Vec::new();
                for (index, (name, rounded)) in names.iter().zip(rounded).enumerate() {
                    let rounded = rounded.expect("finite weights");
                    assert!(rounded.error < rounded.error_of_nearest);
                    assert_eq!(rounded.is_guided, outputs.is_some());
                    tensors.get_mut(name).expect("a tensor").1.clone_from(&rounded.values);
                    out.push((index, rounded.values));
                }
                Ok(out)
            };
            let streams = [&mut first, &mut second];
            let mut sequence = Sequence {
                pass: &pass,
                layer: (layer, program),
                streams,
                holds: true,
                goes_on: [true; 2],
                statistics: None,
                tell: &|_| Ok(()),
            };
            sequence.run(&own, &mut other, &|_| true, &mut round).expect("a layer");
        }
        let quantized = Files(tensors);
        let original = run(description, weights, held_out, None, &mut Silent);
        let answers = run(description, &quantized, held_out, None, &mut Silent);
        let found = compare_logits(description, held_out, (weights, &original), (&quantized, &answers));
        found.expect("compared").mean
    }
}

/// llm-compressor's GPTQ has a divergence of 0.0056 from the unquantized model, AutoRound one of 0.0042.
#[test]
fn the_trained_example_keeps_its_answers() {
    let example = Example::read();
    for (is_signed, most) in [(false, 0.0036), (true, 0.0033)] {
        let divergence = example.divergence(None, is_signed);
        assert!(divergence < most, "a divergence of {divergence}, signed {is_signed}");
    }
}

#[test]
fn gradients_of_the_answers_make_them_better() {
    let example = Example::read();
    let outputs = example.outputs(96);
    for (is_signed, most) in [(false, 0.0026), (true, 0.0023)] {
        let divergence = example.divergence(Some(&outputs), is_signed);
        assert!(divergence < most, "a divergence of {divergence}, signed {is_signed}");
    }
}
