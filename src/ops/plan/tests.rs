//! The planner on herds that were never there: every fact is made up, so each decision stands alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;

use crate::db::logins::Purpose;
use crate::db::queries::{
    ServerFacts, ServerRole, Setting, Slot, SlotKind, TimelineSource, WalReceiver, WalSender,
};
use crate::error::{Error, ErrorKind};
use crate::ops::adopt::{Candidate, Listens, Told};
use crate::ops::binary::Installed;
use crate::ops::builds::Copy;
use crate::ops::certificate::AuthoritySeen;
use crate::ops::objects::ObjectsObserved;
use crate::ops::observe::{Claim, ClusterObserved, Directory, Fence, Files, NodeObserved, Running, Server};
use crate::ops::plan::step::{ApplyStep, PlannedStep};
use crate::ops::plan::{
    AccessSeen, Adoption, ArchiveHost, ArchiveSeen, ClusterPlan, Fixed, Logins, PoolerDrift, Reached,
    RecordSeen, RepositorySeen, Situation, TlsSeen, plan,
};
use crate::ops::service::{Manager, UnitSeen};
use crate::ops::split::{Side, SplitBrain};
use crate::ops::starter;
use crate::pg::control_file::ControlFile;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::version::PgVersion;
use crate::repo::primary::PrimaryRecord;
use crate::topology::budget::at_most;
use crate::topology::claim::{self, Archive, FORMAT, Marker, Profile};
use crate::topology::declared::{self, NodeWish};
use crate::topology::load_text;
use crate::topology::model::{Cluster, Host, Reach, Service, Tls};
use crate::topology::places::Places;
use crate::topology::unit::{self, Peers};
use crate::units::ByteCount;

const CONTROL: &str = include_str!("../../../tests/data/pg_controldata/15-in-archive-recovery.txt");

const HERD: &str = "
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
clusters:
  inventory:
    postgres: {version: 15, tune: {memory: 512 MiB}, settings: {max_connections: 60, work_mem: 4 MiB}}
    nodes:
      a: {host: local, port: 5441, data-directory: /srv/a, prefer: primary}
      b: {host: local, port: 5442, data-directory: /srv/b}
      c: {host: local, port: 5443, data-directory: /srv/c}
    synchronous: {wait-for: 1, of: [a, b, c]}
    poolers: none
";

/// A herd of which every fact can be set.
struct World {
    cluster: Cluster,
    places: Places,
    fixed: Fixed,
    observed: ClusterObserved,
    poolers: BTreeMap<String, PoolerDrift>,
    archive: Option<ArchiveSeen>,
    tls: Option<TlsSeen>,
    rotate: Option<Purpose>,
    adoption: Adoption,
    starter: starter::Seen,
    split: Option<SplitBrain>,
}

impl World {
    /// Nothing is there yet.
    fn unborn() -> Self {
        let herd = load_text(Path::new("/pgherd.yml"), HERD, Path::new("/")).unwrap();
        let cluster = herd.cluster("inventory").unwrap().clone();
        let places = Places::decide(true, |_| None).unwrap();
        let fixed = Fixed {
            memory: cluster.nodes.iter().map(|node| (node.name.clone(), ByteCount(512 << 20))).collect(),
            users: BTreeMap::from([("local".to_owned(), vec!["postgres".to_owned(), "root".to_owned()])]),
            adopted: BTreeSet::new(),
        };
        let nodes = cluster
            .nodes
            .iter()
            .map(|node| NodeObserved {
                node: node.name.clone(),
                marker: Claim::None,
                profile: None,
                fence: Fence::Open,
                directory: Directory::Missing,
                server: Server::Stopped,
                files: None,
                disk: None,
            })
            .collect();
        let observed = ClusterObserved { cluster: cluster.name.clone(), nodes, left: Vec::new() };
        Self {
            cluster,
            places,
            fixed,
            observed,
            poolers: BTreeMap::new(),
            archive: None,
            tls: None,
            rotate: None,
            adoption: Adoption::default(),
            starter: starter::Seen::default(),
            split: None,
        }
    }

    /// Everything is as declared, `a` is primary.
    fn running() -> Self {
        let mut world = Self::unborn();
        for name in ["a", "b", "c"] {
            world.make(name);
        }
        world
    }

    /// Makes a node as it is declared.
    fn make(&mut self, name: &str) {
        let (shared, own) = self.declared(name);
        let node = self.cluster.node(name).unwrap();
        let primary = name == "a";
        let (directory, marker) = (node.data_directory.clone(), marker(node.data_directory.as_path()));
        let settings = shared
            .iter()
            .chain(&own)
            .map(|(name, value)| {
                let file = directory.join(declared::SHARED_FILE).display().to_string();
                (name.clone(), setting(name, value, &file))
            })
            .collect();
        let pg_hba = declared::with_access("# mine\n", &self.cluster);
        let seen = self.node(name);
        seen.marker = Claim::Ours(marker);
        seen.directory = Directory::Cluster {
            version: "15".to_owned(),
            owner: "postgres".to_owned(),
            control: Some(Box::new(ControlFile::parse(CONTROL).unwrap())),
            standby_signal: !primary,
        };
        seen.files = Some(Files {
            shared: Some(declared::settings_file(&shared)),
            node: Some(declared::settings_file(&own)),
            postgresql_conf: declared::with_includes("# mine\n"),
            pg_hba,
            pg_ident: declared::with_users("", &["postgres", "root"]),
            auto_conf: String::new(),
            profile: None,
            unit: UnitSeen { text: None, enabled: false },
        });
        seen.server = Server::Up(Box::new(Running {
            facts: facts(primary),
            senders: if primary { vec![sender("inventory-b"), sender("inventory-c")] } else { Vec::new() },
            slots: if primary { vec![slot("inventory_b"), slot("inventory_c")] } else { Vec::new() },
            settings,
        }));
    }

    fn declared(&self, name: &str) -> (Vec<declared::Setting>, Vec<declared::Setting>) {
        let node = self.cluster.node(name).unwrap();
        let wish = NodeWish {
            upstream: (name != "a").then(|| self.cluster.node("a").unwrap()),
            synchronous: declared::synchronous_names(&self.cluster, node),
            memory: ByteCount(512 << 20),
        };
        let places = self.places.node(&self.cluster.full_name(name));
        (
            declared::shared_settings(&self.cluster),
            declared::node_settings(&self.cluster, node, &wish, &places),
        )
    }

    fn node(&mut self, name: &str) -> &mut NodeObserved {
        self.observed.nodes.iter_mut().find(|node| node.node == name).unwrap()
    }

    fn stop(&mut self, name: &str) {
        self.node(name).server = Server::Stopped;
    }

    fn server(&mut self, name: &str) -> &mut Running {
        let Server::Up(running) = &mut self.node(name).server else { panic!("{name} does not run") };
        running
    }

    /// Says in pgherd.conf and in the server what is declared, but for one setting.
    fn runs_with(&mut self, name: &str, value: &str) {
        for node in ["a", "b", "c"] {
            let row = self.server(node).settings.get_mut(name).unwrap();
            value.clone_into(&mut row.setting);
            value.clone_into(&mut row.shown);
        }
    }

    fn plan(&self) -> Result<ClusterPlan, Vec<Error>> {
        plan(&Situation {
            cluster: &self.cluster,
            places: &self.places,
            fixed: &self.fixed,
            observed: &self.observed,
            objects: None::<&ObjectsObserved>,
            logins: Some(Logins::Right),
            poolers: &self.poolers,
            rotate: self.rotate,
            archive: self.archive.as_ref(),
            tls: self.tls.as_ref(),
            adoption: &self.adoption,
            split: self.split.as_ref(),
            starter: &self.starter,
        })
    }

