//! Inheritance: `defaults`, then the cluster. Mappings merge key by key, scalars and lists replace, `none` removes.
//!
//! Works on the tree, so that a value keeps the place where it was written. There is one level of it.

use super::yaml::{Entry, Node, SECRET, Value};

/// Puts what `cluster` says over what `defaults` say.
pub(super) fn merge(defaults: &Node, cluster: &Node) -> Node {
    let (Value::Mapping(base), Value::Mapping(over)) = (&defaults.value, &cluster.value) else {
        return without_none(cluster);
    };
    let mut entries = Vec::with_capacity(base.len().max(over.len()));
    for Entry { key, at, value } in base {
        match over.iter().find(|entry| entry.key == *key) {
            None => entries.push(Entry { key: key.clone(), at: *at, value: without_none(value) }),
            Some(other) if other.value.is_none_word() => continue,
            // A reference to a secret is one value, although it is written as a mapping.
            Some(other) if key == SECRET => entries.push(other.clone()),
            Some(other) => {
                entries.push(Entry { key: key.clone(), at: other.at, value: merge(value, &other.value) });
            }
        }
    }
    for entry in over {
        let inherited = base.iter().any(|other| other.key == entry.key);
        if !inherited && !entry.value.is_none_word() {
            entries.push(Entry { key: entry.key.clone(), at: entry.at, value: without_none(&entry.value) });
        }
    }
    entries.retain(|entry| !entry.value.is_none_word());
    Node { at: cluster.at, value: Value::Mapping(entries) }
}

/// Leaves out every key whose value is `none`.
pub(super) fn without_none(node: &Node) -> Node {
    let value = match &node.value {
        Value::Mapping(entries) => Value::Mapping(
            entries
                .iter()
                .filter(|entry| !entry.value.is_none_word())
                .map(|entry| Entry {
                    key: entry.key.clone(),
                    at: entry.at,
                    value: without_none(&entry.value),
                })
                .collect(),
        ),
        Value::Scalar(_) | Value::Sequence(_) | Value::Alias => node.value.clone(),
    };
    Node { at: node.at, value }
}
