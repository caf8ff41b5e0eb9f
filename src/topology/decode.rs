//! Turns the tree of [`super::yaml`] into typed values, and goes on after each problem so that one run finds all of them.
//!
//! Checks what can be said of one value by itself: its kind, its unit, its words. What values mean together is `super::check`.
//! Messages name keys and kinds and never show a value that could be a secret.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::checks::{Measure, Report as Called};
use super::custom::On;
use super::jobs::Starter;
use super::model::{
    Addressing, BackupSource, Codec, DrillTarget, LockMode, PoolMode, PoolTarget, PoolerAuth, Promote,
    RestoreProof, SecretReference, Service, Sse, VaultReference,
};
use super::notices::Occasion;
use super::partitions::{DefaultPolicy, Every, Then};
use super::problem::{Position, Report, nearest};
use super::schedule::Schedule;
use super::yaml::{Entry, Kind, Node, Scalar, Value};
use crate::units::{ByteCount, UnitError, parse_duration};

/// Makes a value from a node; `None` after a problem was reported.
pub(super) trait Decode: Sized {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self>;
}

/// What decoding carries along: where we are, in words, and the problems so far.
pub(super) struct Cx<'r> {
    pub(super) report: &'r mut Report,
    path: Vec<String>,
}

impl<'r> Cx<'r> {
    pub(super) fn new(report: &'r mut Report) -> Self {
        Self { report, path: Vec::new() }
    }

    /// Returns where we are: `clusters.inventory.nodes.a`, or `the file` at the top.
    pub(super) fn path(&self) -> String {
        if self.path.is_empty() { "the file".to_owned() } else { self.path.join(".") }
    }

    /// Whether we are where `none` takes away what is inherited: anywhere in `defaults` or in a cluster.
    fn inherits(&self) -> bool {
        match self.path.first().map(String::as_str) {
            Some("defaults") => true,
            Some("clusters") => self.path.len() > 1,
            _ => false,
        }
    }

    pub(super) fn inside<T>(&mut self, part: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(part.to_owned());
        let result = work(self);
        self.path.pop();
        result
    }

    /// Reports that something else was expected here.
    fn expected(&mut self, node: &Node, what: &str) {
        if node.value == Value::Alias {
            return;
        }
        let (path, found) = (self.path(), node.kind_name());
        let problem = self.report.add(node.at, format!("{path} must be {what}, found {found}"));
        let quoted = matches!(&node.value, Value::Scalar(scalar) if !scalar.plain);
        if found == "nothing" {
            problem.hint("Give it a value, or remove the key. An empty mapping is written {}.");
        } else if quoted && what.contains("number") {
            problem.hint("Remove the quotes.");
        } else if what.contains("text") && (found == "a number" || found == "true or false") {
            problem.hint("Put quotes around it if it is meant as a text.");
        } else {
            problem.hint("\"pgherd schema\" prints what each key takes.");
        }
    }

    fn unit(&mut self, node: &Node, error: &UnitError) {
        let path = self.path();
        let problem = self.report.add(node.at, format!("{path}: {error}"));
        match error {
            UnitError::Missing(number, expected) => {
                let unit = if expected.contains("size") { "MiB" } else { "s" };
                problem.hint(format!("Write the unit, such as \"{number} {unit}\"."));
            }
            UnitError::AmbiguousM(_) => {
                problem.hint("Write \"min\" if minutes are meant.");
            }
            UnitError::Unknown(..) | UnitError::NotANumber(..) | UnitError::TooLarge(_) => {
                problem.hint("Write a whole number and a unit, such as \"64 MiB\" or \"30 s\".");
            }
        }
    }
}

/// A value with the place where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spanned<T> {
    pub(super) at: Position,
    pub(super) value: T,
}

impl<T: Decode> Decode for Spanned<T> {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        T::decode(node, cx).map(|value| Self { at: node.at, value })
    }
}

/// A mapping with names of the user's own choice, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Named<T>(pub(super) Vec<NamedEntry<T>>);

