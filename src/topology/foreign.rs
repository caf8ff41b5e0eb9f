//! What a topology file may not hold, said by name: keys that a later version brings, and targets that pgherd does not manage.
//!
//! Shows no value of the file: a URL may hold a password. Only names from the lists below are printed.

use super::problem::{Position, Report, nearest};
use super::yaml::{Node, Value};

/// Keys of the format that this version does not have.
const LATER: &[&str] = &["checks", "clone", "delay", "priority", "upstream"];

/// Keys under which people name a kind of database.
const KIND_KEYS: &[&str] = &[
    "backend", "driver", "dsn", "endpoint", "engine", "flavor", "kind", "platform", "product", "provider",
    "target", "type", "url",
];

/// Words for what is not a PostgreSQL cluster with a data directory at hand, and how it is called.
const MANAGED_WORDS: &[(&str, &str)] = &[
    ("alloydb", "AlloyDB"),
    ("aurora", "Amazon Aurora"),
    ("azure", "Azure Database"),
    ("bigquery", "BigQuery"),
    ("cassandra", "Cassandra"),
    ("citus", "Citus"),
    ("clickhouse", "ClickHouse"),
    ("cloudsql", "Cloud SQL"),
    ("cloud-sql", "Cloud SQL"),
    ("cockroach", "CockroachDB"),
    ("cosmos", "Azure Cosmos DB"),
    ("dynamodb", "DynamoDB"),
    ("elasticache", "ElastiCache"),
    ("elasticsearch", "Elasticsearch"),
    ("greenplum", "Greenplum"),
    ("kafka", "Kafka"),
    ("mariadb", "MariaDB"),
    ("memcached", "Memcached"),
    ("mongodb", "MongoDB"),
    ("mssql", "SQL Server"),
    ("mysql", "MySQL"),
    ("neon", "Neon"),
    ("oracle", "Oracle Database"),
    ("rds", "Amazon RDS"),
    ("redis", "Redis"),
    ("redshift", "Amazon Redshift"),
    ("sqlite", "SQLite"),
    ("sqlserver", "SQL Server"),
    ("supabase", "Supabase"),
    ("timescale", "Timescale"),
    ("timescaledb", "TimescaleDB as a service"),
    ("valkey", "Valkey"),
    ("yugabyte", "YugabyteDB"),
    ("yugabytedb", "YugabyteDB"),
];

/// Ends of the host names of services, and how they are called.
const MANAGED_HOSTS: &[(&str, &str)] = &[
    (".rds.amazonaws.com", "Amazon RDS"),
    (".cache.amazonaws.com", "ElastiCache"),
    (".redshift.amazonaws.com", "Amazon Redshift"),
    (".database.azure.com", "Azure Database"),
    (".cosmos.azure.com", "Azure Cosmos DB"),
    (".alloydb.goog", "AlloyDB"),
    (".sql.goog", "Cloud SQL"),
    (".neon.tech", "Neon"),
    (".supabase.co", "Supabase"),
    (".supabase.com", "Supabase"),
    (".timescale.com", "Timescale"),
    (".clickhouse.cloud", "ClickHouse Cloud"),
    (".mongodb.net", "MongoDB Atlas"),
    (".aivencloud.com", "Aiven"),
    (".ondigitalocean.com", "DigitalOcean Managed Databases"),
    (".crunchybridge.com", "Crunchy Bridge"),
];

const SCOPE: &str = "pgherd manages PostgreSQL clusters whose data directory it can reach: it starts the server and reads its files.";

/// Finds the name of what a word stands for, if pgherd does not manage that: `redis`, `aws_rds`, `Citus 12`.
fn managed_word(text: &str) -> Option<&'static str> {
    let lower = text.to_lowercase();
    let named = |word: &str| MANAGED_WORDS.iter().find(|(known, _)| *known == word).map(|(_, name)| *name);
    named(&lower).or_else(|| lower.split(|c: char| !c.is_ascii_alphanumeric()).find_map(named))
}

