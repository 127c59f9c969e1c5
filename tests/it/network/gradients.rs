//! The backward pass against torch: gradients of the stream before and after each layer, and of the outputs of matrices.

use super::{Fixture, distance, fixture};
use crate::support::root;
use monoquant::network::{Description, LayerWeights, OutputMoments, Pass};

/// The loss of `tests/interop/make_gradient_fixtures.py`.
fn labels(tokens: usize) -> Vec<usize> {
    (0..tokens).map(|position| (17 * position + 4) % 80).collect()
}

/// How far the furthest gradient of a model is off.
fn hold(name: &str, fixture: &Fixture, expected: &std::collections::BTreeMap<String, Vec<f32>>) -> f64 {
    let description = Description::new(&fixture.config, &fixture.weights).expect("described");
    let windows = [fixture.tokens.clone()];
    let pass = Pass::new(&description, &windows).expect("a pass");
    let mut streams = vec![pass.embed(&fixture.weights, None).expect("embedded")];
    let read =
        |layer: usize| LayerWeights::read(&description.layers[layer], &fixture.weights).expect("weights");
    for layer in 0..description.layers.len() {
        let mut next = pass.room(None);
        pass.layer_to(layer, &read(layer), &streams[layer], &mut next, &|_| Ok(())).expect("a layer");
        streams.push(next);
    }
    let last = streams.pop().expect("the last");
    let mut gradients = pass.room(None);
    let labels = [labels(fixture.tokens.len())];
    pass.labels_back(&fixture.weights, &last, &labels, &mut gradients).expect("gradients");
    let (mut furthest, mut matrices) = (0.0f64, 0);
    let mut compare = |key: String, ours: &[f32]| {
        let Some(theirs) = expected.get(&key) else { return false };
        let distance = distance(ours, theirs);
        assert!(distance < 1e-4, "{name}: {key} differs by {distance:.2e}");
        furthest = furthest.max(distance);
        true
    };
    for (layer, program) in description.layers.iter().enumerate().rev() {
        let last = gradients.get(0).expect("a gradient");
        assert!(compare(format!("gradient.{}", layer + 1), &last));
        let mut outputs = OutputMoments::of(program.matrices().map(|matrix| (matrix, 1)));
        pass.layer_back((layer, &read(layer)), &streams[layer], &mut gradients, &mut outputs, &|_| Ok(()))
            .expect("a layer");
        for matrix in program.matrices() {
            let squares = &outputs.get(matrix).expect("chosen").sums;
            matrices += u32::from(compare(format!("squares.{}", matrix.module()), squares));
        }
    }
    assert!(compare("gradient.0".to_owned(), &gradients.get(0).expect("a gradient")));
    let linears = expected.keys().filter(|key| key.starts_with("squares.")).count();
    assert_eq!(matrices as usize, linears, "{name}: all matrices that torch knows");
    furthest
}

#[test]
fn gradients_are_those_of_torch() {
    let folder = root().join("tests/fixtures/gradients");
    let mut tried = 0;
    for entry in std::fs::read_dir(folder).expect("fixtures") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).expect("a fixture");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
        let numbers = |data: &[u8]| data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let expected = file.tensors().into_iter().map(|(name, view)| (name, numbers(view.data()))).collect();
        assert!(hold(&name, &fixture(&name), &expected) > 0.0);
        tried += 1;
    }
    assert!(tried >= 15);
}