#[derive(Debug, Clone, PartialEq)]
pub(super) struct NamedEntry<T> {
    pub(super) name: String,
    /// The place of the name.
    pub(super) at: Position,
    pub(super) value: T,
}

impl<T> Named<T> {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|entry| entry.name.as_str())
    }
}

impl<T: Decode> Decode for Named<T> {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let entries = mapping(node, cx)?;
        let mut named = Vec::with_capacity(entries.len());
        for Entry { key, at, value } in entries {
            if cx.inherits() && value.is_none_word() {
                continue;
            }
            if let Some(value) = cx.inside(key, |cx| T::decode(value, cx)) {
                named.push(NamedEntry { name: key.clone(), at: *at, value });
            }
        }
        Some(Self(named))
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.value {
            Value::Sequence(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .filter_map(|(index, item)| cx.inside(&index.to_string(), |cx| T::decode(item, cx)))
                    .collect(),
            ),
            Value::Mapping(_) | Value::Scalar(_) | Value::Alias => {
                cx.expected(node, "a list such as [a, b]");
                None
            }
        }
    }
}

fn mapping<'n>(node: &'n Node, cx: &mut Cx<'_>) -> Option<&'n [Entry]> {
    match &node.value {
        Value::Mapping(entries) => Some(entries),
        Value::Sequence(_) | Value::Scalar(_) | Value::Alias => {
            cx.expected(node, "a mapping");
            None
        }
    }
}

fn scalar(node: &Node) -> Option<&Scalar> {
    match &node.value {
        Value::Scalar(scalar) => Some(scalar),
        Value::Sequence(_) | Value::Mapping(_) | Value::Alias => None,
    }
}

/// The keys of one mapping of the format, taken one by one; what is left over is unknown.
pub(super) struct Fields<'n> {
    entries: &'n [Entry],
    known: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    pub(super) fn open(node: &'n Node, cx: &mut Cx<'_>) -> Option<Self> {
        mapping(node, cx).map(|entries| Self { entries, known: Vec::new() })
    }

    /// Takes the value of `key` if it is there and has the right kind.
    pub(super) fn take<T: Decode>(mut self, key: &'static str, cx: &mut Cx<'_>) -> (Self, Option<T>) {
        self.known.push(key);
        let removed = |entry: &Entry| cx.inherits() && entry.value.is_none_word();
        let entry = self.entries.iter().find(|entry| entry.key == key).filter(|entry| !removed(entry));
        let value = entry.and_then(|entry| cx.inside(key, |cx| T::decode(&entry.value, cx)));
        (self, value)
    }

    /// Reports every key that was not taken.
    pub(super) fn close(self, cx: &mut Cx<'_>) {
        for Entry { key, at, value } in self.entries {
            if !self.known.contains(&key.as_str()) {
                let path = cx.path();
                super::foreign::report_unknown_key(cx.report, *at, &path, key, value, &self.known);
            }
        }
    }
}

/// Makes a struct of optional keys with its decoder and its schema from one list, so that the two cannot differ.
macro_rules! record {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $field:ident: $type:ty = $key:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, PartialEq, schemars::JsonSchema)]
        #[schemars(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$inner])* #[schemars(rename = $key)] pub(super) $field: Option<$crate::topology::decode::Spanned<$type>>,)*
        }

        impl $crate::topology::decode::Decode for $name {
            fn decode(node: &$crate::topology::yaml::Node, cx: &mut $crate::topology::decode::Cx<'_>) -> Option<Self> {
                let fields = $crate::topology::decode::Fields::open(node, cx)?;
                $(let (fields, $field) = fields.take($key, cx);)*
                fields.close(cx);
                Some(Self { $($field,)* })
            }
        }
    };
}
pub(super) use record;

/// A text: a name or a path.
pub(super) type Text = String;

impl Decode for String {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match scalar(node) {
            Some(scalar) if scalar.kind() == Kind::Text && !scalar.text.is_empty() => {
                Some(scalar.text.clone())
            }
            _ => {
                cx.expected(node, "a text");
                None
            }
        }
    }
}

/// A whole number from 0 up.
pub(super) type Count = u32;

