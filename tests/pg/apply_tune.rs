//! Memory that nobody stated: shared out when a node is made, and then left alone.

use crate::herd::{Herd, SINGLE, newest_or_15};

#[test]
fn a_node_that_comes_later_restarts_nobody_for_its_share_of_the_memory() {
    let mut herd = Herd::declare(&newest_or_15(1), &SINGLE);
    herd.edit("      tune: {memory: 128 MiB}\n", "");
    herd.apply().ends_with(0);
    let before = herd.sql("a", "SHOW effective_cache_size");
    herd.add_node("b");
    herd.plan().ends_with(0).says(&["clone from inventory-a", "Nothing restarts; nothing is interrupted."]);
    herd.apply().ends_with(0);
    herd.is_as_declared();
    assert_eq!(herd.sql("a", "SHOW effective_cache_size"), before);
    assert_ne!(herd.sql("b", "SHOW effective_cache_size"), before, "the second node got a smaller share");
}
