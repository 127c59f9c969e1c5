//! What rounding holds in memory, counted byte by byte. A program of its own, so that nothing else allocates beside it.

#![expect(unsafe_code, reason = "an allocator is unsafe")]
#![expect(clippy::disallowed_methods, reason = "it writes the recipe that it plans")]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use monoquant::network::{
    Backwards, Checkpoint, LayerWeights, Layout, Linear, OutputSum, Part, Pass, Rounding, StageMoments,
    StageSize, round_stage,
};
use monoquant::plan::{self, Limits};
use monoquant::quant::{Bits, FloatType, Granularity, Isa, Observer, Quantizer, Scheme, Storage};
use monoquant::recipe::{self, Overrides};

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// Held by the test that counts.
static ALONE: Mutex<()> = Mutex::new(());

struct Counting;

// SAFETY: all is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        let held = HELD.fetch_add(memory.size(), Ordering::SeqCst) + memory.size();
        MOST.fetch_max(held, Ordering::SeqCst);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, memory: Memory) {
        HELD.fetch_sub(memory.size(), Ordering::SeqCst);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + i / 13 * 104_729) % 1013) as f32 / 506.0 - 1.0).collect()
}

/// Like moments: a unit matrix, and something in common.
fn squares(size: usize, common: f32) -> Vec<f32> {
    let shared = numbers(size);
    let unit = |i: usize| if i / size == i % size { 1.0 } else { 0.0 };
    (0..size * size).map(|i| unit(i) + common * shared[i / size] * shared[i % size]).collect()
}

fn rounding<'a>(matrix: &Linear, outputs: Option<&'a OutputSum>) -> Rounding<'a> {
    let scheme = Scheme {
        bits: Bits::Four,
        symmetric: true,
        granularity: Granularity::Group(128),
        scale_type: FloatType::Bf16,
        storage: Storage::Packed,
    };
    let nearest = Quantizer::new(scheme, Observer::Minmax, FloatType::Bf16, matrix.columns, Isa::detect());
    Rounding { nearest, is_signed: false, outputs }
}

/// Bytes that a stage took at most, its moments among them.
fn taken(size: &StageSize<'_>) -> u64 {
    let columns = size.columns;
    let of = |(index, rows): (usize, &usize)| Linear {
        tensor: format!("{index}.weight"),
        part: Part::Whole,
        layout: Layout::OutIn,
        columns,
        rows: *rows,
        bias: None,
    };
    let matrices: Vec<Linear> = size.rows.iter().enumerate().map(of).collect();
    let mut weights = LayerWeights::default();
    matrices.iter().for_each(|matrix| weights.replace(matrix, numbers(matrix.rows * columns)));
    let outputs: Vec<OutputSum> = size
        .block
        .into_iter()
        .flat_map(|block| size.rows.iter().map(move |rows| (*rows, block)))
        .map(|(rows, block)| {
            let starts = (0..rows).step_by(block);
            let sums = starts.flat_map(|start| squares(block.min(rows - start), 0.2)).collect();
            OutputSum { rows, block, tokens: 1, sums }
        })
        .collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(size.threads).build().expect("a pool");
    // Each thread has made room for its products once.
    pool.broadcast(|_| drop(squares(64, 0.1)));
    let before = HELD.load(Ordering::SeqCst);
    let moments = StageMoments {
        matrices: matrices.iter().collect(),
        rows: 1 << 20,
        squares: squares(columns, 0.2),
        cross: size.has_cross.then(|| squares(columns, 0.01)),
        residual: size.has_residual.then(|| numbers(size.rows[0] * columns)),
    };
    MOST.store(HELD.load(Ordering::SeqCst), Ordering::SeqCst);
    let how = |matrix: &Linear| {
        let index = matrices.iter().position(|other| other == matrix).expect("one of them");
        rounding(matrix, outputs.get(index))
    };
    let rounded = pool.install(|| round_stage(moments, &weights, &how)).expect("moments");
    assert!(rounded.iter().all(Result::is_ok));
    (MOST.load(Ordering::SeqCst) - before) as u64
}