impl Decode for u32 {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let number = scalar(node)
            .filter(|scalar| scalar.kind() == Kind::Number && scalar.text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|scalar| scalar.text.parse().ok());
        if number.is_none() {
            cx.expected(node, "a whole number");
        }
        number
    }
}

/// A TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Port(pub(super) u16);

impl Decode for Port {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let number: u32 = u32::decode(node, cx)?;
        match u16::try_from(number) {
            Ok(port @ 1024..) => Some(Self(port)),
            _ => {
                let path = cx.path();
                cx.report
                    .add(node.at, format!("{path} must be a port from 1024 to 65535, found {number}"))
                    .hint("Ports below 1024 need root, which PostgreSQL refuses.");
                None
            }
        }
    }
}

/// A major version of PostgreSQL, written alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Major(pub(super) u32);

impl Decode for Major {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        use crate::pg::version::{NEWEST_MAJOR, OLDEST_MAJOR};
        let Some(scalar) = scalar(node).filter(|scalar| !scalar.text.is_empty()) else {
            cx.expected(node, "a major version such as 18");
            return None;
        };
        match scalar.text.parse::<u32>() {
            Ok(major) if !scalar.plain && (OLDEST_MAJOR..=NEWEST_MAJOR).contains(&major) => {
                cx.expected(node, "a number");
                None
            }
            Ok(major @ OLDEST_MAJOR..=NEWEST_MAJOR) => Some(Self(major)),
            other => {
                let problem =
                    cx.report.add(node.at, format!("unsupported PostgreSQL version \"{}\"", scalar.text));
                problem.detail(format!("pgherd runs PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR}."));
                let major = scalar.text.split('.').next().and_then(|text| text.parse::<u32>().ok());
                match (other, major) {
                    (Err(_), Some(major @ OLDEST_MAJOR..=NEWEST_MAJOR)) => {
                        problem.hint(format!(
                            "Write the major version alone: \"version: {major}\". Which minor version runs is up to the packages of each host."
                        ));
                    }
                    _ => {
                        problem
                            .hint(format!("Write one of them, such as \"version: {}\".", NEWEST_MAJOR - 1));
                    }
                }
                None
            }
        }
    }
}

impl Decode for ByteCount {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        quantity(node, cx, "a size such as 64 MiB", Self::parse)
    }
}

impl Decode for Duration {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        quantity(node, cx, "a time such as 30 s", parse_duration)
    }
}

fn quantity<T>(
    node: &Node,
    cx: &mut Cx<'_>,
    expected: &str,
    parse: fn(&str) -> Result<T, UnitError>,
) -> Option<T> {
    match scalar(node) {
        Some(scalar) if matches!(scalar.kind(), Kind::Text | Kind::Number) => match parse(&scalar.text) {
            Ok(value) => Some(value),
            Err(error) => {
                cx.unit(node, &error);
                None
            }
        },
        _ => {
            cx.expected(node, expected);
            None
        }
    }
}

/// A share in whole percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Percent(pub(super) u32);

impl Decode for Percent {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let number = scalar(node)
            .filter(|scalar| scalar.kind() == Kind::Text)
            .and_then(|scalar| scalar.text.strip_suffix('%'))
            .map(str::trim_end)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let share = number.and_then(|digits| digits.parse().ok()).map(Self);
        if share.is_none() {
            cx.expected(node, "a share such as 20 %");
        }
        share
    }
}

impl Decode for Schedule {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Some(scalar) = scalar(node).filter(|scalar| scalar.kind() == Kind::Text) else {
            cx.expected(node, "a schedule such as \"daily 02:00\"");
            return None;
        };
        match Self::parse(&scalar.text) {
            Ok(schedule) => Some(schedule),
            Err(error) => {
                let path = cx.path();
                cx.report.add(node.at, format!("{path}: {error}")).hint(error.hint);
                None
            }
        }
    }
}

/// The value of a server setting as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SettingText(pub(super) String);

impl Decode for SettingText {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match scalar(node) {
            Some(scalar) if scalar.kind() != Kind::Nothing => Some(Self(scalar.text.clone())),
            _ => {
                cx.expected(node, "one value, as in postgresql.conf");
                None
            }
        }
    }
}

