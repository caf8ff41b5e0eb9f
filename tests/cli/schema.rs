//! The JSON Schema, the decoder and the file in docs/formats say the same.

use std::collections::BTreeSet;
use std::path::Path;

use pgherd::topology::load_text;
use pgherd::topology::problem::{Problem, Problems};
use serde_json::{Value, json};

/// A key that no mapping has.
const STRANGER: &str = "zzzzzzzz";

#[test]
fn the_checked_in_schema_is_the_one_that_is_printed() {
    let file = crate::project("docs/formats/topology.schema.json");
    let checked_in = std::fs::read_to_string(file).expect("docs/formats/topology.schema.json can be read");
    assert!(
        checked_in == pgherd::topology::schema::text(),
        "the format has changed: run \"pgherd schema > docs/formats/topology.schema.json\""
    );
}

#[test]
fn the_schema_and_the_decoder_know_the_same_keys() {
    let schema: Value = serde_json::from_str(&pgherd::topology::schema::text()).unwrap();
    let mut walk = Walk { schema: &schema, objects: 0, others: 0 };
    walk.visit(&schema, &mut Vec::new());
    // Guards against a walk that finds nothing: the format has 14 kinds of mappings, clusters and defaults share 13 of them.
    assert!(walk.objects > 25, "only {} mappings were compared", walk.objects);
    assert!(walk.others > 50, "only {} values were compared", walk.others);
}

struct Walk<'a> {
    schema: &'a Value,
    objects: usize,
    others: usize,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, node: &'a Value, path: &mut Vec<String>) {
        let node = self.resolve(node);
        if let Some(Value::Object(properties)) = node.get("properties") {
            let keys: BTreeSet<String> = properties.keys().cloned().collect();
            assert_eq!(node["additionalProperties"], json!(false), "{path:?} takes any key");
            assert_eq!(known_keys(path), keys, "the keys of {path:?}");
            self.objects += 1;
            for (key, value) in properties {
                path.push(key.clone());
                self.visit(value, path);
                path.pop();
            }
        } else if let Some(values @ Value::Object(_)) = node.get("additionalProperties") {
            path.push("x".to_owned());
            self.visit(values, path);
            path.pop();
        } else if let Some(items) = node.get("items") {
            assert!(!is_taken(path, json!({STRANGER: 1})), "{path:?} takes a mapping");
            assert_eq!(items["type"], "string", "{path:?} is a list of something else than texts");
        } else if !path.is_empty() && node["additionalProperties"] != json!(false) {
            self.others += 1;
            assert!(!is_taken(path, json!({STRANGER: 1})), "{path:?} takes a mapping, the schema has {node}");
            assert!(!is_taken(path, json!([STRANGER])), "{path:?} takes a list, the schema has {node}");
        } else {
            assert_eq!(known_keys(path), BTreeSet::new(), "the keys of {path:?}");
        }
    }

    /// Follows references, and leaves out the `none` that every key of a cluster takes, and the text that stands for a mapping.
    fn resolve(&self, node: &'a Value) -> &'a Value {
        if let Some(Value::String(target)) = node.get("$ref") {
            let name = target.strip_prefix("#/$defs/").expect("references lead to $defs");
            return self.resolve(&self.schema["$defs"][name]);
        }
        match node.get("anyOf") {
            Some(Value::Array(choices)) => {
                assert_eq!(choices.len(), 2, "{node}");
                // A host is also its address alone, and TLS a word.
                let other = [json!({"const": "none"}), json!({"type": "string"}), json!({"enum": ["own"]})];
                // And a hook is also its argv alone.
                let is_argv = choices[1]["items"] == json!({"type": "string"});
                assert!(is_argv || other.contains(&choices[1]), "{node}");
                self.resolve(&choices[0])
            }
            _ => node,
        }
    }
}

/// Loads a topology that has only `value` under `path`. JSON is YAML.
fn load(path: &[String], value: Value) -> Problems {
    let document = path.iter().rev().fold(value, |value, key| json!({key.as_str(): value}));
    load_text(Path::new("pgherd.yml"), &document.to_string(), Path::new("/")).expect_err("it is not whole")
}

/// Tells whether nothing is wrong with the value itself.
fn is_taken(path: &[String], value: Value) -> bool {
    let name = path.join(".");
    let about = |problem: &Problem| problem.what.starts_with(&name) && !problem.what.contains(" has no ");
    !load(path, value).iter().any(about)
}

/// Asks the decoder which keys a mapping has, by giving it one that it cannot know.
fn known_keys(path: &[String]) -> BTreeSet<String> {
    let problems = load(path, json!({STRANGER: {}}));
    let last = path.last().map_or("", String::as_str);
    if ["password", "token", "access-key", "secret-key", "encrypt", "encrypt-before"].contains(&last)
        || path.ends_with(&["notify".to_owned(), "url".to_owned()])
    {
        let secret = problems.iter().find(|problem| problem.what.starts_with("unknown key in"));
        let listed = secret.and_then(|problem| problem.detail.as_deref()).expect("the key is refused");
        let listed = listed
            .strip_prefix("A secret has ")
            .and_then(|rest| rest.split('.').next())
            .expect("it lists keys");
        let listed = listed.replace(" or ", ", ");
        // What opens a Vault is not in one.
        let keys = listed.split(", ").filter(|key| last != "token" || *key != "vault");
        return keys.map(str::to_owned).collect();
    }
    let unknown = format!("unknown key \"{STRANGER}\"");
    let problem = problems.iter().find(|problem| problem.what.starts_with(&unknown));
    let detail = problem
        .and_then(|problem| problem.detail.as_deref())
        .unwrap_or_else(|| panic!("{path:?}: {problems}"));
    match detail.strip_prefix("Its keys are: ") {
        Some(keys) => keys.trim_end_matches('.').split(", ").map(str::to_owned).collect(),
        None => BTreeSet::new(),
    }
}
