//! What an operator asks for. Returns reports and emits events; prints nothing.
//!
//! `adopt`, `binary`, `builds`, `certificate`, `cluster_lock`, `context`, `node`, `observe`, `roles`, `plan`, `preflight`, `provision`, `service`, `starter`, `objects` and
//! `pooler` are what the other rooms are built of.

pub mod adopt;
pub mod apply;
pub mod backup;
pub mod binary;
pub mod builds;
pub mod certificate;
pub mod cluster_lock;
pub mod context;
pub mod copies;
pub mod destroy;
pub mod drill;
pub mod dump;
pub mod failover;
pub mod fence;
pub mod found;
pub mod guard;
pub mod health;
pub mod hold;
pub mod hook;
pub mod in_place;
pub mod kept;
pub mod maintenance;
pub mod node;
pub mod notify;
pub mod objects;
pub mod observe;
pub mod partition;
pub mod plan;
pub mod pooler;
pub mod preflight;
pub mod present;
pub mod provision;
pub mod rejoin;
pub mod rekey;
pub mod restore;
pub mod roles;
pub mod schedule;
pub mod service;
pub mod shelf;
pub mod split;
pub mod starter;
pub mod status;
pub mod succession;
pub mod switchover;
pub mod takeover;
pub mod wal;