    fn refusal(&self) -> Error {
        let mut errors = self.plan().unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.remove(0)
    }
}

fn marker(directory: &Path) -> Marker {
    Marker {
        format: FORMAT,
        host: "local".to_owned(),
        data_directory: directory.to_owned(),
        system_identifier: Some(system()),
        operation: "7f3a".to_owned(),
        directory_existed: false,
        replaced: None,
        adopted: None,
    }
}

fn system() -> SystemIdentifier {
    ControlFile::parse(CONTROL).unwrap().system_identifier
}

fn facts(primary: bool) -> ServerFacts {
    let lsn = Lsn::new(0x400_0000);
    let receiver = WalReceiver {
        status: "streaming".to_owned(),
        received_timeline: TimelineId::new(1),
        written_lsn: Some(lsn),
        flushed_lsn: Some(lsn),
        latest_end_lsn: Some(lsn),
        latest_end_at: None,
        last_message_at: None,
        sender_host: None,
        sender_port: None,
        slot: None,
    };
    ServerFacts {
        version: PgVersion { major: 15, minor: 18 },
        system_identifier: system(),
        timeline: TimelineId::new(1).unwrap(),
        timeline_from: if primary { TimelineSource::WalFile } else { TimelineSource::WalReceiver },
        role: if primary {
            ServerRole::Primary { written_lsn: lsn }
        } else {
            ServerRole::Standby {
                received_lsn: Some(lsn),
                replayed_lsn: Some(lsn),
                replay_paused: false,
                last_replayed: None,
                receiver: Some(Box::new(receiver)),
            }
        },
        started: Timestamp::UNIX_EPOCH,
        now: Timestamp::UNIX_EPOCH,
        data_checksums: true,
        synchronous_standby_names: "ANY 1 (\"inventory-b\", \"inventory-c\")".to_owned(),
    }
}

fn setting(name: &str, value: &str, file: &str) -> Setting {
    let restart =
        ["archive_mode", "max_connections", "shared_buffers", "max_wal_senders", "port"].contains(&name);
    Setting {
        name: name.to_owned(),
        setting: value.to_owned(),
        unit: None,
        vartype: "string".to_owned(),
        context: if restart { "postmaster" } else { "sighup" }.to_owned(),
        source: "configuration file".to_owned(),
        sourcefile: Some(file.to_owned()),
        sourceline: Some(1),
        reset_val: None,
        boot_val: None,
        pending_restart: false,
        shown: value.to_owned(),
    }
}

fn slot(name: &str) -> Slot {
    Slot {
        name: name.to_owned(),
        kind: SlotKind::Physical,
        active: true,
        restart_lsn: None,
        wal_status: None,
        retained: None,
        safe_wal_size: None,
    }
}

fn sender(name: &str) -> WalSender {
    WalSender {
        application_name: name.to_owned(),
        user: "replicator".to_owned(),
        client_address: None,
        slot: None,
        state: "streaming".to_owned(),
        sync_state: "quorum".to_owned(),
        sent_lsn: None,
        written_lsn: None,
        flushed_lsn: None,
        replayed_lsn: None,
        replied_at: None,
    }
}

fn lines(plan: &ClusterPlan) -> Vec<String> {
    plan.steps().map(|step| format!("{} {}: {}", step.sign.mark(), step.subject, step.text)).collect()
}

fn reasons(plan: &ClusterPlan) -> Vec<String> {
    plan.steps().filter_map(|step| step.reason.clone()).collect()
}

fn only(plan: &ClusterPlan) -> &PlannedStep {
    let steps: Vec<&PlannedStep> = plan.steps().collect();
    assert_eq!(steps.len(), 1, "{:?}", lines(plan));
    steps[0]
}

#[test]
fn a_herd_that_is_as_declared_needs_nothing() {
    let plan = World::running().plan().unwrap();
    assert!(plan.is_empty(), "{:?}", lines(&plan));
    assert_eq!(plan.headline, "primary a, 3 of 3 nodes answer");
}

#[test]
fn commits_are_not_made_to_wait_for_more_standbys_than_there_are() {
    let less = "ANY 1 (\"inventory-b\", \"inventory-c\")";
    let mut world = World::running();
    world.cluster.synchronous.as_mut().unwrap().wait_for = 2;
    for node in ["a", "b"] {
        world.server(node).facts.synchronous_standby_names = less.to_owned();
    }
    let ServerRole::Standby { receiver, .. } = &mut world.server("c").facts.role else { panic!() };
    *receiver = None;
    let plan = world.plan().unwrap();
    let told = format!("commits of inventory wait for {less}, not for ANY 2");
    assert!(plan.notes.iter().any(|note| note.starts_with(&told)), "{:?}", plan.notes);
    let changes = |plan: &ClusterPlan| {
        let primary = plan.steps().find(|step| step.subject == "inventory-a");
        primary.map(|step| step.reason.clone().unwrap_or_default())
    };
    assert!(!changes(&plan).is_some_and(|why| why.contains("synchronous_standby_names")), "{plan:?}");

    // Once it streams they are, and the primary's first: what a standby says is never more than what its primary waits for.
    let mut world = World::running();
    world.cluster.synchronous.as_mut().unwrap().wait_for = 2;
    world.server("a").facts.synchronous_standby_names = less.to_owned();
    let plan = world.plan().unwrap();
    assert_eq!(
        plan.steps().next().map(|step| step.subject.as_str()),
        Some("inventory-a"),
        "{:?}",
        lines(&plan)
    );
}

#[test]
fn birth_opens_to_clients_only_after_the_standbys_stream() {
    let plan = World::unborn().plan().unwrap();
    assert_eq!(
        kinds(&plan),
        [
            "initdb a",
            "start a",
            "logins",
            "slot inventory_b",
            "slot inventory_c",
            "clone b from a",
            "clone c from a",
            "b follows a",
            "c follows a",
            "configure a: synchronous_standby_names",
            "objects",
            "pivot",
            "prove"
        ]
    );
}

#[test]
fn a_node_that_systemd_shall_start_has_its_unit_before_it_is_started() {
    let mut world = World::unborn();
    world.cluster.postgres.service = Service::Systemd;
    let kinds = kinds(&world.plan().unwrap());
    let at = |kind: &str| kinds.iter().position(|found| found == kind).unwrap();
    assert!(at("initdb a") < at("unit a") && at("unit a") < at("start a"), "{kinds:?}");
    for (node, clone) in [("b", "clone b from a"), ("c", "clone c from a")] {
        let unit = at(&format!("unit {node}"));
        assert!(at(clone) < unit && unit < at(&format!("{node} follows a")), "{kinds:?}");
    }
}

#[test]
fn a_unit_that_is_missing_changed_or_not_enabled_is_put_right_and_nobody_is_restarted() {
    let mut world = World::running();
    world.cluster.postgres.service = Service::Systemd;
    for name in ["a", "b", "c"] {
        let node = world.cluster.node(name).unwrap().clone();
        let golden = include_bytes!("../../topology/testdata/profile-1.json");
        let profile: Profile = claim::read(golden).unwrap();
        let profile = Profile {
            node: name.to_owned(),
            port: node.port,
            data_directory: node.data_directory,
            archive: None,
            ..profile
        };
        let places = world.places.node(&format!("inventory-{name}"));
        let text = Some(unit::render(&profile, &places, Peers::Some).unwrap());
        world.node(name).profile = Some(profile);
        world.node(name).files.as_mut().unwrap().unit = UnitSeen { text, enabled: true };
    }
    assert!(world.plan().unwrap().is_empty(), "{:?}", lines(&world.plan().unwrap()));
    world.node("a").files.as_mut().unwrap().unit.text = None;
    world.node("b").files.as_mut().unwrap().unit.text.as_mut().unwrap().push_str("Nice=19\n");
    world.node("c").files.as_mut().unwrap().unit.enabled = false;
    let plan = world.plan().unwrap();
    assert_eq!(kinds(&plan), ["unit a", "unit b", "unit c"]);
    assert_eq!(
        reasons(&plan),
        [
            "there is none: nothing starts it with its host",
            "it is not what pgherd writes",
            "it is not enabled: nothing starts it with its host"
        ]
    );
    assert!(plan.restarts().is_empty());
}

