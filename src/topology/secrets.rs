//! stub
use crate::secret::Secret; use crate::error::{Error,Result}; use super::model::SecretReference;
pub fn resolve(r:&SecretReference)->Result<Secret>{ match r { SecretReference::Env(v)=>std::env::var(v).map(Secret::new).map_err(|_|Error::failed(format!("{v} is not set"))), SecretReference::File(f)=>std::fs::read_to_string(f).map(|t|Secret::new(t.trim_end())).map_err(|e|Error::failed("x").source(e)), SecretReference::Command(_)=>Err(Error::failed("cmd")) } }
