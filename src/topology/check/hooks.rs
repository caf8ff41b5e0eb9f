//! What is run at the points of a role change, and who is told of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::decode::{HookWish, Spanned};
use super::super::hooks::{Hook, Place, Point};
use super::super::model::Notify;
use super::super::notices::Occasion;
use super::super::raw;
use super::{Checker, Draft};
use crate::units::human_duration;

impl Checker<'_> {
    /// Checks what stands under "hooks" in a cluster.
    pub(super) fn hooks(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::Cluster,
        hosts: &BTreeSet<String>,
    ) -> Vec<Hook> {
        let Some(raw) = raw.hooks.as_ref().map(|raw| &raw.value) else { return Vec::new() };
        let stated = |point| match point {
            Point::BeforeSwitchover => &raw.before_switchover,
            Point::Fence => &raw.fence,
            Point::BeforePromote => &raw.before_promote,
            Point::AfterPromote => &raw.after_promote,
            Point::AfterSwitchover => &raw.after_switchover,
            Point::AfterFailover => &raw.after_failover,
            Point::AfterUndo => &raw.after_undo,
        };
        let of = |point| Some((point, stated(point).as_ref()?));
        let declared: Vec<(Point, &Spanned<HookWish>)> = Point::ALL.into_iter().filter_map(of).collect();
        declared.into_iter().filter_map(|(point, wish)| self.hook(draft, point, wish, hosts)).collect()
    }

    /// Checks what stands under "notify" in a cluster.
    pub(super) fn notify(&mut self, draft: &Draft<'_>, raw: &Spanned<raw::Notify>) -> Option<Notify> {
        let path = draft.path(".notify");
        if !draft.has(&["notify", "url"]) {
            self.missing(raw.at, &path, "url", "url: {env: PGHERD_NOTIFY_URL}");
        }
        let raw = &raw.value;
        let mut events = Occasion::ALL.to_vec();
        if let Some(stated) = &raw.events {
            if draft.is_empty_list(&["notify", "events"]) {
                self.report
                    .add(stated.at, format!("{path}.events is empty"))
                    .hint("Write [started, done, stuck], or remove the key.");
            }
            events = Vec::new();
            for event in &stated.value {
                if !events.contains(&event.value) {
                    events.push(event.value);
                }
            }
        }
        let ca = raw.ca.as_ref().and_then(|ca| {
            if ca.value.file.is_none() {
                self.missing(ca.at, &format!("{path}.ca"), "file", "file: notify-ca.pem");
            }
            Some(self.base.join(&ca.value.file.as_ref()?.value))
        });
        Some(Notify { url: self.reference(&raw.url.as_ref()?.value), events, ca })
    }

    fn hook(
        &mut self,
        draft: &Draft<'_>,
        point: Point,
        wish: &Spanned<HookWish>,
        hosts: &BTreeSet<String>,
    ) -> Option<Hook> {
        let path = draft.path(&format!(".hooks.{}", point.word()));
        let (argv, at, timeout, on) = match &wish.value {
            HookWish::Argv(argv) => (argv.clone(), wish.at, None, None),
            HookWish::Whole(whole) => {
                let Some(run) = &whole.run else {
                    if !draft.has(&["hooks", point.word(), "run"]) {
                        self.missing(wish.at, &path, "run", "run: [/PATH/PROGRAM, ARGUMENT]");
                    }
                    return None;
                };
                (run.value.clone(), run.at, whole.timeout.as_ref(), whole.on.as_ref())
            }
        };
        let Some((program, args)) = argv.split_first() else {
            self.report.add(at, format!("{path} names no program")).hint("Write [/PATH/PROGRAM, ARGUMENT].");
            return None;
        };
        let place = match on {
            None => Some(Place::Station),
            Some(on) => self.place_of_hook(draft, &path, on, hosts),
        };
        let longest = Hook::longest(point);
        if let Some(timeout) = timeout.filter(|timeout| timeout.value.is_zero() || timeout.value > longest) {
            let problem = self.report.add(
                timeout.at,
                format!("{path}.timeout must be above 0 and at most {}", human_duration(longest)),
            );
            if point == Point::BeforePromote {
                problem.detail("Clients wait while it runs.");
            }
        }
        let place = place?;
        let is_here =
            |name: &String| self.host_index.get(name).is_none_or(|index| self.hosts[*index].reach.is_here());
        let here = match &place {
            Place::Station => true,
            Place::OldPrimary | Place::NewPrimary => hosts.iter().all(is_here),
            Place::Host(name) => is_here(name),
        };
        let program = self.program_of_hook(&path, &Spanned { at, value: program.clone() }, here)?;
        Some(Hook {
            point,
            program,
            args: args.to_vec(),
            timeout: timeout.map_or(Hook::TIMEOUT, |timeout| timeout.value),
            on: place,
        })
    }

    fn place_of_hook(
        &mut self,
        draft: &Draft<'_>,
        path: &str,
        on: &Spanned<String>,
        hosts: &BTreeSet<String>,
    ) -> Option<Place> {
        let words = [Place::Station, Place::OldPrimary, Place::NewPrimary];
        if let Some(word) = words.iter().find(|place| place.word() == on.value) {
            return Some(word.clone());
        }
        if hosts.contains(&on.value) {
            return Some(Place::Host(on.value.clone()));
        }
        let known = words.iter().map(Place::word).chain(hosts.iter().map(String::as_str));
        self.report
            .add(
                on.at,
                format!(
                    "{path}.on must be a host of {} or a word for one, found \"{}\"",
                    draft.name, on.value
                ),
            )
            .suggest(&on.value, known);
        None
    }

    /// A path says which program is meant, wherever it is looked for; one that is relative counts from the topology.
    fn program_of_hook(&mut self, path: &str, program: &Spanned<String>, here: bool) -> Option<PathBuf> {
        let stated = Path::new(&program.value);
        if program.value.starts_with('~') {
            self.report
                .add(program.at, format!("{path} begins with \"~\", which only a shell knows"))
                .hint("Write the whole path; a relative one counts from the topology file.");
            return None;
        }
        if !program.value.contains('/') {
            self.report
                .add(
                    program.at,
                    format!("{path} must name its program by a path, found \"{}\"", program.value),
                )
                .detail("Which program a name means would depend on who runs pgherd.")
                .hint(
                    "Write the whole path; a relative one, such as hooks/dns, counts from the topology file.",
                );
            return None;
        }
        if stated.is_relative() && !here {
            self.report
                .add(program.at, format!("{path} must name a program on another host by its absolute path"))
                .hint("Write the whole path from / on.");
            return None;
        }
        // Without the "." that says where a relative one counts from.
        Some(self.base.join(stated).components().collect())
    }
}