#[test]
fn refuses_to_make_a_cluster_that_debians_wrapper_would_not_know() {
    let mut world = World::unborn();
    world.cluster.postgres.service = Service::Debian;
    let errors = world.plan().unwrap_err();
    assert_eq!(errors[0].kind(), ErrorKind::Refused);
    assert_eq!(errors[0].what(), "cannot make inventory-a as a Debian cluster");
    let mut running = World::running();
    running.cluster.postgres.service = Service::Debian;
    assert!(running.plan().unwrap().is_empty());
}

fn kinds(plan: &ClusterPlan) -> Vec<String> {
    plan.steps()
        .map(|step| match &step.step {
            ApplyStep::Install { host, .. } => format!("install on {host}"),
            ApplyStep::Repository { name, .. } => format!("repository {name}"),
            ApplyStep::Access { host, name, .. } => format!("access of {host} to {name}"),
            ApplyStep::Authority { herd } => format!("authority of {herd}"),
            ApplyStep::Certificate { node } => format!("certificate {node}"),
            ApplyStep::Archive { node, .. } => format!("archive {node}"),
            ApplyStep::Record { node } => format!("record {node}"),
            ApplyStep::Adopt { node, .. } => format!("adopt {node}"),
            ApplyStep::Initdb { node } => format!("initdb {node}"),
            ApplyStep::Unit { node, .. } => format!("unit {node}"),
            ApplyStep::Start { node } => format!("start {node}"),
            ApplyStep::Logins { .. } => "logins".to_owned(),
            ApplyStep::Slot { slot, .. } => format!("slot {slot}"),
            ApplyStep::Clone { node, from } => format!("clone {node} from {from}"),
            ApplyStep::Follow { node, upstream } => format!("{node} follows {upstream}"),
            ApplyStep::Configure { node, expect, files, .. } => {
                let file = || files[0].path.file_name().unwrap().to_string_lossy().into_owned();
                format!("configure {node}: {}", expect.first().map_or_else(file, |(name, _)| name.clone()))
            }
            ApplyStep::Objects { .. } => "objects".to_owned(),
            ApplyStep::Open { .. } => "open".to_owned(),
            ApplyStep::Keep {} => "pivot".to_owned(),
            ApplyStep::StagePassword { login } => format!("stage {}", login.whose()),
            ApplyStep::RotatePassword { login, nodes } => {
                format!("rotate {} on {}", login.whose(), nodes.join(","))
            }
            ApplyStep::ForgetPassword { login } => format!("forget {}", login.whose()),
            ApplyStep::Mend { .. } | ApplyStep::Pooler { .. } => panic!("{step:?}"),
            ApplyStep::Prove { .. } => "prove".to_owned(),
            ApplyStep::Schedule { pieces } => format!("schedule: {} pieces", pieces.len()),
            ApplyStep::Prune { host, builds } => format!("prune {} on {host}", builds.join(",")),
        })
        .collect()
}

#[test]
fn a_new_standby_is_all_that_is_planned_for_it() {
    let mut world = World::running();
    let c = world.node("c");
    c.marker = Claim::None;
    c.directory = Directory::Missing;
    c.server = Server::Stopped;
    c.files = None;
    world.server("a").slots.retain(|slot| slot.name != "inventory_c");
    assert_eq!(
        lines(&world.plan().unwrap()),
        [
            "+ inventory-a: slot inventory_c",
            "+ inventory-c: clone from inventory-a to /srv/c",
            "+ inventory-c: start on port 5443, wait until it streams from inventory-a",
            ". inventory: keep what is done so far",
            ". inventory: write a row through the primary's port, read it on every standby"
        ]
    );
}

#[test]
fn a_standby_is_let_in_before_it_is_cloned() {
    let mut world = World::running();
    let c = world.node("c");
    (c.marker, c.directory, c.server, c.files) = (Claim::None, Directory::Missing, Server::Stopped, None);
    world.server("a").slots.retain(|slot| slot.name != "inventory_c");
    "# mine\n".clone_into(&mut world.node("a").files.as_mut().unwrap().pg_hba);
    let plan = world.plan().unwrap();
    assert_eq!(
        lines(&plan)[..3],
        [
            "~ inventory-a: write pg_hba.conf, reload",
            "+ inventory-a: slot inventory_c",
            "+ inventory-c: clone from inventory-a to /srv/c",
        ]
    );
    assert!(!lines(&plan)[3..].iter().any(|line| line.contains("pg_hba.conf")), "{:?}", lines(&plan));
}

#[test]
fn a_lost_slot_is_made_anew_for_a_standby_whose_data_is_gone() {
    let mut world = World::running();
    let c = world.node("c");
    c.directory = Directory::Missing;
    c.server = Server::Stopped;
    c.files = None;
    for slot in &mut world.server("a").slots {
        slot.wal_status = Some(if slot.name == "inventory_c" { "lost" } else { "reserved" }.to_owned());
    }
    let plan = world.plan().unwrap();
    assert_eq!(
        lines(&plan)[..2],
        ["+ inventory-a: slot inventory_c", "+ inventory-c: clone from inventory-a to /srv/c"]
    );
    let reason = plan.steps().next().unwrap().reason.as_deref();
    assert_eq!(reason, Some("it is lost: the WAL that it kept is gone; made anew"));
}

#[test]
fn what_alter_system_set_is_taken_back_and_both_values_are_told() {
    let mut world = World::running();
    world.node("b").files.as_mut().unwrap().auto_conf = "work_mem = '1GB'\n".to_owned();
    let plan = world.plan().unwrap();
    let step = only(&plan);
    assert_eq!(step.text, "ALTER SYSTEM RESET work_mem, reload");
    assert_eq!(step.reason.as_deref(), Some("ALTER SYSTEM set work_mem = 1GB, declared is 4MB"));
}

#[test]
fn what_alter_system_set_is_taken_from_a_stopped_node_before_it_starts() {
    let mut world = World::running();
    world.node("b").files.as_mut().unwrap().auto_conf = "# header\nprimary_conninfo = ''\n".to_owned();
    world.node("b").server = Server::Stopped;
    let plan = world.plan().unwrap();
    let ApplyStep::Configure { files, .. } = &plan.stages[0][0].step else { panic!("{:?}", lines(&plan)) };
    assert_eq!(files[0].after, "# header\n");
    assert!(
        lines(&plan)
            .iter()
            .any(|line| line == "+ inventory-b: start, wait until it streams from inventory-a")
    );
}

#[test]
fn a_raised_setting_that_standbys_must_match_restarts_the_standbys_first() {
    let mut world = World::running();
    world.runs_with("max_connections", "50");
    let order: Vec<String> =
        world.plan().unwrap().restarts().iter().map(|step| step.subject.clone()).collect();
    assert_eq!(order, ["inventory-b", "inventory-c", "inventory-a"]);
}

