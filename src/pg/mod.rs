//! PostgreSQL's own nouns: pure values and formats that PostgreSQL defines. No I/O, no clock, no pgherd terms.

pub mod backup_manifest;
pub mod control_bytes;
pub mod control_file;
pub mod data_directory;
pub mod guc;
pub mod guc_units;
pub mod history;
pub mod ident;
pub mod lsn;
pub mod page;
pub mod scram;
pub mod synchronous;
pub mod system;
pub mod timeline;
pub mod version;
pub mod wal_file;
pub mod wal_header;
pub mod wal_record;
