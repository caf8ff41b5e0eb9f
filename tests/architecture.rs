//! Fails when an import breaks the house that `docs/architecture.md` describes.
//!
//! A floor imports only floors below it; rooms side by side do not import each other; rooms of a folder do not import each
//! other in a circle; what only one floor may touch (a terminal, processes, a server, a bucket) is named by no other.
//!
//! It reads tokens, not types: comments and strings are gone before it looks, `use` trees and aliases are followed within
//! a file. What a macro of another crate expands to is not seen. Nothing here runs or compiles the code that it reads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs;
use std::path::Path;

/// Every top-level module of `src/` and its floor. `main.rs` is the roof and `lib.rs` the list of modules: both see all.
const FLOORS: &[(&str, u8)] = &[
    ("cli", 7),
    ("commands", 6),
    ("ui", 5),
    ("ops", 4),
    ("engine", 3),
    ("host", 2),
    ("db", 2),
    ("repo", 2),
    ("net", 2),
    ("topology", 1),
    ("pg", 0),
    ("error", 0),
    ("secret", 0),
    ("tls", 0),
    ("units", 0),
    ("clock", 0),
    ("gate", 0),
];

/// The one import that goes up: a command's `run` receives what the command line's root has parsed.
const UPWARD: (&str, [&str; 2]) = ("commands", ["cli", "App"]);

/// What a folder below `ops/` may import of `ops/` outside itself. Files directly in `ops/` may import any room of it.
const SHARED_BY_OPS: &[&str] = &[
    "adopt",
    "binary",
    "builds",
    "certificate",
    "cluster_lock",
    "context",
    "node",
    "objects",
    "observe",
    "plan",
    "preflight",
    "pooler",
    "provision",
    "roles",
    "service",
    "shelf",
    "split",
    "starter",
];

/// Folders of `ops/` that are made of the other rooms, as the files directly in `ops/` are.
const MADE_OF_ROOMS: &[&str] = &[
    "drill",
    "failover",
    "fence",
    "guard",
    "health",
    "in_place",
    "rejoin",
    "restore",
    "schedule",
    "switchover",
];

/// Paths that only some places may name. A trailing `*` stands for the rest of a crate's name, or for a glob import.
struct Door {
    places: &'static [&'static str],
    paths: &'static [&'static str],
    why: &'static str,
}

const DOORS: &[Door] = &[
    Door { places: &["db"], paths: &["tokio_postgres*"], why: "db is the only door to a server" },
    Door {
        places: &["host"],
        paths: &["std::process::Command", "std::process::Child", "std::process::*", "tokio::process"],
        why: "host is the only door to processes",
    },
    Door {
        places: &["repo/s3"],
        paths: &["aws_sdk_s3", "aws_config"],
        why: "repo/s3 is the only door to a bucket",
    },
    Door {
        places: &["net"],
        paths: &["reqwest", "hyper*", "http_body_util"],
        why: "net is the only door to HTTP",
    },
    Door {
        places: &["repo/s3"],
        paths: &["aws_config", "aws_sdk_s3", "aws_smithy*"],
        why: "repo/s3 is the only door to S3",
    },
    Door {
        places: &["repo/crypt"],
        paths: &["aws_lc_rs"],
        why: "repo/crypt is the one place that encrypts what is stored",
    },
    Door { places: &["ui"], paths: &["comfy_table", "indicatif"], why: "only ui knows a terminal" },
    Door {
        places: &["ui", "main"],
        paths: &["std::io::stdout", "std::io::stderr"],
        why: "only ui knows a terminal",
    },
    Door { places: &["commands", "cli", "main"], paths: &["clap*"], why: "flags belong to commands" },
    Door {
        places: &["topology"],
        paths: &["minijinja", "saphyr*", "serde_saphyr", "yaml_serde", "serde_yaml"],
        why: "topology reads the YAML and renders the templates",
    },
];

/// Macros that write to the terminal; tests inside `src/` may use them too.
const PRINTING: &[&str] = &["print", "println", "eprint", "eprintln"];
const PRINTING_PLACES: &[&str] = &["ui", "main"];

/// What `pg/` may not name: it is pure, so that every one of its rules can be tested without a machine.
const IMPURE: &[&str] = &["std::fs", "std::net", "std::env", "std::process", "tokio", "tokio_postgres*"];

#[test]
fn the_house_stands() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    read_sources(&root, "", &mut files);
    assert!(files.len() > 2, "found no sources in {}", root.display());
    let violations = violations(&files);
    let report: String = violations.iter().map(|violation| format!("{violation}\n")).collect();
    assert!(violations.is_empty(), "{} broken in the house:\n\n{report}", violations.len());
}