/// Finds the name of the service that a host name or a URL belongs to.
fn managed_host(text: &str) -> Option<&'static str> {
    let lower = text.to_lowercase();
    if let Some((scheme, _)) = lower.split_once("://") {
        // redis over TLS is rediss.
        let plain = scheme.strip_suffix('s').unwrap_or(scheme);
        if let Some(name) = managed_word(scheme).or_else(|| managed_word(plain)) {
            return Some(name);
        }
    }
    let authority = lower.split("://").last().unwrap_or_default();
    let authority = authority.split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default();
    MANAGED_HOSTS.iter().find(|(end, _)| host.ends_with(end)).map(|(_, name)| *name)
}

fn report_managed(report: &mut Report, at: Position, path: &str, name: &str) {
    report.add(at, format!("cannot manage {name} ({path})")).detail(SCOPE).hint(
        "Remove it from the file, or describe a PostgreSQL cluster with its own nodes on hosts under \"regions\".",
    );
}

/// Reports a host that is a service or a URL; `false` if it is neither.
pub(super) fn report_managed_host(report: &mut Report, at: Position, path: &str, text: &str) -> bool {
    if let Some(name) = managed_host(text) {
        report_managed(report, at, path, name);
        return true;
    }
    if text.contains("://") {
        report
            .add(at, format!("{path} is a URL, expected a host"))
            .detail(format!("{SCOPE} The value is not shown, since it may hold a password."))
            .hint("Name a host of \"regions\".");
        return true;
    }
    false
}

/// Reports a library that makes another kind of cluster of PostgreSQL; `false` if there is none.
pub(super) fn report_managed_library(report: &mut Report, at: Position, path: &str, libraries: &str) -> bool {
    let citus = libraries.split([',', ' ', '\'', '"']).any(|library| library.eq_ignore_ascii_case("citus"));
    if citus {
        report_managed(report, at, path, "Citus");
    }
    citus
}

/// Reports a key that the format does not have, in the way that helps most.
pub(super) fn report_unknown_key(
    report: &mut Report,
    at: Position,
    path: &str,
    key: &str,
    value: &Node,
    known: &[&'static str],
) {
    let text = match &value.value {
        Value::Scalar(scalar) => scalar.text.as_str(),
        Value::Sequence(_) | Value::Mapping(_) | Value::Alias => "",
    };
    let is_kind = KIND_KEYS.contains(&key);
    let named_by_value = is_kind.then(|| managed_word(text).or_else(|| managed_host(text))).flatten();
    let named_by_key = MANAGED_WORDS.iter().find(|(word, _)| *word == key).map(|(_, name)| *name);
    if let Some(name) = named_by_value.or(named_by_key) {
        report_managed(report, at, path, name);
        return;
    }
    let problem = report.add(at, format!("unknown key \"{key}\" in {path}"));
    let mut keys = known.to_vec();
    keys.sort_unstable();
    problem.detail(if keys.is_empty() {
        "It has no keys.".to_owned()
    } else {
        format!("Its keys are: {}.", keys.join(", "))
    });
    if LATER.contains(&key) {
        problem.hint(format!("This version of pgherd does not have \"{key}\" yet. Remove it."));
    } else if let Some(near) = nearest(key, &keys) {
        problem.hint(format!("Did you mean \"{near}\"?"));
    } else if is_kind && text.to_lowercase().starts_with("postgres") {
        problem.hint("Every cluster is PostgreSQL; remove the key.");
    } else {
        problem.hint("Remove it; \"pgherd schema\" prints what each key means.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_hosts_of_what_is_not_managed_are_known_by_name() {
        assert_eq!(managed_word("redis"), Some("Redis"));
        assert_eq!(managed_word("aws_rds"), Some("Amazon RDS"));
        assert_eq!(managed_word("postgresql"), None);
        assert_eq!(managed_word("wordsmith"), None);
        assert_eq!(managed_host("shop.abc.eu-west-1.rds.amazonaws.com"), Some("Amazon RDS"));
        assert_eq!(managed_host("rediss://user:pw@cache:6379/0"), Some("Redis"));
        assert_eq!(managed_host("postgres://u:p@x.neon.tech:5432/db"), Some("Neon"));
        assert_eq!(managed_host("db1"), None);
    }
}
