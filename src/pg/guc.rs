//! Server settings: their spelling in postgresql.conf, and which of them a standby must match.
