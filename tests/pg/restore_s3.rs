//! Restores from an encrypted repository in a bucket of a real S3 server: what the restore suite shows of a directory, for the parts in which the
//! store matters. `make soak` runs the whole suite like that.

use crate::herd::{PAIR, SINGLE, Shape, newest_or_15};
use crate::kept::Kind;
use crate::restore::{
    Shop, follows_over_a_switch_of_timeline, restores_no_flipped_bit_silently,
    tells_what_is_missing_or_damaged,
};

/// A shop, where this machine has an S3 server.
fn shop(turn: u32, shape: &Shape<'_>) -> Option<Shop> {
    Shop::up_with(Kind::EncryptedBucket, &newest_or_15(turn), shape)
}

#[test]
fn from_an_encrypted_bucket_a_restore_follows_the_cluster_over_a_switch_of_timeline() {
    if let Some(shop) = shop(1, &PAIR) {
        follows_over_a_switch_of_timeline(&shop);
    }
}

#[test]
fn from_an_encrypted_bucket_what_is_missing_or_damaged_is_told_and_nothing_is_promoted_short() {
    if let Some(shop) = shop(0, &SINGLE) {
        tells_what_is_missing_or_damaged(&shop);
    }
}

#[test]
fn from_an_encrypted_bucket_no_flipped_bit_is_restored_silently() {
    if let Some(shop) = shop(1, &SINGLE) {
        restores_no_flipped_bit_silently(&shop);
    }
}