#[test]
fn a_lowered_setting_that_standbys_must_match_restarts_the_primary_first() {
    let mut world = World::running();
    world.runs_with("max_connections", "90");
    let order: Vec<String> =
        world.plan().unwrap().restarts().iter().map(|step| step.subject.clone()).collect();
    assert_eq!(order, ["inventory-a", "inventory-b", "inventory-c"]);
}

#[test]
fn raising_and_lowering_what_standbys_must_match_is_refused_in_one_go() {
    let mut world = World::running();
    world.runs_with("max_connections", "50");
    world.runs_with("max_wal_senders", "90");
    let refusal = world.refusal();
    assert_eq!(refusal.kind(), ErrorKind::Refused);
    assert!(refusal.detail_text().unwrap().starts_with("Raised: max_connections. Lowered: max_wal_senders."));
}

#[test]
fn a_setting_that_left_the_file_is_taken_out_and_restarted_for_if_it_must() {
    let mut world = World::running();
    let a = world.node("a");
    let files = a.files.as_mut().unwrap();
    files.shared.as_mut().unwrap().push_str("wal_buffers = '32MB'\n");
    let file = "/srv/a/pgherd.conf";
    let mut row = setting("wal_buffers", "32MB", file);
    row.context = "postmaster".to_owned();
    world.server("a").settings.insert("wal_buffers".to_owned(), row);
    let plan = world.plan().unwrap();
    assert_eq!(plan.restarts().len(), 1);
    assert!(reasons(&plan)[0].contains("wal_buffers 32MB → (not declared)"), "{:?}", reasons(&plan));
}

#[test]
fn a_dropped_slot_is_made_again() {
    let mut world = World::running();
    world.server("a").slots.clear();
    assert_eq!(
        lines(&world.plan().unwrap()),
        ["~ inventory-a: slot inventory_b", "~ inventory-a: slot inventory_c"]
    );
}

#[test]
fn a_second_primary_is_never_started() {
    let mut world = World::running();
    let b = world.node("b");
    b.server = Server::Stopped;
    let Directory::Cluster { standby_signal, .. } = &mut b.directory else { panic!() };
    *standby_signal = false;
    let plan = world.plan().unwrap();
    assert!(
        plan.steps().all(|step| !matches!(&step.step, ApplyStep::Follow { .. } | ApplyStep::Start { .. }))
    );
    assert!(plan.notes[0].contains("would come back as a second primary"), "{:?}", plan.notes);
}

#[test]
fn a_node_does_not_move_to_another_port() {
    let mut world = World::running();
    let profile = include_bytes!("../../topology/testdata/profile-1.json");
    let b = world.node("b");
    b.profile = Some(crate::topology::claim::read(profile).unwrap());
    assert!(world.plan().is_ok());
    world.cluster.nodes[1].port = 5999;
    world.node("b").server = Server::Unknown { why: "its socket does not answer".to_owned() };
    assert_eq!(world.refusal().what(), "cannot move inventory-b to port 5999: it was made for port 5442");
}

#[test]
fn two_primaries_are_refused_with_the_evidence() {
    let mut world = World::running();
    world.server("b").facts.role = ServerRole::Primary { written_lsn: Lsn::new(0x500_0000) };
    world.server("b").facts.timeline = TimelineId::new(2).unwrap();
    let refusal = world.refusal();
    assert_eq!(
        (refusal.kind(), refusal.what()),
        (ErrorKind::Refused, "inventory has more than one primary: a, b")
    );
    assert_eq!(refusal.detail_text(), Some("Nothing was changed."));
    world.split = Some(SplitBrain {
        fork_timeline: TimelineId::new(1),
        fork_lsn: Some(Lsn::new(0x400_0000)),
        fork_unknown: None,
        sides: vec![Side {
            node: "b".to_owned(),
            timeline: TimelineId::new(2).unwrap(),
            lsn: Lsn::new(0x500_0000),
            past_fork_bytes: Some(16 << 20),
            last_commit: None,
            last_commit_unknown: Some("track_commit_timestamp is off".to_owned()),
            standbys: Vec::new(),
            aliases: Vec::new(),
        }],
    });
    let says = "They part at 0/4000000 on timeline 1. b: timeline 2, LSN 0/5000000, 16 MiB past the fork, ";
    let told = world.refusal();
    assert!(told.detail_text().unwrap().starts_with(says), "{told:?}");
}

#[test]
fn a_stopped_primary_is_started_unless_somebody_is_ahead_of_it() {
    let mut world = World::running();
    world.node("a").server = Server::Stopped;
    let plan = world.plan().unwrap();
    assert!(plan.more);
    assert!(lines(&plan).contains(&"+ inventory-a: start, wait until it answers".to_owned()));

    world.server("b").facts.timeline = TimelineId::new(2).unwrap();
    let refusal = world.refusal();
    assert_eq!(refusal.kind(), ErrorKind::NotFound);
    assert!(refusal.detail_text().unwrap().contains("b is already on timeline 2"), "{refusal:?}");
}

#[test]
fn an_unknown_node_may_be_the_primary_so_nothing_is_planned() {
    let mut world = World::running();
    world.node("a").server = Server::Unknown { why: "it did not answer within 2 s".to_owned() };
    let refusal = world.refusal();
    assert_eq!(refusal.kind(), ErrorKind::NotFound);
    assert!(refusal.detail_text().unwrap().contains("a may be the primary: it did not answer within 2 s"));
}

#[test]
fn an_unknown_standby_is_left_alone_and_told() {
    let mut world = World::running();
    world.node("c").server = Server::Unknown { why: "it did not answer within 2 s".to_owned() };
    let plan = world.plan().unwrap();
    assert!(plan.is_empty());
    assert_eq!(plan.notes, ["inventory-c is left as it is: unknown, it did not answer within 2 s"]);
}

#[test]
fn a_directory_that_no_marker_claims_is_refused_and_named() {
    let mut world = World::unborn();
    world.node("b").directory = Directory::Foreign { names: vec!["photos".to_owned()] };
    let refusal = world.refusal();
    assert_eq!((refusal.kind(), refusal.what()), (ErrorKind::Refused, "cannot use /srv/b: it is not empty"));
}

#[test]
fn every_obstacle_is_told_at_once() {
    let mut world = World::unborn();
    world.node("b").directory = Directory::Foreign { names: vec!["photos".to_owned()] };
    world.node("c").server = Server::Foreign { what: "something else listens there".to_owned() };
    assert_eq!(world.plan().unwrap_err().len(), 2);
}

#[test]
fn a_directory_whose_cluster_cannot_be_told_is_left_alone() {
    let mut world = World::running();
    let Directory::Cluster { control, .. } = &mut world.node("c").directory else { panic!() };
    *control = None;
    assert_eq!(world.refusal().what(), "cannot tell which cluster /srv/c holds");
}

#[test]
fn another_major_version_is_refused() {
    let mut world = World::running();
    let Directory::Cluster { version, .. } = &mut world.node("c").directory else { panic!() };
    *version = "14".to_owned();
    assert_eq!(world.refusal().what(), "cannot use /srv/c for inventory-c: it is of another major version");
}

#[test]
fn a_lost_data_directory_of_the_only_primary_is_never_made_anew() {
    let mut world = World::running();
    for name in ["a", "b", "c"] {
        world.node(name).server = Server::Stopped;
    }
    world.node("a").directory = Directory::Missing;
    let refusal = world.refusal();
    assert_eq!(refusal.kind(), ErrorKind::NotFound, "{refusal:?}");
}

