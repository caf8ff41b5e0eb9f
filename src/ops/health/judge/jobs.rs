//! What runs by itself: whether it did, and ended well. A job that nobody starts any more says nothing; only this tells it.

use super::super::report::{Finding, Status, Subject};
use super::super::seen::Seen;
use super::{Of, command};
use crate::ops::schedule::{Listed, Standing};
use crate::topology::checks::{Check, Measure};

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let of = Of::new(seen.cluster, Check::Jobs);
    match &seen.herd.jobs {
        Ok(jobs) => jobs.iter().map(|job| one(seen, of, job)).collect(),
        Err(why) => vec![of.unknown(Subject::Cluster, why)],
    }
}

fn one(seen: &Seen<'_>, of: Of<'_>, job: &Listed) -> Finding {
    let age = |at: jiff::Timestamp| Measure::Time.written(seen.at.duration_since(at).as_secs_f64().max(0.0));
    let success = match &job.last_success {
        Some(run) => format!("it ended well last {} ago", age(run.begun)),
        None => "it has not ended well yet".to_owned(),
    };
    let failed = match (&job.last, job.failures) {
        (Some(last), 1..) => match last.exit {
            Some(exit) => format!("its last run, {} ago, ended with exit code {exit}; ", age(last.begun)),
            None => format!("its last run, {} ago, was killed; ", age(last.begun)),
        },
        (Some(_) | None, _) => String::new(),
    };
    let (status, text) = match job.standing {
        Standing::Met | Standing::Due => (Status::Ok, success),
        Standing::New => (Status::Ok, "it has not been due yet".to_owned()),
        Standing::Running => {
            let since = job.running.as_ref().map(|running| format!(" for {}", age(running.since)));
            (Status::Ok, format!("it runs{}; {success}", since.unwrap_or_default()))
        }
        Standing::Unseen => {
            (Status::Warning, "nobody has asked on this station whether it is due".to_owned())
        }
        Standing::Failed => (Status::Warning, format!("{failed}{success}")),
        Standing::Overdue => (Status::Critical, format!("it is overdue ({}); {failed}{success}", job.when)),
    };
    let next = match job.standing {
        Standing::Unseen => "pgherd schedule render --as cron".to_owned(),
        Standing::Met
        | Standing::Due
        | Standing::New
        | Standing::Running
        | Standing::Failed
        | Standing::Overdue => command(seen.cluster, "schedule list"),
    };
    let name = job.job.rsplit('/').next().unwrap_or(&job.job).to_owned();
    of.says(Subject::Part(name), status, text).next(next)
}