/// How a host is reached, as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Address {
    /// `local`: this machine.
    Local,
    /// An address alone: by ssh.
    Plain(String),
    Place(HostPlace),
}

record! {
    /// A host that takes more words than its address.
    HostPlace {
        /// What its peers reach it by: an IP address.
        address: Text = "address",
        /// "local": it is this machine; "ssh" if it is not said.
        via: Via = "via",
        /// Who logs in by ssh.
        user: Text = "user",
        /// Port of its sshd.
        port: Count = "port",
    }
}

/// A program that is to be run, as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum HookWish {
    /// An argv alone.
    Argv(Vec<String>),
    Whole(Box<HookKeys>),
}

record! {
    /// A hook that takes more words than its argv.
    HookKeys {
        /// The program by its path, and its arguments; no shell sees them. A relative path counts from the topology.
        run: Vec<String> = "run",
        /// After this long the program and what it has started are killed, and it has failed; 30 s if it is not said.
        #[schemars(schema_with = "duration_schema")]
        timeout: Duration = "timeout",
        /// Where it runs: "station" (the default), "old-primary", "new-primary", or a host of the cluster.
        on: Text = "on",
    }
}

impl Decode for HookWish {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.value {
            Value::Mapping(_) => HookKeys::decode(node, cx).map(|keys| Self::Whole(Box::new(keys))),
            Value::Sequence(_) => Vec::<String>::decode(node, cx).map(Self::Argv),
            Value::Scalar(_) | Value::Alias => {
                cx.expected(node, "an argv such as [/PATH/PROGRAM, ARGUMENT], or a mapping with \"run\"");
                None
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Local,
    Ssh,
}

impl Decode for Address {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        if let Value::Mapping(_) = &node.value {
            return HostPlace::decode(node, cx).map(Self::Place);
        }
        let text = String::decode(node, cx)?;
        if text == "local" {
            return Some(Self::Local);
        }
        let path = cx.path();
        if super::foreign::report_managed_host(cx.report, node.at, &path, &text) {
            return None;
        }
        Some(Self::Plain(text))
    }
}

/// A closed set of words.
fn word<T: Copy>(node: &Node, cx: &mut Cx<'_>, words: &[(&str, T)]) -> Option<T> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let listed = names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ");
    let Some(scalar) = scalar(node).filter(|scalar| scalar.kind() == Kind::Text) else {
        cx.expected(node, &listed);
        return None;
    };
    let found = words.iter().find(|(name, _)| *name == scalar.text).map(|(_, value)| *value);
    if found.is_none() {
        let path = cx.path();
        let problem = cx.report.add(node.at, format!("{path} must be {listed}, found \"{}\"", scalar.text));
        match nearest(&scalar.text, &names) {
            Some(near) => problem.hint(format!("Did you mean \"{near}\"?")),
            None => problem.hint(format!("Write {listed}.")),
        };
    }
    found
}

fn words_schema(words: &[&str]) -> Schema {
    json_schema!({"type": "string", "enum": words})
}

/// Gives a closed set of words its decoder and its schema.
macro_rules! words {
    ($type:ty { $($name:literal => $value:expr),+ }) => {
        impl Decode for $type {
            fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
                word(node, cx, &[$(($name, $value)),+])
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                words_schema(&[$($name),+])
            }
        }
    };
}

/// `primary`: the only thing to prefer, and the only thing to fall back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ThePrimary;

/// `copy`: the only thing that can be done with grants besides nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CopyGrants;

