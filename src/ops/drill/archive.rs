//! The reports of earlier drills, one file each: `STATE/drills/CLUSTER/BEGUN-ID.json`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::whole;
use crate::ops::drill::report::{FORMAT, Report};
use crate::topology::places::Places;

/// Returns where all that drills keep is.
pub fn root(places: &Places) -> PathBuf {
    places.state().join("drills")
}

fn path(places: &Places, report: &Report) -> PathBuf {
    let begun = report.begun.strftime("%Y%m%dT%H%M%SZ");
    root(places).join(&report.cluster).join(format!("{begun}-{}.json", report.id))
}

/// Writes a report, or writes it anew, and returns its file.
///
/// # Errors
/// When the state directory cannot be written.
pub fn write(places: &Places, report: &Report) -> Result<PathBuf> {
    let path = path(places, report);
    let mut bytes = serde_json::to_vec_pretty(report).expect("reports have text keys and finite numbers");
    bytes.push(b'\n');
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| whole::replace(&path, 0o644, &bytes)).map_err(|error| {
        Error::failed(format!("could not write the report {}", path.display())).source(error)
    })?;
    Ok(path)
}

/// A file that should hold a report.
#[derive(Debug)]
pub struct Kept {
    pub path: PathBuf,
    pub report: Result<Report>,
}

/// Reads the reports of a cluster, oldest first.
///
/// # Errors
/// When the directory is there and cannot be listed; a file that cannot be read is an error in its place.
pub fn list(places: &Places, cluster: &str) -> Result<Vec<Kept>> {
    let directory = root(places).join(cluster);
    let could_not =
        |error: io::Error| Error::failed(format!("could not list {}", directory.display())).source(error);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(could_not(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(could_not)?.path();
        if path.extension().is_some_and(|end| end == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.into_iter().map(|path| Kept { report: read(&path), path }).collect())
}

fn read(path: &Path) -> Result<Report> {
    let could_not = || Error::failed(format!("could not read the report {}", path.display()));
    let bytes = fs::read(path).map_err(|error| could_not().source(error))?;
    parse(&bytes).map_err(|why| could_not().detail(why))
}

fn parse(bytes: &[u8]) -> Result<Report, String> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| format!("It is damaged: {error}."))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(FORMAT) => {
            serde_json::from_value(value).map_err(|error| format!("It is damaged: {error}."))
        }
        Some(found) => Err(format!("It has format {found}, this pgherd reads format {FORMAT}.")),
        None => Err("It is damaged: no format number.".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("testdata/report-1.json");

    #[test]
    fn the_golden_report_reads_and_writes_byte_for_byte() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().display().to_string();
        let places = Places::decide(false, |_| Some(state.clone())).unwrap();
        let report = parse(GOLDEN.as_bytes()).unwrap();
        assert_eq!(report.judge(), report.verdict);
        let path = write(&places, &report).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), GOLDEN);
        assert!(path.ends_with("drills/inventory/20261121T100203Z-7f3a09c2.json"), "{}", path.display());
        let kept = list(&places, "inventory").unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].report.as_ref().unwrap(), &report);
    }

    #[test]
    fn refuses_another_format_and_an_unknown_field() {
        assert!(
            parse(GOLDEN.replace("\"format\": 1", "\"format\": 2").as_bytes())
                .unwrap_err()
                .contains("format 2")
        );
        assert!(parse(GOLDEN.replace("\"herd\"", "\"hurd\"").as_bytes()).unwrap_err().contains("hurd"));
    }
}