fn read_sources(folder: &Path, prefix: &str, files: &mut Vec<Source>) {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("read {}: {error}", folder.display()))
        .map(|entry| entry.unwrap_or_else(|error| panic!("read {}: {error}", folder.display())).path())
        .collect();
    entries.sort();
    for path in entries {
        let name =
            path.file_name().and_then(|name| name.to_str()).expect("file names in src/ are UTF-8").to_owned();
        if path.is_dir() {
            read_sources(&path, &format!("{prefix}{name}/"), files);
        } else if name.ends_with(".rs") {
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
            files.push(Source { path: format!("{prefix}{name}"), text });
        }
    }
}

// ---- the rules ---------------------------------------------------------------------------------------------------------

/// A file below `src/`; `path` is relative to it.
struct Source {
    path: String,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: String,
    line: usize,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    place: Place,
    what: String,
    why: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}", self.file, self.line)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    {}", self.place, self.what, self.why)
    }
}

type Module = Vec<String>;

/// Which room imports which, and where, for each folder.
type Imports = BTreeMap<Module, BTreeMap<String, BTreeMap<String, Place>>>;

fn violations(files: &[Source]) -> Vec<Violation> {
    let known: BTreeSet<Module> =
        files.iter().flat_map(|file| with_parents(&module_of(&file.path))).collect();
    let mut found = BTreeSet::new();
    let mut imports = Imports::new();
    for file in files {
        let module = module_of(&file.path);
        if let Some(top) = module.first()
            && top != "main"
            && floor(top).is_none()
        {
            found.insert(Violation {
                place: Place { file: file.path.clone(), line: 1 },
                what: format!("module {top} has no floor"),
                why: "add it to FLOORS in tests/architecture.rs and to docs/architecture.md".to_owned(),
            });
        }
        check_file(file, &module, &known, &mut found, &mut imports);
    }
    for (folder, rooms) in &imports {
        check_circles(folder, rooms, &mut found);
    }
    found.into_iter().collect()
}

fn check_file(
    file: &Source,
    module: &Module,
    known: &BTreeSet<Module>,
    found: &mut BTreeSet<Violation>,
    imports: &mut Imports,
) {
    let is_test_file = module.last().is_some_and(|last| last == "tests");
    let scan = scan(&file.text, module);
    for path in &scan.paths {
        let place = Place { file: file.path.clone(), line: path.line };
        let what = format!("uses `{}`", path.segments.join("::"));
        if let Some(why) = broken_door(module, path, &scan.aliases) {
            found.insert(Violation { place: place.clone(), what: what.clone(), why });
        }
        let Some(target) = resolve(path, module) else {
            continue;
        };
        if let Some(why) = broken_floor(module, &target, known) {
            found.insert(Violation { place: place.clone(), what, why });
        }
        if !path.in_test && !is_test_file {
            note_import(module, &target, known, place, imports);
        }
    }
    for call in &scan.macros {
        if PRINTING.contains(&call.name.as_str())
            && !PRINTING_PLACES.contains(&module.first().map_or("", String::as_str))
            && !call.in_test
            && !is_test_file
        {
            found.insert(Violation {
                place: Place { file: file.path.clone(), line: call.line },
                what: format!("uses `{}!`", call.name),
                why: "only ui knows a terminal: return a value or emit an event instead".to_owned(),
            });
        }
    }
}

fn floor(top: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == top).map(|(_, floor)| *floor)
}

/// The module of a file: `pg/lsn.rs` is `pg::lsn`, `pg/mod.rs` is `pg`, `lib.rs` is the empty path.
fn module_of(path: &str) -> Module {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let stem = if stem == "lib" { "" } else { stem.strip_suffix("/mod").unwrap_or(stem) };
    stem.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
}

fn with_parents(module: &[String]) -> Vec<Module> {
    (1..=module.len()).map(|length| module[..length].to_vec()).collect()
}

/// Why `target` may not be imported by `module`, or nothing.
fn broken_floor(module: &Module, target: &[String], known: &BTreeSet<Module>) -> Option<String> {
    let from = module.first()?.as_str();
    if from == "main" {
        return None;
    }
    let Some(to) = target.first().map(String::as_str).filter(|to| *to != "*") else {
        return Some("this names the whole crate, which hides what is imported: name the module".to_owned());
    };
    let Some(to_floor) = floor(to) else {
        // A module without a floor is reported once, at its own file.
        return (!known.contains(&vec![to.to_owned()]))
            .then(|| format!("`crate::{to}` is no module with a floor: name the module that defines it"));
    };
    let from_floor = floor(from)?;
    if from == to {
        return if from == "ops" { broken_ops_folder(module, target, known) } else { None };
    }
    if from == UPWARD.0 && target.iter().take(2).eq(UPWARD.1.iter()) {
        return None;
    }
    match to_floor.cmp(&from_floor) {
        std::cmp::Ordering::Less => None,
        std::cmp::Ordering::Greater => Some(format!(
            "{from} (floor {from_floor}) may not import {to} (floor {to_floor}): a floor imports only floors below it"
        )),
        // The nouns of the ground floor may use each other, but not in a circle.
        std::cmp::Ordering::Equal if from_floor == 0 => None,
        std::cmp::Ordering::Equal => Some(format!(
            "{from} may not import {to}: both are on floor {from_floor}, and rooms side by side do not know each other"
        )),
    }
}