words!(CopyGrants { "copy" => CopyGrants });
words!(Every { "day" => Every::Day, "week" => Every::Week, "month" => Every::Month, "quarter" => Every::Quarter, "year" => Every::Year });
words!(Then { "detach" => Then::Detach, "drop" => Then::Drop, "export and drop" => Then::ExportAndDrop });
words!(DefaultPolicy { "leave" => DefaultPolicy::Leave, "create" => DefaultPolicy::Create, "refuse" => DefaultPolicy::Refuse });
words!(Via { "local" => Via::Local, "ssh" => Via::Ssh });
words!(ThePrimary { "primary" => ThePrimary });
words!(Service { "pg_ctl" => Service::PgCtl, "systemd" => Service::Systemd, "debian" => Service::Debian });
words!(Starter { "cron" => Starter::Cron, "systemd" => Starter::Systemd });
words!(Promote { "automatic" => Promote::Automatic, "by-hand" => Promote::ByHand });
words!(PoolMode { "transaction" => PoolMode::Transaction, "session" => PoolMode::Session, "statement" => PoolMode::Statement });
words!(PoolerAuth { "userlist" => PoolerAuth::Userlist, "query" => PoolerAuth::Query });
words!(BackupSource { "standby" => BackupSource::Standby, "primary" => BackupSource::Primary });
words!(Codec { "zstd" => Codec::Zstd, "lz4" => Codec::Lz4, "off" => Codec::None });
words!(DrillTarget { "newest" => DrillTarget::Newest, "random-second" => DrillTarget::RandomSecond });
words!(RestoreProof { "checksums" => RestoreProof::Checksums, "amcheck" => RestoreProof::Amcheck, "assertions" => RestoreProof::Assertions });
words!(Measure { "share" => Measure::Share, "time" => Measure::Time, "size" => Measure::Size, "count" => Measure::Count });
words!(On { "primary" => On::Primary, "standbys" => On::Standbys, "all" => On::All });
words!(Called { "critical" => Called::Critical, "warning" => Called::Warning, "never" => Called::Never });
words!(Occasion { "started" => Occasion::Started, "done" => Occasion::Done, "stuck" => Occasion::Stuck });
words!(Addressing { "path" => Addressing::Path, "host" => Addressing::Host });
words!(LockMode { "compliance" => LockMode::Compliance, "governance" => LockMode::Governance });
words!(Sse { "AES256" => Sse::Aes256, "aws:kms" => Sse::Kms, "aws:kms:dsse" => Sse::KmsDsse });
words!(PoolTarget { "primary" => PoolTarget::Primary, "standbys" => PoolTarget::Standbys });

record! {
    /// A field of a secret in a HashiCorp Vault.
    Vault {
        /// Its address, as "https://HOST:PORT"; without TLS only on this machine.
        url: Text = "url",
        /// The path of the API after "/v1/": secret/data/NAME in version 2 of the store, secret/NAME in version 1.
        path: Text = "path",
        /// The field of the secret.
        field: Text = "field",
        /// Where the token is that opens it: env, file or command.
        token: VaultToken = "token",
        /// Its namespace, where it has them.
        namespace: Text = "namespace",
        /// The authorities that are believed, in PEM; the system's if it is not said.
        ca: VaultAuthorities = "ca",
    }
}

record! {
    /// A file of this machine.
    VaultAuthorities {
        /// Its path; a relative one counts from the topology.
        file: Text = "file",
    }
}

/// A reference to a secret that is not itself in a Vault.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct VaultToken(SecretReference);

impl Decode for VaultToken {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        if node.find("vault").is_some() {
            let path = cx.path();
            cx.report
                .add(node.at, format!("{path} is in a Vault itself"))
                .hint("Write {env: NAME}, {file: PATH} or {command: [PROGRAM, ARGUMENT]}.");
            return None;
        }
        SecretReference::decode(node, cx).map(Self)
    }
}