#[test]
fn the_fingerprint_moves_with_roles_and_not_with_the_wal() {
    let mut world = World::running();
    let before = world.plan().unwrap().fingerprint;
    world.server("a").facts.role = ServerRole::Primary { written_lsn: Lsn::new(0x900_0000) };
    assert_eq!(world.plan().unwrap().fingerprint, before);
    world.node("c").server = Server::Stopped;
    assert_ne!(world.plan().unwrap().fingerprint, before);
}

const HASH: &str = "0123456789abcdef";
const PROFILE: &str = include_str!("../../topology/testdata/profile-1.json");

/// Declares backups, and sees the program and the repository as given.
fn with_backups(world: &mut World, installed: Installed, repository: RepositorySeen) {
    let herd = HERD.replace(
        "clusters:\n  inventory:\n",
        "repositories: {main: {url: file:///srv/repository}}\nclusters:\n  inventory:\n    backups: {repository: main}\n",
    );
    let herd = load_text(Path::new("/pgherd.yml"), &herd, Path::new("/")).unwrap();
    world.cluster = herd.cluster("inventory").unwrap().clone();
    world.archive = Some(ArchiveSeen {
        version: "0.1.0".to_owned(),
        hash: HASH.to_owned(),
        hosts: BTreeMap::from([(
            "local".to_owned(),
            ArchiveHost { installed, older: Vec::new(), repositories: reached(repository) },
        )]),
        primary: RecordSeen::Missing,
    });
}

/// The only repository, and nothing that it takes to open it.
fn reached(repository: RepositorySeen) -> Vec<Reached> {
    vec![Reached { access: AccessSeen::NotNeeded, repository }]
}

/// The repository's own name for itself.
const ID: &str = "0f3c";

fn ours() -> Installed {
    Installed::Build { hash: HASH.to_owned() }
}

fn ready() -> RepositorySeen {
    RepositorySeen::Ready { id: ID.to_owned(), systems: vec![system().to_string()] }
}

/// Everything is as declared, and WAL is archived.
fn archiving(installed: Installed, repository: RepositorySeen) -> World {
    let mut world = World::unborn();
    with_backups(&mut world, installed, repository);
    for name in ["a", "b", "c"] {
        world.make(name);
        let archive = Archive::of(&world.cluster, &world.places);
        let profile = Profile { archive, ..claim::read(PROFILE.as_bytes()).unwrap() };
        let own = world.cluster.node(name).unwrap();
        let peers = declared::peers(&world.cluster, own, &world.places.of_node(&world.cluster, own));
        let profile = Profile { port: own.port, peers, ..profile };
        let node = world.node(name);
        node.files.as_mut().unwrap().profile = Some(String::from_utf8(claim::write(&profile)).unwrap());
        node.profile = Some(profile);
    }
    world.archive.as_mut().unwrap().primary = RecordSeen::Says(record("a"));
    world
}

/// The primary record that names a node on the timeline that the world is on.
fn record(node: &str) -> PrimaryRecord {
    PrimaryRecord {
        format: 1,
        cluster: "inventory".to_owned(),
        system_identifier: system(),
        node: node.to_owned(),
        timeline: TimelineId::new(1).unwrap(),
        term: 1,
        since: jiff::Timestamp::UNIX_EPOCH,
        operation: "7f3a".to_owned(),
    }
}

#[test]
fn a_primary_that_its_record_does_not_name_is_recorded() {
    let mut world = archiving(ours(), ready());
    world.archive.as_mut().unwrap().primary = RecordSeen::Says(record("b"));
    let plan = world.plan().unwrap();
    assert_eq!(lines(&plan), ["~ inventory-a: record it as primary in repository main"]);
    let reason = plan.stages[0][0].reason.as_deref();
    assert_eq!(reason, Some("it says b, timeline 1 → a, timeline 1"));
    let other = PrimaryRecord { system_identifier: SystemIdentifier::new(8).unwrap(), ..record("a") };
    world.archive.as_mut().unwrap().primary = RecordSeen::Says(other);
    let plan = world.plan().unwrap();
    let reason = plan.stages[0][0].reason.as_deref();
    assert_eq!(reason, Some("it says a of an earlier cluster, system identifier 8 → a, timeline 1"));
    world.archive.as_mut().unwrap().primary = RecordSeen::Missing;
    assert_eq!(lines(&world.plan().unwrap()), ["+ inventory-a: record it as primary in repository main"]);
}

#[test]
fn a_stopped_primary_is_not_started_while_another_node_is_recorded() {
    let mut world = archiving(ours(), ready());
    for name in ["a", "b", "c"] {
        world.stop(name);
    }
    assert!(lines(&world.plan().unwrap()).iter().any(|line| line.starts_with("+ inventory-a: start")));
    world.archive.as_mut().unwrap().primary = RecordSeen::Says(record("b"));
    let errors = world.plan().unwrap_err();
    assert_eq!(errors[0].what(), "cannot start inventory-a as a primary: inventory-b is recorded as primary");
    let timeline = TimelineId::new(7).unwrap();
    world.archive.as_mut().unwrap().primary = RecordSeen::Says(PrimaryRecord {
        system_identifier: SystemIdentifier::new(8).unwrap(),
        timeline,
        ..record("b")
    });
    assert!(world.plan().is_ok());
}

#[test]
fn a_fenced_node_is_left_stopped_and_no_primary_is_made_of_it() {
    let mut world = World::running();
    let mark = claim::read(include_bytes!("../../topology/testdata/fenced-1.json")).unwrap();
    world.stop("c");
    world.node("c").fence = Fence::Fenced(mark);
    let plan = world.plan().unwrap();
    assert_eq!(lines(&plan), Vec::<String>::new());
    assert!(
        plan.notes
            .iter()
            .any(|note| note.starts_with("inventory-c is left stopped: it is fenced since 2026-11-22")),
        "{:?}",
        plan.notes
    );
    let fence = world.node("c").fence.clone();
    world.stop("a");
    world.node("a").fence = fence;
    let errors = world.plan().unwrap_err();
    assert_eq!(errors[0].what(), "cannot tell which node of inventory is primary");
    assert!(errors[0].detail_text().unwrap().contains("a is fenced since"), "{:?}", errors[0]);
    assert!(errors[0].hint_text().unwrap().contains("pgherd unfence inventory-a"), "{:?}", errors[0]);
}

#[test]
fn other_nodes_that_come_are_told_to_the_start_guard() {
    let mut world = archiving(ours(), ready());
    world.cluster.postgres.service = Service::Systemd;
    let plan = world.plan().unwrap();
    let change = plan.steps().find(|step| step.text == "write profile.json, reload").unwrap();
    assert_eq!(change.subject, "inventory-b");
    assert_eq!(change.reason.as_deref(), Some("profile: other nodes none → a, c"));
    assert!(!lines(&plan).iter().any(|line| line.contains("see it arrive")), "{:?}", lines(&plan));
}

#[test]
fn a_cluster_is_born_into_its_repository_and_opened_when_wal_has_arrived() {
    let mut world = World::unborn();
    with_backups(&mut world, Installed::Missing, RepositorySeen::Missing { directory: false });
    let steps = kinds(&world.plan().unwrap());
    assert_eq!(steps[..3], ["install on local", "repository main", "initdb a"]);
    let at = |step: &str| steps.iter().position(|found| found == step).unwrap();
    assert_eq!([at("archive a") + 1, at("record a") + 1], [at("record a"), at("pivot")]);
}

#[test]
fn a_herd_that_archives_as_declared_needs_nothing() {
    let plan = archiving(ours(), ready()).plan().unwrap();
    assert!(plan.is_empty(), "{:?}", lines(&plan));
    assert_eq!(plan.notes, Vec::<String>::new());
}

