use super::*;
use crate::target::Instance;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("run"), &dir.path().join("data")).unwrap();
    (dir, store)
}

/// A record of this very process: the one that is surely alive.
fn app(name: &str) -> App {
    let instance = Instance {
        name: name.to_owned(),
        root: HostPid(i32::try_from(std::process::id()).unwrap()),
        init: None,
        cgroup: None,
        processes: 1,
        total_micros: 1,
        phases: Vec::new(),
        warnings: Vec::new(),
        network: None,
        joined: None,
        ahead: None,
        point: None,
        resumed: None,
    };
    App::of_instance(&instance, vec!["true".to_owned()]).unwrap()
}

#[test]
fn records_come_back_and_go() {
    let (_dir, store) = store();
    store.put(&app("web")).unwrap();
    assert_eq!(store.get("web").unwrap().command, ["true"]);
    assert_eq!(store.list().unwrap().len(), 1);
    store.remove("web").unwrap();
    assert_eq!(store.get("web").unwrap_err().kind, Kind::NotFound);
    store.remove("web").unwrap();
}

#[test]
fn the_state_is_read_from_the_kernel() {
    let (dir, store) = store();
    let mut record = app("web");
    assert_eq!(record.state(), State::Running);
    assert_eq!(store.vacant("web").map_err(|e| e.kind), Ok(None));
    store.put(&record).unwrap();
    assert_eq!(store.vacant("web").unwrap_err().kind, Kind::Conflict);
    record.root_start_time += 1;
    assert_eq!(record.state(), State::Exited, "another process under this number");
    record.appshot = Some(dir.path().to_owned());
    assert_eq!(record.state(), State::Asleep);
    assert_eq!(record.target().unwrap_err().kind, Kind::Conflict);
}

#[test]
fn a_record_of_a_later_instance_is_left_alone() {
    let (_dir, store) = store();
    let first = app("web");
    let mut second = first.clone();
    second.root_start_time += 1;
    store.put(&second).unwrap();
    assert!(store.update(&first, |a| a.exit = Some(1)).unwrap().is_none());
    assert!(store.update(&second, |a| a.exit = Some(2)).unwrap().is_some());
    assert_eq!(store.get("web").unwrap().exit, Some(2));
}

#[test]
fn targets_are_found_by_name_and_by_pid() {
    let (_dir, store) = store();
    let own = std::process::id().to_string();
    assert!(matches!(store.target(&own).unwrap(), Target::Pid(_)));
    store.put(&app("web")).unwrap();
    assert!(matches!(store.target(&own).unwrap(), Target::App { .. }));
    assert!(matches!(store.target("web").unwrap(), Target::App { .. }));
    assert_eq!(store.target("0").unwrap_err().kind, Kind::NotFound);
    let fix = store.target("wbe").unwrap_err().fix.unwrap();
    assert!(fix.contains("\"web\"") || fix.contains("ps"), "{fix}");
    let near = store.target("weeb").unwrap_err().fix.unwrap();
    assert!(near.contains("\"web\""), "{near}");
}

#[test]
fn one_operation_at_a_time() {
    let (_dir, store) = store();
    let held = store.try_lock("web").unwrap();
    assert_eq!(store.try_lock("web").unwrap_err().kind, Kind::Conflict);
    assert!(store.try_lock("other").is_ok());
    drop(held);
    assert!(store.try_lock("web").is_ok());
    assert_eq!(store.run_dir.join("locks").read_dir().unwrap().count(), 0);
}

#[test]
fn changes_of_a_record_do_not_race() {
    let (_dir, store) = store();
    let record = app("web");
    store.put(&record).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let add = |app: &mut App| app.started_unix_ms += 1;
                    store.update(&record, add).unwrap().unwrap();
                }
            });
        }
    });
    let added = store.get("web").unwrap().started_unix_ms - record.started_unix_ms;
    assert_eq!(added, 200);
}

#[test]
fn a_sealed_successor_replaces_the_old_appshot() {
    let (_dir, store) = store();
    let first = store.new_appshot_path("web", false).unwrap();
    std::fs::create_dir(&first).unwrap();
    std::fs::write(first.join("manifest"), "old").unwrap();
    assert_eq!(store.new_appshot_path("web", false).unwrap_err().kind, Kind::Conflict);
    let next = store.new_appshot_path("web", true).unwrap();
    std::fs::create_dir(&next).unwrap();
    std::fs::write(next.join("manifest"), "new!").unwrap();
    assert_eq!(store.appshots().unwrap()[0].bytes, 3, "the old one until it is settled");
    drop(store.try_lock("web").unwrap());
    assert_eq!(store.appshots().unwrap()[0].bytes, 4);
    assert_eq!(store.resolve_appshot("web").unwrap(), first);
    assert_eq!(store.data_dir.join("appshots").read_dir().unwrap().count(), 1);
}

#[test]
fn a_lone_appshot_is_an_app_asleep() {
    let (_dir, store) = store();
    std::fs::write(store.appshot_path("web"), "x").unwrap();
    let view = store.view("web").unwrap();
    assert_eq!((view.state, view.root), (State::Asleep, None));
    store.remove_appshot("web").unwrap();
    assert_eq!(store.remove_appshot("web").unwrap_err().kind, Kind::NotFound);
    assert!(store.views().unwrap().is_empty());
}

#[test]
fn a_damaged_record_is_told_not_ignored() {
    let (_dir, store) = store();
    std::fs::write(store.record_path("web"), "{").unwrap();
    assert_eq!(store.get("web").unwrap_err().kind, Kind::Failed);
}

#[test]
fn records_of_another_boot_are_swept() {
    let (_dir, store) = store();
    store.put(&app("web")).unwrap();
    let again = || Store::open(&store.run_dir, &store.data_dir).unwrap();
    assert_eq!(again().list().unwrap().len(), 1);
    std::fs::write(store.record_path("torn"), "").unwrap();
    std::fs::write(store.run_dir.join("boot"), "another").unwrap();
    assert!(again().list().unwrap().is_empty());
    store.put(&app("web")).unwrap();
    assert_eq!(again().list().unwrap().len(), 1);
}