fn broken_ops_folder(module: &[String], target: &[String], known: &BTreeSet<Module>) -> Option<String> {
    let (own, other) = (module.get(1)?, target.get(1)?);
    let is_folder =
        |room: &String| known.iter().any(|path| path.len() > 2 && path[0] == "ops" && path[1] == *room);
    let is_room = known.contains(&target[..2]);
    let may_import = SHARED_BY_OPS.contains(&other.as_str()) || MADE_OF_ROOMS.contains(&own.as_str());
    (own != other && is_folder(own) && is_room && !may_import).then(|| {
        format!(
            "ops/{own} may not import ops::{other}: folders of ops share only {}",
            SHARED_BY_OPS.join(", ")
        )
    })
}

/// Why `module` may not name this path of another crate, or nothing.
fn broken_door(module: &Module, path: &UsedPath, aliases: &Aliases) -> Option<String> {
    let broken = |segments: &[String]| {
        let here = module.join("/");
        let at = |place: &&str| here == **place || here.starts_with(&format!("{place}/"));
        if at(&"pg")
            && let Some(impure) = IMPURE.iter().find(|impure| names(segments, impure))
        {
            return Some(format!("pg may not use {impure}: it is pure, without any I/O"));
        }
        DOORS.iter().filter(|door| !door.places.iter().any(at)).find_map(|door| {
            let path = door.paths.iter().find(|path| names(segments, path))?;
            Some(format!("only src/{} may use {path}: {}", door.places.join(", src/"), door.why))
        })
    };
    let expanded = expand(&path.segments, aliases);
    let why = broken(&expanded)?;
    // Where the import itself is broken it is reported there, and not again at each use of the imported name.
    let import = aliases.get(&path.segments[0]).filter(|_| !path.is_import);
    if import.is_some_and(|import| broken(&expand(import, aliases)).as_ref() == Some(&why)) {
        None
    } else {
        Some(why)
    }
}

/// Whether `segments` is `pattern` or lies below it.
fn names(segments: &[String], pattern: &str) -> bool {
    let mut segments = segments.iter();
    pattern.split("::").all(|wanted| {
        segments.next().is_some_and(|segment| match wanted.strip_suffix('*') {
            Some("") => segment == "*",
            Some(prefix) => segment.starts_with(prefix),
            None => segment == wanted,
        })
    })
}

/// Follows `use std::process;` into `process::Command`. A few rounds, since an alias may be named by another one.
fn expand(segments: &[String], aliases: &Aliases) -> Vec<String> {
    let mut path = segments.to_vec();
    for _ in 0..4 {
        match aliases.get(&path[0]) {
            Some(full) if full[0] != path[0] => path.splice(..1, full.iter().cloned()).for_each(drop),
            Some(_) | None => break,
        }
    }
    path
}

/// The path from the crate's root that `path` means, or nothing if it belongs to another crate or to this module.
fn resolve(path: &UsedPath, file_module: &Module) -> Option<Module> {
    let mut segments = path.segments.iter().map(String::as_str).peekable();
    let in_main = file_module.first().is_some_and(|top| top == "main");
    let mut resolved = match *segments.peek()? {
        "pgherd" => Vec::new(),
        // In the binary these name the binary itself, which has no floors.
        "crate" | "self" | "super" if in_main => return None,
        "crate" => Vec::new(),
        "self" | "super" => path.module.clone(),
        _ => return None,
    };
    while let Some(segment) = segments.peek() {
        match *segment {
            "super" => drop(resolved.pop()?),
            "crate" | "pgherd" | "self" => {}
            _ => break,
        }
        segments.next();
    }
    resolved.extend(segments.map(str::to_owned));
    Some(resolved)
}

fn note_import(
    module: &Module,
    target: &[String],
    known: &BTreeSet<Module>,
    place: Place,
    imports: &mut Imports,
) {
    let shared = module.iter().zip(target).take_while(|(own, other)| own == other).count();
    if shared >= module.len() || shared >= target.len() {
        return;
    }
    let (own, other) = (&module[..=shared], &target[..=shared]);
    // An item that the folder's own mod.rs defines is no room; between floors the direction is checked already.
    let ground_floor = |room: &[String]| floor(&room[0]) == Some(0);
    if !known.contains(other) || shared == 0 && !(ground_floor(own) && ground_floor(other)) {
        return;
    }
    let rooms = imports.entry(module[..shared].to_vec()).or_default();
    rooms.entry(own[shared].clone()).or_default().entry(other[shared].clone()).or_insert(place);
}