#[test]
fn switching_archiving_on_restarts_every_node_and_is_proved() {
    let mut world = archiving(ours(), ready());
    for name in ["a", "b", "c"] {
        let node = world.node(name);
        let files = node.files.as_mut().unwrap();
        for file in [&mut files.shared, &mut files.node] {
            let kept: String = file
                .as_ref()
                .unwrap()
                .split_inclusive('\n')
                .filter(|line| !line.starts_with("archive_") && !line.starts_with("restore_"))
                .collect();
            *file = Some(kept);
        }
        let profile: Profile = claim::read(files.profile.as_ref().unwrap().as_bytes()).unwrap();
        let before = claim::write(&Profile { archive: None, ..profile });
        files.profile = Some(String::from_utf8(before).unwrap());
        let mode = world.server(name).settings.get_mut("archive_mode").unwrap();
        "off".clone_into(&mut mode.setting);
        "off".clone_into(&mut mode.shown);
    }
    let plan = world.plan().unwrap();
    assert_eq!(plan.restarts().len(), 3, "{:?}", lines(&plan));
    let step = plan.restarts()[0];
    assert_eq!(step.text, "write profile.json, pgherd.conf, pgherd.node.conf, restart");
    assert_eq!(
        step.reason.as_deref().unwrap().lines().collect::<Vec<_>>(),
        [
            "profile: repository none → main (file:///srv/repository)",
            "archive_mode (not there) → on",
            "archive_command (not there) → /usr/local/lib/pgherd/pgherd wal push --profile /etc/pgherd/nodes/inventory-b/profile.json \"%p\"",
            "restore_command (not there) → /usr/local/lib/pgherd/pgherd wal fetch --profile /etc/pgherd/nodes/inventory-b/profile.json \"%f\" \"%p\"",
            "archive_mode off → on",
        ]
    );
    let shown = lines(&plan);
    assert_eq!(
        shown[3..],
        [
            ". inventory-a: switch the WAL segment, see it arrive in repository main",
            ". inventory: keep what is done so far",
            ". inventory: write a row through the primary's port, read it on every standby",
        ]
    );
}

#[test]
fn another_build_is_a_step_and_what_it_archives_is_seen() {
    let other = Installed::Build { hash: "fedcba9876543210".to_owned() };
    let plan = archiving(other, ready()).plan().unwrap();
    assert_eq!(
        lines(&plan),
        [
            "~ local: install pgherd 0.1.0 (0123456789abcdef) in /usr/local/lib/pgherd",
            ". inventory-a: switch the WAL segment, see it arrive in repository main",
        ]
    );
    let step = &plan.stages[0][0];
    assert_eq!(
        step.reason.as_deref(),
        Some("/usr/local/lib/pgherd/pgherd is fedcba9876543210, another build")
    );
    let ApplyStep::Install { before, .. } = &step.step else { panic!("{step:?}") };
    assert_eq!(before.as_deref(), Some("fedcba9876543210/pgherd"));
}

#[test]
fn what_nobody_needs_goes_last_and_alone_if_nothing_else_is_to_do() {
    let older = |hash: &str, mib: u64| Copy {
        hash: hash.to_owned(),
        size: ByteCount(mib << 20),
        used: Timestamp::UNIX_EPOCH,
        is_whole: true,
    };
    let with = |installed: Installed, copies: &[Copy]| {
        let mut world = archiving(installed, ready());
        world.archive.as_mut().unwrap().hosts.get_mut("local").unwrap().older = copies.to_vec();
        world.plan().unwrap()
    };
    let plan = with(ours(), &[older("8c1f5e9a01234567", 11)]);
    assert_eq!(lines(&plan), ["- local: remove 1 older build of pgherd (8c1f5e…, 11 MiB)"]);
    assert!(plan.steps().all(|step| step.step.is_common()));
    let two = [older("8c1f5e9a01234567", 11), older("a07b11223344aabb", 12)];
    let plan = with(Installed::Build { hash: "fedcba9876543210".to_owned() }, &two);
    assert_eq!(
        lines(&plan),
        [
            "~ local: install pgherd 0.1.0 (0123456789abcdef) in /usr/local/lib/pgherd",
            ". inventory-a: switch the WAL segment, see it arrive in repository main",
            "- local: remove 2 older builds of pgherd (8c1f5e…, a07b11…, 23 MiB)",
        ]
    );
}

#[test]
fn a_repository_that_was_there_is_never_made_anew() {
    for seen in [
        RepositorySeen::Missing { directory: false },
        RepositorySeen::Unknown { why: "permission denied".to_owned() },
    ] {
        let plan = archiving(ours(), seen).plan().unwrap();
        assert!(plan.is_empty(), "{:?}", lines(&plan));
        assert!(plan.notes[0].contains("is /srv/repository mounted?"), "{:?}", plan.notes);
    }
}

#[test]
fn what_is_no_repository_is_refused_before_anything_is_made() {
    let overlaps = RepositorySeen::Overlaps { path: "/srv/repository/tablespace".into() };
    let foreign = RepositorySeen::Foreign { names: vec!["photos".to_owned()] };
    let unknown = RepositorySeen::Unknown { why: "permission denied".to_owned() };
    for (seen, kind) in
        [(overlaps, ErrorKind::Refused), (foreign, ErrorKind::Refused), (unknown, ErrorKind::NotFound)]
    {
        let mut world = World::unborn();
        with_backups(&mut world, Installed::Missing, seen);
        assert_eq!(world.refusal().kind(), kind);
    }
    let mut world = World::unborn();
    with_backups(&mut world, Installed::Foreign, RepositorySeen::Missing { directory: false });
    assert_eq!(
        world.refusal().what(),
        "cannot install pgherd on local: /usr/local/lib/pgherd/pgherd is not a link"
    );
}

#[test]
fn a_repository_that_is_another_one_on_another_host_is_refused() {
    let with = |repository| {
        let mut world = archiving(ours(), ready());
        let hosts = &mut world.archive.as_mut().unwrap().hosts;
        hosts.insert(
            "other".to_owned(),
            ArchiveHost { installed: ours(), older: Vec::new(), repositories: reached(repository) },
        );
        world
    };
    assert!(with(ready()).plan().unwrap().is_empty());
    let another = RepositorySeen::Ready { id: "5e1f".to_owned(), systems: Vec::new() };
    assert_eq!(
        with(another).refusal().what(),
        "/srv/repository is not the same directory on host other as on host local"
    );
    // One that is not there is not mounted, once nodes archive to it; before, it is not shared.
    let mut unborn = World::unborn();
    with_backups(&mut unborn, ours(), ready());
    let missing = ArchiveHost {
        installed: ours(),
        older: Vec::new(),
        repositories: reached(RepositorySeen::Missing { directory: true }),
    };
    unborn.archive.as_mut().unwrap().hosts.insert("other".to_owned(), missing);
    assert_eq!(
        unborn.refusal().what(),
        "/srv/repository is not the same directory on host other as on host local"
    );
}

#[test]
fn wal_of_another_cluster_of_the_same_name_is_told() {
    let systems = vec!["7000000000000000001".to_owned(), system().to_string()];
    let plan = archiving(ours(), RepositorySeen::Ready { id: ID.to_owned(), systems }).plan().unwrap();
    assert!(plan.is_empty());
    assert!(plan.notes[0].contains("system identifier 7000000000000000001;"), "{:?}", plan.notes);
}

