//! A PostgreSQL server: connecting, asking and telling. The only room that uses tokio-postgres, and the only one with SQL.
//!
//! Hands out typed rows. Decides nothing: it does not know the topology and never compares with it.

pub mod assertion;
pub mod backup;
pub mod commits;
pub mod connect;
pub mod custom;
pub mod health;
pub mod logins;
pub mod look;
pub mod maintenance;
pub mod objects;
pub mod partition;
pub mod pooler;
pub mod promotion;
pub mod queries;
pub mod recovery;
mod tls;

pub use tls::Identity;

pub use connect::{
    Conn, Connector, DbError, Endpoint, Login, NodeConn, PrimaryConn, Session, StandbyConn, classify,
};
