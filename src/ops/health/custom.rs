//! What the checks are answered that the topology declares.

use futures_util::future::join_all;

use super::asked::{Asked, Why};
use crate::db::custom::{self as ask, Column, NoAnswer};
use crate::ops::observe::{ClusterObserved, Doors, PATIENCE};
use crate::ops::roles::Lead;
use crate::pg::ident::quote_identifier;
use crate::topology::custom::{CustomCheck, On};
use crate::topology::model::{Cluster, Node};

/// What one node answered to one check.
#[derive(Debug, Clone, PartialEq)]
pub struct CustomSeen {
    /// The name of the check.
    pub check: String,
    /// `None` where the primary is to be asked and nobody knows who that is.
    pub node: Option<String>,
    pub told: Asked<Vec<Column>>,
}

/// Asks every declared check, side by side.
pub(super) async fn look(
    doors: &Doors,
    cluster: &Cluster,
    observed: &ClusterObserved,
    lead: &Lead,
) -> Vec<CustomSeen> {
    let asked = cluster.checks.iter().flat_map(|check| {
        let nodes = whom(cluster, lead, check.on);
        let unknown = nodes.is_empty() && check.on == On::Primary;
        let none = unknown.then(|| CustomSeen {
            check: check.name.clone(),
            node: None,
            told: Err(Why::Failed("the primary is not known".to_owned())),
        });
        let each = nodes.into_iter().map(move |node| async move {
            let up = observed.node(&node.name).is_some_and(|seen| seen.running().is_some());
            let told = if up { one(doors, cluster, node, check).await } else { Err(Why::NotUp) };
            CustomSeen { check: check.name.clone(), node: Some(node.name.clone()), told }
        });
        let none = none.into_iter().map(|seen| futures_util::future::Either::Left(std::future::ready(seen)));
        none.chain(each.map(futures_util::future::Either::Right))
    });
    join_all(asked).await
}

fn whom<'a>(cluster: &'a Cluster, lead: &Lead, on: On) -> Vec<&'a Node> {
    let primary = match lead {
        Lead::Primary(name) => cluster.node(name),
        Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => None,
    };
    match on {
        On::Primary => primary.into_iter().collect(),
        On::Standbys => cluster
            .nodes
            .iter()
            .filter(|node| primary.is_none_or(|primary| primary.name != node.name))
            .collect(),
        On::All => cluster.nodes.iter().collect(),
    }
}

async fn one(doors: &Doors, cluster: &Cluster, node: &Node, check: &CustomCheck) -> Asked<Vec<Column>> {
    let connector = doors.connector.clone().timeouts(PATIENCE, check.timeout);
    let login = doors.superuser(cluster, node, &check.database);
    let not_granted = |grant: String| {
        let role = quote_identifier(&login.user);
        Why::NotGranted { role: login.user.clone(), grant: grant.replace("{role}", &role) }
    };
    let conn = match connector.connect(&login).await {
        Ok(conn) => conn,
        Err(error) if error.is_state(INSUFFICIENT_PRIVILEGE) => {
            let database = quote_identifier(&check.database);
            return Err(not_granted(format!("GRANT CONNECT ON DATABASE {database} TO {{role}}")));
        }
        Err(error) => return Err(Why::Failed(error.to_string())),
    };
    match ask::row(&conn, &check.sql).await {
        Ok(Ok(columns)) => Ok(columns),
        Ok(Err(NoAnswer::NotGranted)) => Err(not_granted(ask::GRANT.to_owned())),
        Ok(Err(NoAnswer::Said(why))) => Err(Why::Failed(why)),
        Err(error) => Err(Why::Failed(error.to_string())),
    }
}

/// SQLSTATE of a missing grant.
const INSUFFICIENT_PRIVILEGE: &str = "42501";