impl Vault {
    /// Makes the reference, if all is there.
    fn reference(self, node: &Node, cx: &mut Cx<'_>) -> Option<SecretReference> {
        let (at, path) = (node.at, cx.path());
        let required = [
            ("url", "https://vault.example:8200"),
            ("path", "secret/data/NAME"),
            ("field", "password"),
            ("token", "{env: VAULT_TOKEN}"),
        ];
        // One that is there and wrong was told already.
        for (key, example) in required.iter().filter(|(key, _)| node.find(key).is_none()) {
            cx.report.add(at, format!("{path} has no \"{key}\"")).hint(format!("Add it: {key}: {example}."));
        }
        let (url, secret, field, token) = (self.url?, self.path?, self.field?, self.token?);
        let rest = url.value.strip_prefix("https://").or_else(|| {
            let rest = url.value.strip_prefix("http://")?;
            let here = ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
                rest.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
            });
            here.then_some(rest)
        });
        // A name and a password in front of the host would be shown with it.
        let whole = rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '?', '#', ' ']));
        if !whole {
            cx.report
                .add(url.at, format!("{path}.url must be https://HOST:PORT"))
                .detail("Without TLS the token would be read on the way; http is taken at this machine's loopback address alone. What was found is not shown.")
                .hint("Write url: https://vault.example:8200.");
        }
        let odd = |part: &str| part.is_empty() || part == "." || part == "..";
        if secret.value.split('/').any(odd) {
            cx.report
                .add(secret.at, format!("{path}.path must be names with \"/\" between them"))
                .hint("Write it as the API has it, after /v1/: secret/data/NAME.");
            return None;
        }
        if self.ca.as_ref().is_some_and(|ca| ca.value.file.is_none()) {
            cx.report.add(at, format!("{path}.ca has no \"file\"")).hint("Add it: file: vault-ca.pem.");
            return None;
        }
        whole.then(|| {
            SecretReference::Vault(Box::new(VaultReference {
                url: url.value,
                path: secret.value,
                field: field.value,
                token: token.value.0,
                namespace: self.namespace.map(|namespace| namespace.value),
                ca: self.ca.and_then(|ca| ca.value.file).map(|file| PathBuf::from(file.value)),
            }))
        })
    }
}

impl Decode for SecretReference {
    /// Takes `{env: NAME}`, `{file: PATH}`, `{command: [PROGRAM, ARGUMENT, ...]}` or `{vault: {...}}`. Nothing that stands here is ever shown.
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        const HINT: &str =
            "Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}.";
        let path = cx.path();
        let Value::Mapping(entries) = &node.value else {
            if node.value == Value::Alias {
                return None;
            }
            cx.report
                .add(node.at, format!("{path} is a secret given as text"))
                .detail("The file says where a secret is and never what it is. The value is not shown here.")
                .hint(HINT);
            return None;
        };
        let [Entry { key, at, value }] = entries.as_slice() else {
            cx.report
                .add(node.at, format!("{path} must have exactly one of env, file, command and vault"))
                .hint(HINT);
            return None;
        };
        match key.as_str() {
            "env" => cx.inside(key, |cx| {
                let name = String::decode(value, cx)?;
                let valid = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                    && !name.starts_with(|c: char| c.is_ascii_digit());
                if !valid {
                    let path = cx.path();
                    cx.report
                        .add(value.at, format!("{path} is not the name of an environment variable"))
                        .detail("A name has letters, digits and underscores. What was found is not shown, since it may be a secret.")
                        .hint(HINT);
                }
                valid.then_some(Self::Env(name))
            }),
            "file" => cx.inside(key, |cx| {
                let file = String::decode(value, cx)?;
                if file.starts_with('~') {
                    let path = cx.path();
                    cx.report
                        .add(value.at, format!("{path} begins with \"~\", which only a shell knows"))
                        .hint("Write the whole path; a relative one counts from the topology file.");
                    return None;
                }
                Some(Self::File(PathBuf::from(file)))
            }),
            "command" => {
                let argv = cx.inside(key, |cx| Vec::<String>::decode(value, cx))?;
                if argv.is_empty() {
                    cx.report.add(value.at, format!("{path}.command names no program")).hint(HINT);
                    return None;
                }
                Some(Self::Command(argv))
            }
            "vault" => cx.inside(key, |cx| Vault::decode(value, cx)?.reference(value, cx)),
            _ => {
                cx.report
                    .add(*at, format!("unknown key in {path}"))
                    .detail("A secret has env, file, command or vault. What was found is not shown, since it may be a secret.")
                    .hint(HINT);
                None
            }
        }
    }
}

/// The word "own", or a mapping that says what is used in place of pgherd's own.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum OwnOr<T> {
    Own,
    Given(T),
}

