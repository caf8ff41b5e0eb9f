//! Reads YAML 1.2 into a tree in which every key and value knows its line and column.
//!
//! Takes the part of YAML that reads the same to everybody: no anchors, aliases, merge keys, tags, duplicate keys, keys that are
//! not text, second documents or `${…}`. Knows no key of the topology.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::problem::{Position, Report};

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
    /// What an alias stands for; it was reported, so nobody needs to complain of it again.
    Alias,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Written without quotes, so that it may be a number, `true` or nothing at all.
    pub(super) plain: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) value: Node,
}

/// What YAML 1.2's core schema takes an unquoted scalar for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    Boolean,
    Number,
    Text,
}

impl Scalar {
    pub(super) fn kind(&self) -> Kind {
        if !self.plain {
            return Kind::Text;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Kind::Nothing,
            "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Kind::Boolean,
            text if is_number(text) => Kind::Number,
            _ => Kind::Text,
        }
    }
}

/// YAML 1.2.2, section 10.3.2: integers in base 8, 10 and 16, decimal fractions, infinity and not-a-number.
fn is_number(text: &str) -> bool {
    if let Some(octal) = text.strip_prefix("0o") {
        return !octal.is_empty() && octal.bytes().all(|b| (b'0'..=b'7').contains(&b));
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if [".inf", ".Inf", ".INF"].contains(&unsigned) || [".nan", ".NaN", ".NAN"].contains(&text) {
        return true;
    }
    unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') && unsigned.parse::<f64>().is_ok()
}

impl Node {
    /// Finds the value of a key, if this is a mapping that has it.
    pub(super) fn find(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Mapping(entries) => {
                entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
            }
            Value::Scalar(_) | Value::Sequence(_) | Value::Alias => None,
        }
    }

    /// Whether this is the word `none`, which takes an inherited value away. In quotes it is only a text.
    pub(super) fn is_none_word(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.plain && scalar.text == "none")
    }

    /// Names what is found here, for "expected x, found y"; never the value itself, since it may be a secret.
    pub(super) fn kind_name(&self) -> &'static str {
        match &self.value {
            Value::Mapping(_) => "a mapping",
            Value::Sequence(_) => "a list",
            Value::Alias => "an alias",
            Value::Scalar(scalar) => match scalar.kind() {
                Kind::Nothing => "nothing",
                Kind::Boolean => "true or false",
                Kind::Number => "a number",
                Kind::Text => "a text",
            },
        }
    }
}

/// The key whose value is a secret.
pub(super) const SECRET: &str = "password";

/// Deeper than any topology, and shallow enough to walk by recursion.
const DEEPEST: usize = 32;

/// Reads the one document of `text`; what is wrong with the YAML itself goes into `report`.
///
/// `None` if nothing can be made of it.
pub(super) fn read(text: &str, report: &mut Report) -> Option<Node> {
    let mut reader = Reader { open: Vec::new(), root: None, documents: 0, report };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => {
                if !reader.take(event, place(&span)) {
                    return None;
                }
            }
            Err(error) => {
                let at = Position { line: error.marker().line(), column: error.marker().col() + 1 };
                reader
                    .report
                    .add(at, format!("invalid YAML: {}", error.info()))
                    .hint("The file cannot be read further than this. Look at indentation, quotes and colons here and just before.");
                return None;
            }
        }
    }
    reader.root
}

fn place(span: &Span) -> Position {
    Position { line: span.start.line(), column: span.start.col() + 1 }
}

/// A collection that is still open.
enum Open {
    Sequence(Position, Vec<Node>),
    Mapping {
        at: Position,
        entries: Vec<Entry>,
        seen: HashMap<String, Position>,
        key: Key,
        /// Stands under the key of a secret, so that nothing in it may be shown.
        secret: bool,
    },
}

/// What an open mapping waits for.
enum Key {
    /// The next node is a key.
    Awaited,
    /// The next node is the value of this key.
    Read(String, Position),
    /// The next node is the value of a key that was refused.
    Refused,
}

struct Reader<'r> {
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    report: &'r mut Report,
}