/// Reports the shortest circle through each room, once, at the room that comes first by name.
fn check_circles(
    folder: &Module,
    rooms: &BTreeMap<String, BTreeMap<String, Place>>,
    found: &mut BTreeSet<Violation>,
) {
    for start in rooms.keys() {
        let mut came_from: BTreeMap<&String, &String> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(room) = queue.pop_front() {
            for next in rooms.get(room).into_iter().flat_map(BTreeMap::keys) {
                if !came_from.contains_key(next) {
                    came_from.insert(next, room);
                    queue.push_back(next);
                }
            }
        }
        let mut circle = vec![start];
        let mut room = start;
        while let Some(before) = came_from.get(room) {
            circle.push(before);
            room = before;
            if room == start {
                break;
            }
        }
        if circle.len() < 2 || room != start || circle.iter().any(|room| *room < start) {
            continue;
        }
        circle.reverse();
        let steps: Vec<String> = circle
            .windows(2)
            .map(|pair| format!("{} imports {} at {}", pair[0], pair[1], rooms[pair[0]][pair[1]]))
            .collect();
        let inside = if folder.is_empty() { "src".to_owned() } else { format!("src/{}", folder.join("/")) };
        found.insert(Violation {
            place: rooms[circle[0]][circle[1]].clone(),
            what: format!("a circle of imports in {inside}: {}", steps.join(", ")),
            why: "rooms of a folder do not import each other in a circle: move what they share down"
                .to_owned(),
        });
    }
}

// ---- the scanner -------------------------------------------------------------------------------------------------------

type Aliases = BTreeMap<String, Vec<String>>;

#[derive(Debug)]
struct UsedPath {
    segments: Vec<String>,
    line: usize,
    /// The module that the path stands in, with the inline modules of the file.
    module: Module,
    is_import: bool,
    in_test: bool,
}

#[derive(Debug)]
struct MacroCall {
    name: String,
    line: usize,
    in_test: bool,
}

#[derive(Debug, Default)]
struct Scan {
    paths: Vec<UsedPath>,
    macros: Vec<MacroCall>,
    aliases: Aliases,
}

#[derive(Debug)]
struct Token {
    text: String,
    line: usize,
}

/// Words before which a path may begin with `::`, and which begin none themselves.
const KEYWORDS: &[&str] = &[
    "as", "async", "await", "break", "const", "continue", "dyn", "else", "enum", "extern", "fn", "for", "if",
    "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub", "ref", "return", "static", "struct",
    "trait", "type", "unsafe", "use", "where", "while", "yield",
];

impl Token {
    fn is_word(&self) -> bool {
        self.text.starts_with(|first: char| first.is_alphabetic() || first == '_')
    }

    fn begins_path(&self) -> bool {
        self.is_word() && !KEYWORDS.contains(&self.text.as_str())
    }
}

