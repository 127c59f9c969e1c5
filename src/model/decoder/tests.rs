use super::*;

fn list(blocks: u64, width: u64, inner: u64) -> List {
    let mut list = List::default();
    for number in 0..blocks {
        list.numbers.insert(number);
        list.matrices += 4;
        *list.axes.entry(width).or_default() += 4;
        *list.axes.entry(inner).or_default() += 2;
    }
    list.norms.insert(width);
    list
}

fn description(width: u64, depth: u64, table: &str) -> Description {
    let tables = vec![table.to_owned()];
    Description { width: Some(width), depths: BTreeSet::from([depth]), tables, heads: Vec::new() }
}

#[test]
fn names_lead_through_their_lists() {
    let found = |name| numbered(name).collect::<Vec<_>>();
    assert_eq!(
        found("a.layers.3.mlp.experts.7.up.weight"),
        [("a.layers", 3, "mlp.experts.7.up.weight")],
        "experts are no blocks"
    );
    assert_eq!(
        found("tower.blocks.0.1.attn.qkv.weight"),
        [("tower.blocks", 0, "1.attn.qkv.weight"), ("tower.blocks.0", 1, "attn.qkv.weight")]
    );
    assert_eq!(found("h.0.attn.weight"), [("h", 0, "attn.weight")]);
    assert_eq!(found("projector.0.weight"), [], "a list of single layers");
    assert_eq!(found("layers.x1.mlp.weight"), []);
    assert_eq!(found("a.99999999999999999999999.b.c"), []);
}

#[test]
fn the_width_and_the_depth_that_are_described_find_the_list() {
    let lists = HashMap::from([
        ("core.layers", list(4, 256, 1024)),
        ("eyes.layers", list(4, 192, 256)),
        ("ears.layers", list(8, 256, 1024)),
    ]);
    let chosen = choose(&lists, &description(256, 4, "core.table"), false);
    assert_eq!(chosen, Some(vec!["core.layers"]));
    assert_eq!(choose(&lists, &description(64, 64, "table"), false), None, "nothing fits");
    let extra = List { numbers: (0..5).collect(), ..list(5, 256, 1024) };
    assert_eq!(extra.fits_depth(&BTreeSet::from([4])), 2, "a layer that predicts more tokens");
    assert_eq!(extra.fits_depth(&BTreeSet::from([6])), 0);
}

#[test]
fn the_table_of_tokens_tells_lists_apart_that_are_alike() {
    let lists = HashMap::from([("zeta.layers", list(4, 256, 512)), ("alpha.layers", list(4, 256, 512))]);
    let chosen = choose(&lists, &description(256, 4, "zeta.embed_tokens"), false);
    assert_eq!(chosen, Some(vec!["zeta.layers"]));
    let chosen = choose(&lists, &description(256, 4, "embed_tokens"), false);
    assert_eq!(chosen, Some(vec!["alpha.layers", "zeta.layers"]), "both are the model where nothing tells");
}

#[test]
fn an_encoder_comes_with_its_decoder() {
    let lists = HashMap::from([
        ("model.encoder.layers", list(6, 256, 512)),
        ("model.decoder.layers", list(4, 256, 512)),
        ("adapter.layers", list(2, 96, 512)),
    ]);
    let chosen = choose(&lists, &description(256, 4, "model.decoder.embed_tokens"), true);
    assert_eq!(chosen, Some(vec!["model.decoder.layers", "model.encoder.layers"]));
}

#[test]
fn a_list_in_a_list_counts_once() {
    let lists = HashMap::from([("layers", list(4, 256, 512)), ("layers.0.sub", list(2, 256, 512))]);
    assert_eq!(choose(&lists, &description(256, 4, "table"), false), Some(vec!["layers"]));
    let mut stacks = every_stack(&lists);
    stacks.sort_unstable();
    assert_eq!(stacks, ["layers", "layers.0.sub"]);
}
