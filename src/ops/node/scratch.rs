//! A directory in which a copy of a cluster lives for a while, and the child that ends it when nobody else can.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::record::Actor;

/// A scratch directory: who made it and for what. The same document is in the directory itself and in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scratch {
    pub format: u32,
    /// 8 hexadecimal digits.
    pub id: String,
    pub cluster: String,
    /// The host's name in the topology.
    pub host: String,
    pub directory: PathBuf,
    /// The programs that can stop its server.
    pub bin_directory: PathBuf,
    pub by: Actor,
}

impl Scratch {
    /// The name of the document in the directory.
    pub const MARKER: &'static str = "drill.json";

    /// Returns where its data directory is.
    pub fn data(&self) -> PathBuf {
        self.directory.join("c")
    }
}