#[test]
fn a_rotation_keeps_the_old_password_until_nothing_is_taken_back() {
    let mut world = World::running();
    world.rotate = Some(Purpose::Replication);
    let plan = world.plan().unwrap();
    assert_eq!(
        kinds(&plan),
        ["stage the standbys", "rotate the standbys on a,b,c", "pivot", "forget the standbys", "prove"]
    );
}

#[test]
fn a_rotation_is_refused_while_a_nodes_files_cannot_be_reached() {
    let mut world = World::running();
    world.rotate = Some(Purpose::Replication);
    world.observed.nodes[1].files = None;
    assert_eq!(
        world.refusal().what(),
        "cannot rotate the password of replicator: the files of inventory-b cannot be reached"
    );
}

/// A cluster that runs and that nobody made: `a` with a standby `b` under a name of its own.
fn found() -> World {
    let mut world = World::running();
    for name in ["a", "b", "c"] {
        let seen = world.node(name);
        seen.marker = Claim::None;
        let files = seen.files.as_mut().unwrap();
        (files.shared, files.node) = (None, None);
        files.postgresql_conf = "# mine\n".to_owned();
        files.pg_hba = "local all postgres peer\n".to_owned();
        files.pg_ident = String::new();
        let node = world.cluster.node(name).unwrap();
        let candidate = Candidate {
            logs_in: false,
            listens: Some(Listens {
                pid: 4711,
                port: node.port,
                socket_directory: world.places.node(&format!("inventory-{name}")).socket,
            }),
            told: Ok(Told {
                superuser: true,
                config_file: node.data_directory.join("postgresql.conf"),
                hba_file: node.data_directory.join("pg_hba.conf"),
                ident_file: node.data_directory.join("pg_ident.conf"),
                wal_level: "replica".to_owned(),
            }),
            manager: Manager::PgCtl,
            claimed_by: None,
            links: Vec::new(),
        };
        world.adoption.candidates.insert(name.to_owned(), candidate);
        world.adoption.asked.insert(name.to_owned());
    }
    world.fixed.adopted = world.adoption.asked.clone();
    world.cluster = world.cluster.with_adopted(&world.fixed.adopted);
    world
}

fn candidate<'w>(world: &'w mut World, name: &str) -> &'w mut Candidate {
    world.adoption.candidates.get_mut(name).unwrap()
}

#[test]
fn what_runs_is_adopted_before_anything_is_compared_and_nothing_restarts() {
    let mut world = found();
    world.runs_with("max_connections", "50");
    for node in ["a", "b", "c"] {
        world.server(node).facts.synchronous_standby_names = "FIRST 1 (s1)".to_owned();
    }
    let plan = world.plan().unwrap();
    let adopts = |step: &PlannedStep| matches!(step.step, ApplyStep::Adopt { .. });
    assert_eq!(plan.stages[0].iter().filter(|step| adopts(step)).count(), 3);
    assert!(!plan.stages[1..].iter().flatten().any(adopts));
    assert_eq!(plan.restarts(), Vec::<&PlannedStep>::new());
    assert!(plan.more);
    let written: Vec<&str> = plan
        .steps()
        .filter_map(
            |step| if let ApplyStep::Configure { files, .. } = &step.step { Some(files) } else { None },
        )
        .flatten()
        .map(|change| change.after.as_str())
        .collect();
    // What waits for a restart is in no file, and what pgherd would derive is not either.
    assert!(written.iter().all(|text| !text.contains("max_connections")), "{written:?}");
    assert!(written.iter().all(|text| !text.contains("cluster_name") && !text.contains("logging_collector")));
    assert_eq!(
        plan.notes.iter().filter(|note| note.contains("max_connections 50 → 60")).count(),
        3,
        "{:?}",
        plan.notes
    );
    // Old and new names count until all standbys have theirs.
    let names: Vec<&&str> = written
        .iter()
        .filter(|text| text.contains("FIRST 1 (s1, \"inventory-b\", \"inventory-c\")"))
        .collect();
    assert_eq!(names.len(), 1, "{written:?}");
}

#[test]
fn what_is_not_asked_for_is_refused_and_the_flag_is_named() {
    let mut world = found();
    world.adoption = Adoption::default();
    let errors = world.plan().unwrap_err();
    assert_eq!(errors.len(), 3);
    assert!(errors[0].hint_text().unwrap().contains("pgherd apply --adopt inventory-a"));
}

#[test]
fn what_is_declared_wrongly_is_said_with_what_to_declare() {
    let refused = |change: &dyn Fn(&mut World)| {
        let mut world = found();
        change(&mut world);
        let mut errors = world.plan().unwrap_err();
        assert_eq!(errors[0].kind(), ErrorKind::Refused);
        errors.remove(0)
    };
    let error = refused(&|world| candidate(world, "a").listens.as_mut().unwrap().port = 5999);
    assert_eq!(error.hint_text(), Some("Declare port: 5999"));
    let error =
        refused(&|world| candidate(world, "a").claimed_by = Some("orders-a of herd other".to_owned()));
    assert_eq!(error.what(), "cannot adopt inventory-a: its data directory is another node's");
    let error = refused(&|world| {
        candidate(world, "a").manager = Manager::Debian { version: "15".to_owned(), name: "main".to_owned() };
        world.cluster.postgres.service = Service::Systemd;
    });
    assert_eq!(error.hint_text(), Some("Declare service: debian"));
    let error = refused(&|world| {
        let files = world.node("a").files.as_mut().unwrap();
        files.postgresql_conf = "primary_conninfo = 'host=a password=secret'\n".to_owned();
    });
    assert_eq!(error.what(), "cannot adopt inventory-a: its postgresql.conf holds a password");
    let error = refused(&|world| {
        let row = world.server("a").settings.get_mut("max_connections").unwrap();
        "command line".clone_into(&mut row.source);
    });
    assert_eq!(error.what(), "cannot adopt inventory-a: settings of it are on its command line only");
}

#[test]
fn a_standby_that_the_primary_does_not_know_is_somebody_elses() {
    let mut world = found();
    world.server("a").senders.pop();
    let error = world.refusal();
    assert_eq!(error.what(), "cannot adopt inventory-c: it is a standby of another primary than inventory-a");
    let mut world = found();
    world.server("b").facts.system_identifier = SystemIdentifier::new(7).unwrap();
    assert_eq!(world.refusal().what(), "cannot adopt inventory: its nodes are not one cluster");
}

#[test]
fn a_unit_of_somebody_elses_is_no_reason_for_one_of_ours() {
    let mut world = found();
    world.cluster.postgres.service = Service::Systemd;
    for name in ["a", "b", "c"] {
        candidate(&mut world, name).manager = Manager::Systemd("pg.service".to_owned());
    }
    let plan = world.plan().unwrap();
    assert!(!plan.steps().any(|step| matches!(step.step, ApplyStep::Unit { .. })));
    let units = plan.steps().filter(
        |step| matches!(&step.step, ApplyStep::Adopt { unit: Some(unit), .. } if unit == "pg.service"),
    );
    assert_eq!(units.count(), 3);
}

/// A cluster on a host with an address, which runs as declared.
fn reached_by_address(tls: bool) -> World {
    let mut world = World::unborn();
    let reach = Reach::Here { address: "10.0.0.9".to_owned() };
    world.cluster.hosts = vec![Host { name: "local".to_owned(), region: "r".to_owned(), reach }];
    world.cluster.postgres.tls = tls.then(|| Tls::Own { herd: "shop".to_owned() });
    for name in ["a", "b", "c"] {
        world.make(name);
    }
    world
}

