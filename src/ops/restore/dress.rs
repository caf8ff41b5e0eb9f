//! The configuration that a restored directory starts with.
//!
//! Text in, text out. What the backup brought along is kept, but for what would lead the copy to the original: its archive, its
//! upstream, its directories, an old recovery target.

/// Settings that no restored directory keeps from the backup: they say how that server recovered or whom it followed, or where its
/// own files were.
pub const OLD_PLACE: [&str; 22] = [
    "archive_cleanup_command",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "standby_mode",
    "trigger_file",
];

/// Begins a line that was taken out.
const TAKEN_OUT: &str = "#pgherd restore: ";

/// Returns a configuration file with every line that sets one of `names` made a comment.
pub fn neutralised(conf: &str, names: &[String]) -> String {
    conf.split_inclusive('\n')
        .map(|line| {
            let set =
                set_by(line).is_some_and(|name| names.iter().any(|other| other.eq_ignore_ascii_case(name)));
            if set { format!("{TAKEN_OUT}{line}") } else { line.to_owned() }
        })
        .collect()
}

/// Returns the setting that a line sets: a name, then a blank or `=` (`guc-file.l`).
fn set_by(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.' || c == '$'))?;
    let (name, rest) = line.split_at(end);
    (!name.is_empty() && rest.starts_with(['=', ' ', '\t'])).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_recovery_settings_become_comments_and_nothing_else_changes() {
        let names: Vec<String> = OLD_PLACE.map(str::to_owned).into();
        let conf = "# recovery_target_time = 'x'\nRecovery_Target_Time='2020-01-01'\n  restore_command 'cp %f %p'\n\
                    max_connections = 40\nprimary_conninfo\t=\t'host=a'\nrestore_command_of_mine.x = 1\nhba_file = '/etc/hba'";
        assert_eq!(
            neutralised(conf, &names),
            "# recovery_target_time = 'x'\n#pgherd restore: Recovery_Target_Time='2020-01-01'\n\
             #pgherd restore:   restore_command 'cp %f %p'\nmax_connections = 40\n\
             #pgherd restore: primary_conninfo\t=\t'host=a'\nrestore_command_of_mine.x = 1\n#pgherd restore: hba_file = '/etc/hba'"
        );
        let once = neutralised(conf, &names);
        assert_eq!(neutralised(&once, &names), once);
    }
}
