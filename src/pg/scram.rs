//! SCRAM-SHA-256 verifiers as PostgreSQL stores them in `pg_authid`.
