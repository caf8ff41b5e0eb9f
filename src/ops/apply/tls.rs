//! Certificates of nodes that are there: sent, read by the server, and seen to be shown.

use std::collections::BTreeMap;

use crate::db::queries;
use crate::error::Result;
use crate::ops::certificate::{self, Holder};
use crate::ops::observe::{ClusterObserved, Doors};
use crate::ops::plan::TlsSeen;
use crate::ops::provision::Site;
use crate::topology::model::Cluster;

/// Looks at the certificates of the nodes that are there; `None` where the cluster declares no TLS.
pub(super) async fn look(
    doors: &Doors,
    cluster: &Cluster,
    observed: &ClusterObserved,
) -> Result<Option<TlsSeen>> {
    if !cluster.has_tls() {
        return Ok(None);
    }
    let mut nodes = BTreeMap::new();
    for node in &cluster.nodes {
        // One that is not there yet gets its certificate with its directory.
        if observed.node(&node.name).is_none_or(|seen| seen.files.is_none()) {
            continue;
        }
        let seen = certificate::look(doors, cluster, Holder::Node(node)).await?;
        nodes.extend(seen.and_then(|seen| seen.wrong).map(|why| (node.name.clone(), why)));
    }
    Ok(Some(TlsSeen { authority: certificate::authority(&doors.station, cluster)?, nodes }))
}

/// Gives a node the certificate that it should have; a server that uses it already reads it and shows it.
pub(super) async fn renew(site: &Site<'_>) -> Result<()> {
    let holder = Holder::Node(site.node);
    certificate::equip(site.doors, site.cluster, holder).await?;
    let Ok(conn) = site.connect().await else { return Ok(()) };
    let own = site.places().certificate.display().to_string();
    let rows = queries::settings(&conn, &["ssl", "ssl_cert_file"]).await?;
    let is = |name: &str, value: &str| rows.iter().any(|row| row.name == name && row.setting == value);
    if !(is("ssl", "on") && is("ssl_cert_file", &own)) {
        return Ok(());
    }
    queries::reload(&conn).await?;
    certificate::until_shown(site.doors, site.cluster, holder).await
}