impl<T: Decode> Decode for OwnOr<T> {
    fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.value {
            Value::Mapping(_) => T::decode(node, cx).map(Self::Given),
            Value::Scalar(_) | Value::Sequence(_) | Value::Alias => {
                word(node, cx, &[("own", ())]).map(|()| Self::Own)
            }
        }
    }
}

/// Gives a type the schema `$schema`, written where it is used.
macro_rules! inline_schema {
    ($($type:ty => $schema:expr;)+) => {
        $(impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        })+
    };
}

inline_schema! {
    Port => json_schema!({"type": "integer", "minimum": 1024, "maximum": 65535});
    Major => json_schema!({
        "type": "integer",
        "minimum": crate::pg::version::OLDEST_MAJOR,
        "maximum": crate::pg::version::NEWEST_MAJOR,
    });
    Percent => json_schema!({"type": "string", "pattern": "^[0-9]+ *%$"});
    Schedule => json_schema!({
        "type": "string",
        "pattern": "^ *(every +[0-9]+ *(min|h)|(daily|weekly +(Mon|Tue|Wed|Thu|Fri|Sat|Sun)|(monthly|quarterly) +([1-9]|1[0-9]|2[0-8])) +([01][0-9]|2[0-3]):[0-5][0-9]) *$",
    });
    ByteCount => json_schema!({"type": "string", "pattern": "^[0-9]+ *(B|KiB|MiB|GiB|TiB)$"});
    SettingText => json_schema!({"type": ["string", "number", "boolean"]});
    Address => json_schema!({
        "description": "\"local\" for this machine; an IP address that is reached by ssh; or an address with how it is reached.",
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "address": {"type": "string", "description": "What its peers reach it by: an IP address."},
                    "via": {"enum": ["local", "ssh"], "description": "\"local\": it is this machine; \"ssh\" if it is not said."},
                    "user": {"type": "string", "description": "Who logs in by ssh."},
                    "port": {"type": "integer", "minimum": 1, "maximum": 65535, "description": "Port of its sshd."},
                },
                "required": ["address"],
                "additionalProperties": false,
            },
            {"type": "string"},
        ],
    });
    VaultToken => token_schema();
}

/// The three kinds of references that need nobody else.
fn token_schema() -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "env": {"type": "string", "description": "Name of an environment variable."},
            "file": {"type": "string", "description": "A file that only its owner can read; a relative path counts from the topology."},
            "command": {
                "type": "array",
                "items": {"type": "string"},
                "minItems": 1,
                "description": "A program and its arguments; what it prints is the secret.",
            },
        },
        "additionalProperties": false,
        "minProperties": 1,
        "maxProperties": 1,
    })
}

impl JsonSchema for SecretReference {
    fn schema_name() -> Cow<'static, str> {
        "SecretReference".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = token_schema();
        let vault = generator.subschema_for::<Vault>();
        if let Some(properties) = schema.get_mut("properties").and_then(|found| found.as_object_mut()) {
            properties.insert("vault".to_owned(), vault.to_value());
        }
        schema
    }
}

/// A span of time in the schema; the value itself is a [`Duration`].
pub(super) fn duration_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^[0-9]+ *(ms|s|min|h|d|day|days)$"})
}

/// A span of the calendar in the schema.
pub(super) fn calendar_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^[0-9]+ *(day|days|week|weeks|month|months|quarter|quarters|year|years)$"})
}

impl JsonSchema for HookWish {
    fn schema_name() -> Cow<'static, str> {
        "Hook".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let keys = generator.subschema_for::<HookKeys>();
        let argv = json_schema!({
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "description": "The program by its path, and its arguments.",
        });
        json_schema!({"anyOf": [keys, argv]})
    }
}

impl<T: JsonSchema> JsonSchema for OwnOr<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let given = generator.subschema_for::<T>();
        json_schema!({"anyOf": [given, {"enum": ["own"]}]})
    }
}

impl<T: JsonSchema> JsonSchema for Spanned<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn schema_name() -> Cow<'static, str> {
        BTreeMap::<String, T>::schema_name()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, T>::json_schema(generator)
    }
}
