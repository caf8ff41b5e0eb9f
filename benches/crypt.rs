//! How fast 64 MiB are encrypted and opened again, on one core: `cargo bench --bench crypt`.

#![expect(clippy::unwrap_used, reason = "a benchmark ends where something fails")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgherd::repo::Key;
use pgherd::repo::crypt::envelope::DataKey;
use pgherd::repo::crypt::stream::{NewObject, ObjectKey, Sealing, header_of};

const SIZE: usize = 64 << 20;
/// What a worker of a backup hands on at once.
const PIECE: usize = 4 << 20;

fn crypt(criterion: &mut Criterion) {
    let data_key = DataKey::generate().unwrap();
    let name = Key::new("inventory/7/backup/20261121T100203Z-full/data/000001").unwrap();
    let content = vec![0xA5_u8; SIZE];
    let new_object = || NewObject::generate(&data_key, &name).unwrap();
    let object = new_object().seal(&content);

    let mut group = criterion.benchmark_group("crypt");
    group.throughput(Throughput::Bytes(SIZE as u64)).sample_size(20);
    group.bench_function("encrypt 64 MiB at once", |bencher| {
        bencher.iter(|| new_object().seal(black_box(&content)));
    });
    group.bench_function("encrypt 64 MiB in pieces of 4 MiB", |bencher| {
        bencher.iter(|| {
            let mut sealing = Sealing::begin(new_object());
            let mut bytes = 0;
            for mut piece in black_box(&content).chunks(PIECE) {
                while !piece.is_empty() {
                    piece = sealing.take(piece);
                    bytes += black_box(sealing.sealed()).len();
                }
            }
            bytes + sealing.end().len()
        });
    });
    group.bench_function("decrypt 64 MiB", |bencher| {
        let open = |object: Vec<u8>| {
            let header = header_of(&object).unwrap();
            ObjectKey::of(&data_key, &name, &header).unwrap().open(object).unwrap()
        };
        bencher.iter_batched(|| object.clone(), open, BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, crypt);
criterion_main!(benches);
