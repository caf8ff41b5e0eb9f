use proptest::prelude::*;

use super::*;
use crate::repo::crypt::envelope::KeyDocument;
use crate::repo::crypt::keyring::Keyring;
use crate::secret::Secret;

const WHOLE: usize = CHUNK as usize;

fn name() -> Key {
    Key::new("inventory/7/backup/20261121T100203Z-full/data/000001").unwrap()
}

fn data_key() -> DataKey {
    DataKey::generate().unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = length as u32 | 1;
    let step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(step).take(length).collect()
}

fn seal(data_key: &DataKey, content: &[u8]) -> Vec<u8> {
    NewObject::generate(data_key, &name()).unwrap().seal(content)
}

fn open(data_key: &DataKey, object: &[u8]) -> Result<Vec<u8>, Damage> {
    ObjectKey::of(data_key, &name(), &header_of(object)?)?.open(object.to_vec())
}

/// Seals by pieces of the given lengths, again and again, until there is no more.
fn seal_in_pieces(data_key: &DataKey, content: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut sealing = Sealing::begin(NewObject::generate(data_key, &name()).unwrap());
    let (mut object, mut rest) = (Vec::new(), content);
    for length in lengths.iter().cycle() {
        let (piece, behind) = rest.split_at(rest.len().min(*length));
        let mut piece = piece;
        while !piece.is_empty() {
            piece = sealing.take(piece);
            object.extend_from_slice(sealing.sealed());
        }
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    object.extend(sealing.end());
    object
}

/// Lengths at which something is different: around whole chunks, and around what is handed on at once.
const LENGTHS: [usize; 13] = [
    0,
    1,
    15,
    16,
    17,
    WHOLE - 1,
    WHOLE,
    WHOLE + 1,
    2 * WHOLE - 16,
    2 * WHOLE,
    3 * WHOLE + 5,
    16 * WHOLE,
    33 * WHOLE + 1,
];

#[test]
fn what_was_sealed_opens_and_its_length_tells_the_size_of_the_content() {
    let data_key = data_key();
    for length in LENGTHS {
        let content = noise(length);
        let object = seal(&data_key, &content);
        assert!(open(&data_key, &object).unwrap() == content, "{length}");
        assert_eq!(content_size(object.len() as u64), length as u64);
        assert!(object.windows(64).all(|window| content.len() < 64 || window != &content[..64]));
    }
}

#[test]
fn an_object_that_is_sealed_in_pieces_is_made_as_one_at_once() {
    let data_key = data_key();
    for length in LENGTHS {
        let content = noise(length);
        for lengths in [&[1 << 22][..], &[WHOLE], &[WHOLE + 1], &[100_003, 1, 70_000], &[4096]] {
            let object = seal_in_pieces(&data_key, &content, lengths);
            assert!(open(&data_key, &object).unwrap() == content, "{length} bytes by {lengths:?}");
            assert_eq!(object.len() as u64, Extent::of_content(length as u64).stored());
        }
    }
}

#[test]
fn two_objects_of_one_content_and_name_have_nothing_in_common() {
    let data_key = data_key();
    let (one, two) = (seal(&data_key, &noise(5000)), seal(&data_key, &noise(5000)));
    let same = one.iter().zip(&two).skip(16).filter(|(a, b)| a == b).count();
    assert!(same < 100, "{same} bytes are the same");
}

#[test]
fn every_length_is_that_of_one_content_or_of_none() {
    let mut found = std::collections::BTreeMap::new();
    for content in (0..300).chain(CHUNK - 300..CHUNK + 300).chain(2 * CHUNK - 300..2 * CHUNK + 300) {
        found.insert(Extent::of_content(content).stored(), content);
    }
    for around in [0, CHUNK, 2 * CHUNK] {
        for stored in around..around + 200 {
            let expected = found.get(&stored).copied();
            assert_eq!(Extent::of_stored(stored).map(|extent| extent.content), expected, "{stored}");
        }
    }
    assert_eq!(content_size(0), 0);
    assert!(Extent::of_stored(u64::MAX).is_some_and(|extent| extent.content < u64::MAX));
}

#[test]
fn every_flipped_bit_of_a_small_object_is_found_and_told_by_where_it_is() {
    let data_key = data_key();
    let object = seal(&data_key, b"content");
    for bit in 0..object.len() * 8 {
        let mut flipped = object.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let expected = match bit / 8 {
            at if at < HEADER as usize => Damage::Header,
            at if at < object.len() - TRAILER as usize => Damage::Chunk(0),
            at if at < object.len() - END.len() => Damage::Length,
            _ => Damage::Trailer,
        };
        assert_eq!(open(&data_key, &flipped), Err(expected), "bit {bit}");
    }
}

#[test]
fn every_end_that_is_cut_off_is_found_and_so_is_one_that_is_longer() {
    let data_key = data_key();
    let object = seal(&data_key, b"content");
    for length in 0..object.len() {
        assert_eq!(open(&data_key, &object[..length]), Err(Damage::CutOff), "{length}");
    }
    assert_eq!(open(&data_key, &[&object[..], &[0]].concat()), Err(Damage::CutOff));
    assert_eq!(open(&data_key, &[&object[..], &object[..]].concat()), Err(Damage::Length));
}

/// Whoever cuts an object off may give it the trailer of a shorter one.
#[test]
fn an_object_that_lacks_whole_chunks_is_found_whatever_its_trailer_says() {
    let data_key = data_key();
    let object = seal(&data_key, &noise(3 * WHOLE + 5));
    let chunk = |number: usize| {
        let begin = begin_of(number as u64) as usize;
        &object[begin..(begin + STORED_CHUNK as usize).min(object.len() - TRAILER as usize)]
    };
    let made_of = |chunks: &[usize]| {
        let chunks = chunks.iter().map(|number| chunk(*number)).collect::<Vec<_>>().concat();
        let stored = HEADER + chunks.len() as u64 + TRAILER;
        let content = Extent::of_stored(stored).unwrap().content;
        [&object[..HEADER as usize], &chunks, &trailer(content)].concat()
    };
    assert!(open(&data_key, &made_of(&[0, 1, 2, 3])).is_ok());
    for (chunks, found) in [
        (&[0, 1, 2][..], 2),
        (&[0, 1], 1),
        (&[0], 0),
        (&[1, 2, 3], 0),
        (&[0, 2, 3], 1),
        (&[0, 0, 2, 3], 1),
        (&[1, 0, 2, 3], 0),
        (&[0, 2, 1, 3], 1),
        (&[0, 1, 2, 2, 3], 3),
        (&[3], 0),
    ] {
        assert_eq!(open(&data_key, &made_of(chunks)), Err(Damage::Chunk(found)), "{chunks:?}");
    }
}

#[test]
fn what_is_not_encrypted_is_told_to_be_just_that() {
    let data_key = data_key();
    for content in [&b"{\"format\":1}\n"[..], &noise(5000), b"\x28\xb5\x2f\xfd", b"\0"] {
        assert_eq!(open(&data_key, content), Err(Damage::Clear));
    }
}

#[test]
fn an_object_of_another_name_or_data_key_or_format_is_told() {
    let (data_key, other) = (data_key(), data_key());
    let object = seal(&data_key, b"content");
    let header = header_of(&object).unwrap();
    assert_eq!(open(&other, &object), Err(Damage::Name));
    let elsewhere = Key::new("inventory/7/backup/20261121T100203Z-full/data/000002").unwrap();
    assert_eq!(ObjectKey::of(&data_key, &elsewhere, &header).unwrap_err(), Damage::Name);
    let with = |at: usize, number: u32| {
        let mut header = header;
        header[at..at + 4].copy_from_slice(&number.to_le_bytes());
        let sum = sum(&header);
        header[64..].copy_from_slice(&sum);
        ObjectKey::of(&data_key, &name(), &header).unwrap_err()
    };
    assert_eq!(with(8, 2), Damage::Format(2));
    assert_eq!(with(12, 4096), Damage::ChunkSize(4096));
    assert_eq!(with(16, 0), Damage::Name, "another salt");
}

#[test]
fn an_object_of_one_key_does_not_open_with_another_though_the_header_is_forged() {
    let data_key = data_key();
    let (one, two) = (seal(&data_key, b"content"), seal(&data_key, b"content"));
    let mixed = [&one[..HEADER as usize], &two[HEADER as usize..]].concat();
    assert_eq!(open(&data_key, &mixed), Err(Damage::Chunk(0)));
}

#[test]
fn the_golden_object_opens_with_the_golden_key_document() {
    let key = |name: &str| Key::new(format!("inventory/7398812045532218841/{name}")).unwrap();
    let (document, name) = (key("key/wal-00000002.json"), key("wal/00000002.history.zst"));
    let keyring = Keyring::parse(&[Secret::new("1".repeat(64))]).unwrap();
    let document =
        KeyDocument::read(include_bytes!("../../../../tests/golden/key-v1.json"), &document).unwrap();
    let data_key = document.open(&keyring).unwrap();
    let golden = include_bytes!("../../../../tests/golden/encrypted-v1");
    let object_key = ObjectKey::of(&data_key, &name, &header_of(golden).unwrap()).unwrap();
    assert_eq!(
        object_key.open(golden.to_vec()).unwrap(),
        include_bytes!("../../../../tests/golden/sealed-v1.zst")
    );
    assert_eq!(NewObject(object_key).seal(include_bytes!("../../../../tests/golden/sealed-v1.zst")), golden);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_flipped_bit_of_a_large_object_is_found(length in 0..4 * WHOLE, at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let data_key = data_key();
        let mut object = seal(&data_key, &noise(length));
        let at = at.index(object.len());
        object[at] ^= 1 << bit;
        prop_assert!(open(&data_key, &object).is_err());
    }

    #[test]
    fn any_end_that_is_cut_off_is_found(length in 0..4 * WHOLE, cut in any::<prop::sample::Index>()) {
        let data_key = data_key();
        let object = seal(&data_key, &noise(length));
        prop_assert!(open(&data_key, &object[..cut.index(object.len())]).is_err());
    }

    #[test]
    fn any_two_chunks_that_are_exchanged_are_found(chunks in 2..6_usize, one in 0..6_usize, two in 0..6_usize) {
        let (one, two) = (one % chunks, two % chunks);
        prop_assume!(one != two);
        let data_key = data_key();
        let mut object = seal(&data_key, &noise(chunks * WHOLE));
        let at = |number: usize| begin_of(number as u64) as usize;
        let stored = STORED_CHUNK as usize;
        let (a, b) = (object[at(one)..at(one) + stored].to_vec(), object[at(two)..at(two) + stored].to_vec());
        object[at(one)..at(one) + stored].copy_from_slice(&b);
        object[at(two)..at(two) + stored].copy_from_slice(&a);
        let found = open(&data_key, &object);
        prop_assert_eq!(found, Err(Damage::Chunk(one.min(two) as u64)));
    }

    #[test]
    fn any_content_comes_back_however_it_was_cut(length in 0..20 * WHOLE, pieces in prop::collection::vec(1..200_000_usize, 1..5)) {
        let data_key = data_key();
        let content = noise(length);
        let object = seal_in_pieces(&data_key, &content, &pieces);
        prop_assert!(open(&data_key, &object).unwrap() == content);
    }
}