#[test]
fn a_stage_takes_the_bytes_that_are_stated() {
    let _alone = ALONE.lock();
    let size = StageSize {
        columns: 1024,
        rows: &[1024, 256, 256],
        has_cross: true,
        has_residual: false,
        group: 128,
        block: None,
        threads: 2,
    };
    let cases = [
        size.clone(),
        StageSize { columns: 1536, rows: &[512], has_residual: true, ..size.clone() },
        StageSize { columns: 1536, rows: &[512], has_cross: false, has_residual: true, ..size.clone() },
        StageSize {
            columns: 1024,
            rows: &[768],
            has_cross: false,
            has_residual: true,
            threads: 16,
            ..size.clone()
        },
        StageSize { rows: &[384, 384], has_cross: false, ..size.clone() },
        StageSize { columns: 512, rows: &[512], has_residual: true, block: Some(512), ..size.clone() },
        StageSize { columns: 512, rows: &[700, 700], block: Some(128), ..size },
    ];
    for size in cases {
        let (stated, taken) = (size.bytes_of_rounding(), taken(&size));
        assert!(taken <= stated, "{size:?}: {taken} bytes, stated {stated}");
        assert!(taken * 5 >= stated * 2, "{size:?}: only {taken} bytes, stated {stated}");
    }
}

/// Gradients of the example, on 16 samples of 256 tokens: what the plan states beside what the process and its threads take. That
/// room for threads is asked for before they start is not among it: it is given back at once.
#[test]
fn the_way_back_takes_the_bytes_that_are_stated() {
    let _alone = ALONE.lock();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tiny-llama");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recipe.yaml");
    let text = format!(
        "version: 1\nname: back\nstages:\n- stage: load\n  model: '{}'\n\
         - stage: resolve-skips\n  modules_to_not_convert: [lm_head]\n\
         - stage: calibrate\n  samples: 16\n  sequence_length: 256\n\
         - stage: quantize-int4\n  rounding: guided\n- stage: export\n  path: out\n",
        example.display()
    );
    std::fs::write(&file, text).expect("a recipe");
    for threads in [1, 2] {
        let loaded = recipe::load(&file, &Overrides::default()).expect("a recipe");
        let plan = plan::plan(loaded, Limits { threads: Some(threads), memory: None }).expect("a plan");
        let (runs, roundings) =
            (plan.runs.as_ref().expect("runs"), plan.roundings.as_ref().expect("rounded"));
        let (run, gradients) = (roundings.run(runs).expect("text"), roundings.gradients.expect("gradients"));
        assert_eq!((gradients.samples, gradients.tokens), (16, 4096));
        let stated = gradients.layer_bytes + gradients.stream_bytes;
        let checkpoint = Checkpoint::open(&plan.model).expect("the example");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.broadcast(|_| drop(squares(64, 0.1)));
        let before = HELD.load(Ordering::SeqCst);
        MOST.store(before, Ordering::SeqCst);
        let back = || {
            let blocks = |_: usize, linear: &Linear| Some(gradients.block(linear.rows));
            let how = Backwards { weights: &checkpoint, seed: 0, blocks: &blocks, tell: &|_, _| Ok(()) };
            let pass = Pass::new(&runs.description, &run.windows)?;
            pass.output_moments(&how, &mut || Ok(None), &mut |_, _| Ok(()))
        };
        pool.install(back).expect("gradients");
        let taken = (MOST.load(Ordering::SeqCst) - before) as u64;
        assert!(taken <= stated, "{threads}: {taken} bytes, stated {stated}");
        // Two threads need not be at their most at once.
        let least = if threads == 1 { 4 } else { 3 };
        assert!(taken * 5 >= stated * least, "{threads}: only {taken} bytes, stated {stated}");
    }
}

/// The widest matrix of Llama 3 8B beside its layer's weights, rounded and not, and the windows at work.
#[test]
fn eight_billion_parameters_fit_into_eight_gib() {
    let size = StageSize {
        columns: 14336,
        rows: &[4096],
        has_cross: false,
        has_residual: true,
        group: 128,
        block: None,
        threads: 8,
    };
    let layer = 2 * 4 * (3 * 14336 * 4096 + 2 * 4096 * 4096 + 2 * 1024 * 4096) as u64;
    // 4096 tokens in both streams, with gate, up and what goes in and out; and differences for the sums.
    let windows = 4096 * 4 * (2 * (2 * 14336 + 3 * 4096) + 2 * 14336) as u64;
    let most = layer + size.bytes_of_rounding().max(size.bytes_of_sums() + windows);
    assert!(most < 8 << 30, "{most} bytes");
    assert!(most > 4 << 30, "the layer and its moments are not small: {most} bytes");
}
