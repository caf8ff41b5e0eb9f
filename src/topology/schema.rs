//! The JSON Schema of the topology file, made from [`super::raw`], which the decoder is made from too.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::raw;

/// Returns the schema as text, with a newline at the end.
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).expect("a schema is JSON");
    text.push('\n');
    text
}

fn schema() -> Schema {
    let settings = SchemaSettings::draft2020_12();
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<raw::Topology>();
    // An optional key is one that may be left out; it never takes null.
    RecursiveTransform(without_null).transform(&mut schema);
    schema.insert("title".to_owned(), json!("pgherd topology"));
    schema.insert("required".to_owned(), json!(["pgherd", "herd", "regions", "clusters"]));
    let top: Vec<String> = ["Topology", "Region", "Repository", "Ssh", "FilePlace"].map(str::to_owned).into();
    if let Some(Value::Object(definitions)) = schema.get_mut("$defs") {
        for (name, definition) in definitions.iter_mut().filter(|(name, _)| !top.contains(name)) {
            allow_none(name, definition);
        }
    }
    schema
}

fn without_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    let Some(Value::Array(choices)) = schema.get_mut("anyOf") else {
        return;
    };
    choices.retain(|choice| choice != &json!({"type": "null"}));
    if let [only] = choices.as_slice() {
        let only = only.clone();
        schema.remove("anyOf");
        if let Value::Object(fields) = only {
            for (key, value) in fields {
                schema.insert(key, value);
            }
        }
    }
}

/// In `defaults` and in a cluster every key may be `none`, which takes an inherited value away.
fn allow_none(_name: &str, definition: &mut Value) {
    if let Some(Value::Object(properties)) = definition.get_mut("properties") {
        for property in properties.values_mut() {
            if let Some(values) = property.get_mut("additionalProperties").filter(|values| values.is_object())
            {
                or_none(values);
            }
            or_none(property);
        }
    }
}

fn or_none(schema: &mut Value) {
    let mut inner = schema.take();
    let description = inner.as_object_mut().and_then(|fields| fields.shift_remove("description"));
    let mut outer = json!({});
    if let Some(description) = description {
        outer["description"] = description;
    }
    outer["anyOf"] = json!([inner, {"const": "none"}]);
    *schema = outer;
}
