//! Files of activation statistics, written for a test.

use safetensors::tensor::{Dtype, TensorView};

/// A module in a file of statistics: its name, the shape of its sums, the sums, and its counts.
pub type Module<'a> = (&'a str, &'a [usize], &'a [f32], &'a [i64]);

/// Statistics as safetensors.
pub fn safetensors(modules: &[Module<'_>], samples: Option<u64>) -> Vec<u8> {
    let bytes: Vec<(Vec<u8>, Vec<u8>)> = modules
        .iter()
        .map(|(_, _, sums, counts)| {
            let sums = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
            (sums, counts.iter().flat_map(|count| count.to_le_bytes()).collect())
        })
        .collect();
    let mut tensors = Vec::new();
    for ((name, shape, _, counts), (sums, count_bytes)) in modules.iter().zip(&bytes) {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), sums).expect("a tensor");
        tensors.push((format!("{name}.in_sum2"), view));
        let view = TensorView::new(Dtype::I64, vec![counts.len()], count_bytes).expect("a tensor");
        tensors.push((format!("{name}.counts"), view));
    }
    let metadata = samples.map(|samples| [("samples".to_owned(), samples.to_string())].into());
    safetensors::serialize(tensors, metadata).expect("bytes")
}