impl Reader<'_> {
    /// Takes one event; `false` if reading has to end here.
    fn take(&mut self, event: Event<'_>, at: Position) -> bool {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.report
                        .add(at, "a second document in one file")
                        .detail("A topology is one YAML document; a line \"---\" begins another.")
                        .hint("Remove the line, or put the second document into a file of its own.");
                    return false;
                }
            }
            Event::Alias(_) => {
                // Below a merge key the merge key is the problem.
                if !matches!(self.open.last(), Some(Open::Mapping { key: Key::Refused, .. })) {
                    self.report
                        .add(at, "an alias (*name) is not allowed")
                        .detail("Every value of a topology stands where it is read, or in \"defaults\".")
                        .hint("Write the value here, or put what clusters share into \"defaults\".");
                }
                self.place(Node { at, value: Value::Alias });
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_properties(at, anchor, tag.is_some());
                if text.find("${").is_some_and(|begin| text[begin..].contains('}')) {
                    self.report
                        .add(at, "interpolation (${…}) is not allowed")
                        .detail("What stands in the file is what is used.")
                        .hint("Write the value itself; a secret is given as {env: NAME}, {file: PATH} or {command: [...]}.");
                }
                let plain = style == ScalarStyle::Plain;
                self.place(Node { at, value: Value::Scalar(Scalar { text: text.into_owned(), plain }) });
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_properties(at, anchor, tag.is_some());
                self.open.push(Open::Sequence(at, Vec::new()));
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_properties(at, anchor, tag.is_some());
                let secret = self.is_secret();
                self.open.push(Open::Mapping {
                    at,
                    entries: Vec::new(),
                    seen: HashMap::new(),
                    key: Key::Awaited,
                    secret,
                });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let node = match self.open.pop().expect("the parser closes only what it opened") {
                    Open::Sequence(at, items) => Node { at, value: Value::Sequence(items) },
                    Open::Mapping { at, entries, .. } => Node { at, value: Value::Mapping(entries) },
                };
                self.place(node);
            }
        }
        if self.open.len() > DEEPEST {
            self.report
                .add(at, format!("nested more than {DEEPEST} levels deep"))
                .hint("No key of a topology is so deep. Look for brackets that are not closed.");
            return false;
        }
        true
    }

    /// Whether the next node belongs to a secret.
    fn is_secret(&self) -> bool {
        match self.open.last() {
            Some(Open::Mapping { secret: true, .. }) => true,
            Some(Open::Mapping { key: Key::Read(name, _), .. }) => name == SECRET,
            Some(Open::Mapping { .. } | Open::Sequence(..)) | None => false,
        }
    }

    fn refuse_properties(&mut self, at: Position, anchor: usize, tagged: bool) {
        if anchor > 0 {
            self.report
                .add(at, "an anchor (&name) is not allowed")
                .detail("Every value of a topology stands where it is read, or in \"defaults\".")
                .hint("Remove the anchor; put what clusters share into \"defaults\".");
        }
        if tagged {
            self.report
                .add(at, "a tag (!name) is not allowed")
                .detail("What a value is follows from its key.")
                .hint("Remove the tag; put quotes around what must be a text.");
        }
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence(_, items)) => items.push(node),
            Some(Open::Mapping { entries, seen, key, secret, .. }) => {
                match std::mem::replace(key, Key::Awaited) {
                    Key::Awaited => *key = accept_key(node, seen, *secret, self.report),
                    Key::Read(name, at) => entries.push(Entry { key: name, at, value: node }),
                    Key::Refused => {}
                };
            }
        }
    }
}

fn accept_key(node: Node, seen: &mut HashMap<String, Position>, secret: bool, report: &mut Report) -> Key {
    let kind = node.kind_name();
    let scalar = match node.value {
        Value::Scalar(scalar) => scalar,
        Value::Alias => return Key::Refused,
        Value::Sequence(_) | Value::Mapping(_) => {
            report
                .add(node.at, format!("a key must be a text, found {kind}"))
                .hint("Write \"key: value\"; a text that begins with [ or { needs quotes.");
            return Key::Refused;
        }
    };
    if scalar.plain && scalar.text == "<<" {
        report
            .add(node.at, "a merge key (<<) is not allowed")
            .detail(
                "Clusters inherit from \"defaults\": mappings merge key by key, everything else is replaced.",
            )
            .hint("Put what clusters share into \"defaults\".");
        return Key::Refused;
    }
    match scalar.kind() {
        Kind::Text => {}
        Kind::Nothing | Kind::Boolean | Kind::Number => {
            report
                .add(node.at, format!("a key must be a text, found {kind}"))
                .hint("Put quotes around it if it is meant as a name.");
            return Key::Refused;
        }
    }
    if let Some(first) = seen.get(&scalar.text) {
        report
            .add(
                node.at,
                if secret {
                    "duplicate key".to_owned()
                } else {
                    format!("duplicate key \"{}\"", scalar.text)
                },
            )
            .detail(format!("It was given first at {first}."))
            .hint("Keep one of the two.");
        return Key::Refused;
    }
    seen.insert(scalar.text.clone(), node.at);
    Key::Read(scalar.text, node.at)
}
