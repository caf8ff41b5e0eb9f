//! How long a topology of 1,000 nodes takes to read and check: `cargo bench --bench topology`.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use pgherd::topology::load_text;

#[path = "../tests/cli/large.rs"]
mod large;

fn thousand_nodes(criterion: &mut Criterion) {
    let text = large::thousand_nodes();
    criterion.bench_function("load 1000 nodes", |bencher| {
        bencher.iter(|| {
            load_text(Path::new("pgherd.yml"), black_box(&text), Path::new("/")).expect("it is valid")
        });
    });
}

criterion_group!(benches, thousand_nodes);
criterion_main!(benches);
