//! stub
use std::collections::BTreeMap;
use serde::{Serialize,Deserialize};
use crate::db::{Connector,Login};
use crate::error::Result;
use crate::secret::Secret;
use crate::topology::model::Cluster;
#[derive(Debug,Clone,PartialEq,Serialize,Deserialize)] pub enum Change{X}
impl Change { pub fn describe(&self)->String{String::new()} pub fn reason(&self)->String{String::new()} }
#[derive(Debug,Clone,Default)] pub struct ObjectsObserved;
#[derive(Debug)] pub struct World<'a>{pub connector:&'a Connector,pub login:Login,pub cluster:&'a Cluster,pub passwords:&'a BTreeMap<String,Secret>}
pub fn plan(_:&Cluster,_:&ObjectsObserved)->Vec<Change>{vec![]}
pub fn notes(_:&Cluster,_:&ObjectsObserved)->Vec<String>{vec![]}
pub async fn observe(_:&World<'_>)->Result<ObjectsObserved>{Ok(ObjectsObserved)}
pub async fn all_done(_:&World<'_>,_:&[Change])->Result<bool>{Ok(true)}
pub async fn apply(_:&World<'_>,_:&[Change])->Result<()>{Ok(())}