fn scan(source: &str, file_module: &Module) -> Scan {
    let tokens = tokens(source);
    let in_test = test_tokens(&tokens);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let before = |at: usize, back: usize| at.checked_sub(back).map_or("", text);
    let mut scan = Scan::default();
    let mut module = file_module.clone();
    let mut inline: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        match text(at) {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                    module.pop();
                }
            }
            "mod" if text(at + 2) == "{" => {
                module.push(text(at + 1).to_owned());
                inline.push(depth);
                at += 1;
            }
            word if tokens[at].begins_path() => {
                let is_import = before(at, 1) == "use" || (before(at, 1) == "::" && before(at, 2) == "use");
                let inside_path =
                    before(at, 1) == "." || (before(at, 1) == "::" && !opens_with_colons(&tokens, at));
                if text(at + 1) == "!" && text(at + 2) != "=" && before(at, 1) != "." {
                    scan.macros.push(MacroCall {
                        name: word.to_owned(),
                        line: tokens[at].line,
                        in_test: in_test[at],
                    });
                }
                let is_extern = before(at, 1) == "crate" && before(at, 2) == "extern";
                if is_import || is_extern || (!inside_path && text(at + 1) == "::") {
                    let mut leaves = Vec::new();
                    let end = read_tree(&tokens, at, &[], &mut leaves);
                    for leaf in leaves {
                        if is_import && leaf.name != "*" && leaf.name != "_" {
                            scan.aliases.insert(leaf.name, leaf.segments.clone());
                        }
                        scan.paths.push(UsedPath {
                            segments: leaf.segments,
                            line: leaf.line,
                            module: module.clone(),
                            is_import,
                            in_test: in_test[at],
                        });
                    }
                    if text(end) == "!" && !is_import {
                        let (name, line) = (text(end - 1).to_owned(), tokens[end - 1].line);
                        scan.macros.push(MacroCall { name, line, in_test: in_test[at] });
                    }
                    at = end;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    scan
}

/// Whether the `::` before the word at `at` begins a path (`&::std::fs`) and does not go on with one (`Vec::<T>::new`).
fn opens_with_colons(tokens: &[Token], at: usize) -> bool {
    at.checked_sub(2).is_none_or(|before| !tokens[before].begins_path() && tokens[before].text != ">")
}

struct Leaf {
    segments: Vec<String>,
    /// What an import calls it in this file.
    name: String,
    line: usize,
}

/// Reads `a::b::{c, d as e, self, f::*}` or a path in an expression; returns the index after it.
fn read_tree(tokens: &[Token], at: usize, prefix: &[String], leaves: &mut Vec<Leaf>) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut at = at;
    if text(at) == "{" {
        at += 1;
        while at < tokens.len() && text(at) != "}" {
            let next = read_tree(tokens, at, prefix, leaves);
            at = if next == at || text(next) == "," { next + 1 } else { next };
        }
        return at + 1;
    }
    if text(at) == "::" {
        at += 1;
    }
    let is_glob = text(at) == "*";
    if !is_glob && !tokens.get(at).is_some_and(Token::is_word) {
        return at;
    }
    let mut segments = prefix.to_vec();
    if text(at) != "self" || prefix.is_empty() {
        segments.push(text(at).to_owned());
    }
    let line = tokens[at].line;
    let continues = text(at + 1) == "::"
        && (matches!(text(at + 2), "{" | "*") || tokens.get(at + 2).is_some_and(Token::is_word));
    if continues && !is_glob {
        return read_tree(tokens, at + 2, &segments, leaves);
    }
    let renamed = text(at + 1) == "as" && tokens.get(at + 2).is_some_and(Token::is_word);
    let name = if renamed { text(at + 2).to_owned() } else { segments[segments.len() - 1].clone() };
    leaves.push(Leaf { segments, name, line });
    if renamed { at + 3 } else { at + 1 }
}

/// For each token, whether it belongs to an item under `#[test]` or `#[cfg(test)]`.
fn test_tokens(tokens: &[Token]) -> Vec<bool> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut marks = vec![false; tokens.len()];
    let mut at = 0;
    while at < tokens.len() {
        let inner = text(at) == "#" && text(at + 1) == "!" && text(at + 2) == "[";
        if !(inner || text(at) == "#" && text(at + 1) == "[") {
            at += 1;
            continue;
        }
        let open = if inner { at + 2 } else { at + 1 };
        let close = matching(tokens, open, "[", "]");
        if !is_test_attribute(&tokens[open + 1..close]) {
            at = close + 1;
            continue;
        }
        if inner {
            marks.fill(true);
            return marks;
        }
        let mut end = close + 1;
        while text(end) == "#" && text(end + 1) == "[" {
            end = matching(tokens, end + 1, "[", "]") + 1;
        }
        // A field or a variant ends at its parent's brace.
        while end < tokens.len() && !matches!(text(end), "{" | "}" | ";") {
            end = match text(end) {
                "(" => matching(tokens, end, "(", ")"),
                "[" => matching(tokens, end, "[", "]"),
                _ => end,
            } + 1;
        }
        if text(end) == "{" {
            end = matching(tokens, end, "{", "}");
        }
        let end = end.min(tokens.len() - 1);
        marks[at..=end].fill(true);
        at = end + 1;
    }
    marks
}

fn is_test_attribute(attribute: &[Token]) -> bool {
    let word = |wanted: &str| attribute.iter().any(|token| token.text == wanted);
    if attribute.first().is_some_and(|token| token.text == "cfg") {
        return word("test") && !word("not");
    }
    // `#[test]`, `#[tokio::test]`, `#[tokio::test(start_paused = true)]`
    attribute.iter().take_while(|token| token.text != "(").last().is_some_and(|token| token.text == "test")
}

/// The index of the bracket that closes the one at `open`, or of the last token.
fn matching(tokens: &[Token], open: usize, opening: &str, closing: &str) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        if token.text == opening {
            depth += 1;
        } else if token.text == closing {
            depth -= 1;
            if depth == 0 {
                return at;
            }
        }
    }
    tokens.len().saturating_sub(1)
}

