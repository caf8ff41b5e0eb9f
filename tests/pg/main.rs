//! Real servers, of every major version that is installed (`PGHERD_TEST_PG`, or /usr/lib/postgresql).

mod connect;
mod objects;
mod pooler;
mod queries;
mod server;
mod settings;
mod verifiers;