fn certificates(authority: AuthoritySeen, nodes: &[&str]) -> Option<TlsSeen> {
    let nodes = nodes.iter().map(|node| ((*node).to_owned(), "there is no certificate yet".to_owned()));
    Some(TlsSeen { authority: Some(authority), nodes: nodes.collect() })
}

#[test]
fn tls_is_offered_by_the_primary_then_used_by_standbys_and_only_then_forced() {
    let mut world = reached_by_address(false);
    // What a server that does not speak TLS says of itself.
    for node in ["a", "b", "c"] {
        world.server(node).settings.insert("ssl".to_owned(), setting("ssl", "off", ""));
    }
    world.cluster.postgres.tls = Some(Tls::Own { herd: "shop".to_owned() });
    world.tls = certificates(AuthoritySeen::Missing, &["a", "b", "c"]);
    world.poolers.insert("local".to_owned(), PoolerDrift::Right);
    let plan = world.plan().unwrap();
    assert_eq!(
        kinds(&plan),
        [
            "authority of shop",
            "certificate a",
            "certificate b",
            "certificate c",
            "configure a: ssl",
            "configure b: ssl",
            "configure c: ssl",
            "pivot",
            "configure a: pg_hba.conf",
            "configure b: pg_hba.conf",
            "configure c: pg_hba.conf",
            "prove",
        ]
    );
    assert!(plan.restarts().is_empty());
    let hba = |step: &PlannedStep| {
        let ApplyStep::Configure { files, .. } = &step.step else { return None };
        files.iter().find(|file| file.path.ends_with("pg_hba.conf")).map(|file| file.after.clone())
    };
    let written: Vec<String> = plan.steps().filter_map(hba).collect();
    assert_eq!(written.len(), 3);
    assert!(
        written[0].contains("hostssl replication  replicator    10.0.0.9/32    scram-sha-256"),
        "{}",
        written[0]
    );
    assert!(
        written[0].contains("host    replication  replicator    127.0.0.1/32    scram-sha-256"),
        "{}",
        written[0]
    );
}

#[test]
fn another_authority_is_not_made_where_somebody_believes_the_first_one() {
    let mut world = reached_by_address(true);
    world.tls = certificates(AuthoritySeen::Missing, &["a", "b", "c"]);
    let error = world.refusal();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(error.what(), "the certificate authority of shop is not on this machine");
    assert!(error.hint_text().unwrap().contains("Copy /var/lib/pgherd/authority/shop from"), "{error:?}");
}

#[test]
fn whoever_sets_ssl_without_tls_keeps_it() {
    let mut world = World::unborn();
    for (name, value) in [("ssl", "on"), ("ssl_cert_file", "/etc/ssl/own.pem")] {
        world.cluster.postgres.settings.insert(name.to_owned(), value.to_owned());
    }
    for name in ["a", "b", "c"] {
        world.make(name);
    }
    assert!(world.plan().unwrap().is_empty());
}

#[test]
fn tls_is_served_until_nobody_needs_it_any_more() {
    let mut world = reached_by_address(true);
    world.cluster.postgres.tls = None;
    let plan = world.plan().unwrap();
    let steps = kinds(&plan);
    assert_eq!(
        steps,
        [
            "configure a: pg_hba.conf",
            "configure b: primary_conninfo",
            "configure c: primary_conninfo",
            "pivot",
            "configure a: ssl",
            "configure b: ssl",
            "configure c: ssl",
            "prove",
        ]
    );
}

#[test]
fn a_cluster_with_tls_as_declared_has_nothing_to_do_and_a_certificate_is_renewed_alone() {
    let mut world = reached_by_address(true);
    world.tls = certificates(AuthoritySeen::Right, &[]);
    assert!(world.plan().unwrap().is_empty());
    world.tls = certificates(AuthoritySeen::Right, &["b"]);
    let plan = world.plan().unwrap();
    assert_eq!(kinds(&plan), ["certificate b"]);
    assert!(plan.restarts().is_empty());
}

/// A cluster with a pooler that is as declared, and servers with room for 20 connections.
fn pooled() -> World {
    let poolers = "poolers: {hosts: [local], pools: {rw: {to: primary, size: 12}, ro: {to: standbys, size: 8, of: [b, c]}}}
    ports: {pooler: 6441}
    schemas: {inventory: {owner: inventory_owner, write: [app]}}
    roles: {auditor: {password: {env: PW}}, app: {password: {env: PW}, pools: [rw, ro]}}";
    let herd = HERD.replace("poolers: none", poolers).replace("max_connections: 60, ", "");
    let mut world = World::unborn();
    let herd = load_text(Path::new("/pgherd.yml"), &herd, Path::new("/")).unwrap();
    world.cluster = herd.cluster("inventory").unwrap().clone();
    for name in ["a", "b", "c"] {
        world.make(name);
        let row = setting("max_connections", "20", "/etc/own.conf");
        world.server(name).settings.insert(row.name.clone(), row);
    }
    world.poolers.insert("local".to_owned(), PoolerDrift::Right);
    world
}

fn resized() -> PoolerDrift {
    PoolerDrift::Differs { what: vec!["pool_size 10 -> 12".to_owned()], restart: false, connections: true }
}

#[test]
fn a_plan_that_changes_pools_or_nodes_says_so_and_adds_connections_up() {
    let mut world = pooled();
    let plan = world.plan().unwrap();
    assert!(plan.is_empty(), "{:?}", lines(&plan));
    assert_eq!(
        plan.warnings,
        [
            "role auditor connects past the poolers and has no limit: its connections are in no budget; give it \"connections\""
        ]
    );
    let budget = plan.budget.unwrap();
    assert!(!budget.changes);
    let most: Vec<String> = at_most(&budget.layouts)
        .iter()
        .map(|(layout, node)| format!("{} {} {}/{}", layout.name, node.node, node.demand, node.cap()))
        .collect();
    assert_eq!(most, ["as planned a 12/17", "b primary b 12/17", "c primary c 12/17"]);

    world.poolers.insert("local".to_owned(), resized());
    assert!(world.plan().unwrap().budget.unwrap().changes);
    let other = vec!["max_client_conn 5 -> 50".to_owned()];
    let other = PoolerDrift::Differs { what: other, restart: false, connections: false };
    world.poolers.insert("local".to_owned(), other);
    let plan = world.plan().unwrap();
    assert!(!plan.is_empty() && !plan.budget.unwrap().changes);

    world.poolers.insert("local".to_owned(), PoolerDrift::Right);
    world.node("c").server = Server::Stopped;
    world.node("c").directory = Directory::Missing;
    assert!(world.plan().unwrap().budget.unwrap().changes);
}

#[test]
fn pools_that_a_server_has_no_room_for_are_refused_and_do_not_keep_a_standby_away() {
    let mut world = pooled();
    for name in ["a", "b", "c"] {
        world.server(name).settings.get_mut("max_connections").unwrap().setting = "14".to_owned();
    }
    world.poolers.insert("local".to_owned(), resized());
    let refused = world.refusal();
    assert_eq!(
        refused.what(),
        "cannot plan inventory: the pools may open 12 connections to inventory-a (as planned), it has 11 for them"
    );
    let why = refused.detail_text().unwrap();
    assert!(why.starts_with("rw 12; max_connections 14 - superuser_reserved_connections 3 - "), "{why}");

    world.poolers.insert("local".to_owned(), PoolerDrift::Right);
    world.node("c").server = Server::Stopped;
    let plan = world.plan().unwrap();
    assert!(!plan.is_empty());
    let told = "the pools may open 12 connections to inventory-a (as planned), it has 11 for them";
    assert!(plan.warnings.iter().any(|warning| warning.starts_with(told)), "{:?}", plan.warnings);
}