/// Words, `::` and single marks with their lines. Comments and lifetimes are dropped; a literal is a `"` or a `0`.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let start = at;
        let mut text = String::new();
        match chars[at] {
            '/' if peek(at + 1) == '/' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if peek(at + 1) == '*' => at = after_block_comment(&chars, at),
            '"' => {
                at = after_string(&chars, at);
                text.push('"');
            }
            '\'' if peek(at + 1) == '\\' => {
                // The escaped character may itself be a quote.
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
                text.push('"');
            }
            '\'' if peek(at + 2) == '\'' => {
                at += 3;
                text.push('"');
            }
            '\'' => {
                at += 1;
                while is_word(peek(at)) {
                    at += 1;
                }
            }
            'r' if peek(at + 1) == '#' && (peek(at + 2).is_alphabetic() || peek(at + 2) == '_') => {
                at += 2;
                while is_word(peek(at)) {
                    text.push(chars[at]);
                    at += 1;
                }
            }
            first if first.is_alphabetic() || first == '_' => {
                while is_word(peek(at)) {
                    text.push(chars[at]);
                    at += 1;
                }
                let raw = matches!(text.as_str(), "r" | "br" | "cr");
                if raw && matches!(peek(at), '"' | '#') {
                    if let Some(end) = after_raw_string(&chars, at) {
                        at = end;
                        text = "\"".to_owned();
                    }
                } else if matches!(text.as_str(), "b" | "c") && peek(at) == '"' {
                    at = after_string(&chars, at);
                    text = "\"".to_owned();
                }
            }
            first if first.is_ascii_digit() => {
                while is_word(peek(at)) {
                    at += 1;
                }
                text.push('0');
            }
            ':' if peek(at + 1) == ':' => {
                at += 2;
                text.push_str("::");
            }
            other => {
                at += 1;
                if !other.is_whitespace() {
                    text.push(other);
                }
            }
        }
        if !text.is_empty() {
            tokens.push(Token { text, line });
        }
        let end = at.min(chars.len());
        line += chars[start..end].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn after_block_comment(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    break;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn after_string(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// `at` is the first `#` or quote after the `r`. Nothing if no string begins there.
fn after_raw_string(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return None;
    }
    let mut end = at + hashes + 1;
    while end < chars.len() {
        if chars[end] == '"' && chars[end + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
        {
            return Some(end + 1 + hashes);
        }
        end += 1;
    }
    Some(end)
}

// ---- the rules and the scanner, tested on small houses -----------------------------------------------------------------

/// The violations of a house of these files, as `file:line: what | why`.
fn broken(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<Source> = files
        .iter()
        .map(|(path, text)| Source { path: (*path).to_owned(), text: (*text).to_owned() })
        .collect();
    violations(&files)
        .iter()
        .map(|violation| format!("{}: {} | {}", violation.place, violation.what, violation.why))
        .collect()
}

#[track_caller]
fn assert_stands(files: &[(&str, &str)]) {
    assert_eq!(broken(files), Vec::<String>::new());
}

/// Exactly one violation, at `place`, whose words contain `needle`.
#[track_caller]
fn assert_broken(files: &[(&str, &str)], place: &str, needle: &str) {
    let found = broken(files);
    assert!(
        found.len() == 1 && found[0].starts_with(&format!("src/{place}: ")) && found[0].contains(needle),
        "expected one violation at src/{place} with {needle:?}, found {found:#?}"
    );
}

#[test]
fn imports_that_go_down_are_right() {
    assert_stands(&[
        ("lib.rs", "pub mod pg; pub mod ops;"),
        (
            "main.rs",
            "use pgherd::{cli::App, ui}; fn main() { println!(); std::process::exit(crate::run()); }",
        ),
        ("cli.rs", "use crate::commands::status::StatusArgs; use clap::Parser;"),
        ("commands/status.rs", "use crate::{cli::App, ops::observe, ui::{human, exit::Code}};"),
        ("ops/observe.rs", "use crate::host::Host; fn f() -> crate::pg::Lsn { crate::pg::Lsn::parse(\"\") }"),
        ("host/mod.rs", "pub(crate) mod local; pub(super) fn f() {} use std::process::Command;"),
        ("host/local.rs", "use super::Host; use crate::{error::Error, topology::model};"),
        (
            "pg/lsn.rs",
            "use crate::units::ByteCount; mod tests { use super::*; use super::super::timeline::T; }",
        ),
    ]);
}

#[test]
fn an_import_that_goes_up_is_caught() {
    assert_broken(
        &[("pg/lsn.rs", "//! Pure.\n\nuse crate::db::connect;\n")],
        "pg/lsn.rs:3",
        "pg (floor 0) may not import db (floor 2)",
    );
    assert_broken(
        &[("engine/step.rs", "fn f() { crate::ops::apply::run() }")],
        "engine/step.rs:1",
        "engine (floor 3) may not import ops (floor 4)",
    );
    assert_broken(
        &[("ops/apply.rs", "use crate::{\n    pg::Lsn,\n    ui::{human},\n};")],
        "ops/apply.rs:3",
        "`crate::ui::human`",
    );
}

#[test]
fn an_import_that_goes_up_is_caught_in_every_spelling() {
    for text in [
        "use super::super::ops::apply;",
        "use pgherd::ops;",
        "use ::pgherd::ops;",
        "use self::super::super::ops::apply as a;",
        "mod deep { use super::super::super::ops::apply; }",
        "#[cfg(test)] mod tests { use crate::ops::apply; }",
        "type T = Vec<crate::ops::apply::Plan>;",
        "impl crate::ops::Room for T {}",
        "macro_rules! m { () => { $crate::ops::apply() } }",
        "#[serde(with = \"x\")] struct S { a: &'static crate::ops::T }",
        "fn f<'a>(x: &'a crate::ops::T) -> char { 'x' }",
    ] {
        let found = broken(&[("host/local.rs", text)]);
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
    }
}

#[test]
fn the_whole_crate_is_not_imported() {
    assert_broken(&[("units.rs", "use super::*;")], "units.rs:1", "whole crate");
    assert_broken(&[("host/local.rs", "use super::super as root;")], "host/local.rs:1", "whole crate");
    assert_broken(&[("host/local.rs", "use crate::{self as root};")], "host/local.rs:1", "whole crate");
    assert_broken(&[("host/local.rs", "use crate as root;")], "host/local.rs:1", "whole crate");
    assert_broken(
        &[("host/local.rs", "use crate::Connection;")],
        "host/local.rs:1",
        "no module with a floor",
    );
}

#[test]
fn rooms_side_by_side_do_not_import_each_other() {
    assert_broken(
        &[("host/ssh.rs", "use crate::db::connect;")],
        "host/ssh.rs:1",
        "host may not import db: both are on floor 2",
    );
}

#[test]
fn commands_take_only_app_from_the_command_line() {
    assert_stands(&[("commands/plan.rs", "use crate::cli::App;"), ("cli.rs", "use crate::commands::plan;")]);
    assert_broken(
        &[("commands/plan.rs", "use crate::cli::{App, Other};")],
        "commands/plan.rs:1",
        "cli::Other",
    );
}

#[test]
fn folders_of_ops_share_only_what_is_listed() {
    let rooms =
        [("ops/restore/mod.rs", ""), ("ops/restore/files.rs", ""), ("ops/roles.rs", ""), ("ops/mod.rs", "")];
    let with = |text: &'static str| {
        let mut files = rooms.to_vec();
        files.push(("ops/backup/run.rs", text));
        files
    };
    assert_stands(&with(
        "use crate::ops::{Report, roles::Role}; use super::manifest; use crate::ops::backup::x;",
    ));
    assert_broken(
        &with("use super::super::restore::files;"),
        "ops/backup/run.rs:1",
        "ops/backup may not import ops::restore",
    );
}

#[test]
fn a_circle_on_the_ground_floor_is_caught() {
    assert_broken(
        &[
            ("units.rs", "use crate::pg::version::V;"),
            ("pg/version.rs", "use crate::error::Error;"),
            ("error.rs", "\nuse crate::units::ByteCount;"),
        ],
        "error.rs:2",
        "error imports units at src/error.rs:2, units imports pg at src/units.rs:1, pg imports error at src/pg/version.rs:1",
    );
}

#[test]
fn a_circle_inside_a_folder_is_caught() {
    let files = [
        ("engine/mod.rs", "pub struct Cx; pub mod journal; pub mod step;"),
        ("engine/journal.rs", "use super::step::Step; use super::Cx;"),
        ("engine/step.rs", "use crate::engine::journal::Record;"),
    ];
    assert_broken(&files, "engine/journal.rs:1", "a circle of imports in src/engine: journal imports step");
    assert_stands(&[
        files[0],
        files[1],
        ("engine/step.rs", "#[cfg(test)] mod tests { use crate::engine::journal::R; }"),
    ]);
}

#[test]
fn a_room_without_a_floor_is_caught() {
    assert_broken(
        &[("helpers/mod.rs", ""), ("ops/apply.rs", "use crate::helpers::h;")],
        "helpers/mod.rs:1",
        "module helpers has no floor",
    );
}

#[test]
fn a_crate_is_used_only_on_its_floor() {
    for (file, text) in [
        ("ops/apply.rs", "use tokio_postgres::Client;"),
        ("ops/apply.rs", "fn f(c: &::tokio_postgres::Client) {}"),
        ("host/local.rs", "use tokio_postgres_rustls::MakeRustlsConnect;"),
        ("ops/apply.rs", "use std::process::{Command, ExitCode};"),
        ("ops/apply.rs", "use std::process;\nfn f() { process::exit(1); process::Command::new(\"ls\"); }"),
        ("ops/apply.rs", "use std::{fs, process as p};\nfn f() { p::Command::new(\"ls\"); }"),
        ("ops/apply.rs", "use std::process::*;"),
        ("db/connect.rs", "async fn f() { tokio::process::Command::new(\"ls\"); }"),
        ("repo/dir.rs", "use aws_sdk_s3::Client;"),
        ("repo/s3.rs", "use reqwest::Client;"),
        ("commands/status.rs", "use comfy_table::Table;"),
        ("ops/apply.rs", "use indicatif::ProgressBar;"),
        ("ui/human.rs", "#[derive(clap::Args)] struct A;"),
        ("ui/human.rs", "extern crate clap;"),
        ("ops/pooler.rs", "use minijinja::Environment;"),
        ("ops/playbook.rs", "use saphyr_parser::Parser;"),
        ("ops/playbook.rs", "use serde_yaml as yaml;\nfn f() { yaml::from_str(); yaml::to_string(); }"),
        ("ops/apply.rs", "use std::io;\nfn f() { io::stdout(); }"),
        ("pg/lsn.rs", "use std::fs;"),
        ("pg/lsn.rs", "fn f() { std::env::var(\"PGDATA\"); }"),
        ("pg/lsn.rs", "use std::{fmt, net::IpAddr};"),
        ("pg/lsn.rs", "async fn f() { tokio::time::sleep(); }"),
    ] {
        let found = broken(&[(file, text)]);
        assert_eq!(found.len(), 1, "{file}: {text}: {found:#?}");
    }
    assert_stands(&[
        ("db/connect.rs", "use tokio_postgres::Client;"),
        ("host/local.rs", "use tokio::process::Command; use std::process::Stdio;"),
        ("repo/s3.rs", "use aws_sdk_s3::Client;"),
        ("repo/s3/client.rs", "use aws_sdk_s3::Client;"),
        ("net/http.rs", "use reqwest::Client;"),
        (
            "ui/human.rs",
            "use comfy_table::Table; use std::io::{self, stdout}; fn f() { println!(); io::stderr(); }",
        ),
        ("topology/load.rs", "use saphyr_parser::Parser; use serde_yaml::Value;"),
        ("ops/apply.rs", "use std::process::ExitCode; fn f(x: X) { x.clap(); x.process.command() }"),
        ("pg/lsn.rs", "use std::{fmt, io::Read as _}; fn f() -> &'static str { env!(\"CARGO_PKG_NAME\") }"),
    ]);
}

#[test]
fn only_ui_and_main_print_but_tests_may() {
    assert_broken(&[("ops/apply.rs", "fn f() {\n    println!(\"x\");\n}")], "ops/apply.rs:2", "println!");
    assert_broken(&[("ops/apply.rs", "fn f() { std::eprintln!(\"x\"); }")], "ops/apply.rs:1", "eprintln!");
    assert_stands(&[
        ("ops/apply.rs", "#[cfg(test)]\n#[allow(x)]\nmod tests {\n fn f() { { println!() } }\n}"),
        (
            "ops/plan.rs",
            "#[tokio::test(start_paused = true)]\nasync fn f() -> Result<(), E> { eprintln!(); }",
        ),
        ("ops/tests.rs", "fn f() { println!() }"),
        ("ops/roles.rs", "#[cfg(test)]\nfn f(x: [u8; 2]) { println!() }"),
    ]);
    assert_broken(
        &[("ops/apply.rs", "struct S {\n#[cfg(test)]\nx: u8 }\nfn f() { print!() }")],
        "ops/apply.rs:4",
        "print!",
    );
    assert_broken(
        &[(
            "ops/apply.rs",
            "#[cfg(not(test))]\nfn f() { print!() }\n#[cfg(test)]\nmod tests { fn g() { println!() } }",
        )],
        "ops/apply.rs:2",
        "print!",
    );
}

#[test]
fn comments_and_strings_are_not_code() {
    assert_stands(&[(
        "pg/lsn.rs",
        r###"//! See crate::db::connect.
/* crate::ops /* crate::ui */ crate::ops */
/// use crate::ops;
const A: &str = "crate::ops \" crate::ui \\";
const B: &str = r#"crate::ops " crate::ui"#;
const C: &[u8] = b"crate::ops"; const D: char = '"'; const E: char = '\''; const F: u8 = b'"';
const G: &[u8] = br##"crate::ops "# println!()"##;
fn r#type<'a>(x: &'a str) -> &'a str { x } // println!("crate::ops")
"###,
    )]);
    let after =
        "const A: char = '\\'';\nconst B: &str = \"\n\\\"\n\";\n/* \n */ fn f<'a>() { crate::db::x() }";
    assert_broken(&[("pg/lsn.rs", after)], "pg/lsn.rs:6", "crate::db::x");
}
