use super::*;

fn sandbox(name: &str) -> rest::Sandbox {
    let uid = format!(
        "{:016x}",
        name.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte))
    );
    rest::Sandbox {
        id: name.into(),
        uid,
        resource_version: 0,
        metadata: rest::Metadata::default(),
        spec: rest::SandboxSpec::default(),
        status: rest::SandboxStatus { phase: "Pending".into(), ..Default::default() },
        created_at: crate::time::now_text(),
        updated_at: String::new(),
    }
}

fn event(message: &str) -> NewEvent {
    NewEvent {
        warning: false,
        reason: "Created",
        object: "sandbox/a".into(),
        message: message.into(),
    }
}

fn open(directory: &Path) -> Store {
    open_with(directory, Limits::default())
}

fn open_with(directory: &Path, limits: Limits) -> Store {
    let (store, bad) = Store::open(directory, limits).unwrap();
    assert_eq!(bad, []);
    store
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart_with_growing_versions() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let a = store.commit(Write::Create(sandbox("a")), vec![event("made")]).await.unwrap().unwrap();
    store.commit(Write::Create(sandbox("b")), Vec::new()).await.unwrap();
    store
        .commit(Write::Delete { name: "b".into(), uid: sandbox("b").uid }, Vec::new())
        .await
        .unwrap();
    let (_, version) = store.sandboxes();
    close(store).await;
    let store = open(directory.path());
    assert_eq!(store.sandboxes().0, [a]);
    assert_eq!(store.events().0.len(), 1);
    assert_eq!(store.sandboxes().1, version, "the deletion's version is remembered");
    let c = store.commit(Write::Create(sandbox("c")), Vec::new()).await.unwrap().unwrap();
    assert_eq!(c.resource_version, version + 1);
}

async fn close(store: Store) {
    store.close().await;
}

#[tokio::test]
async fn a_closed_store_takes_nothing_more() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.close().await;
    let refused = store.commit(Write::Create(sandbox("a")), Vec::new()).await;
    assert!(matches!(refused, Err(StoreError::Closed)));
    store.close().await;
}

#[tokio::test]
async fn names_are_unique_also_within_one_group() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let creates = (0..50).map(|_| store.commit(Write::Create(sandbox("a")), Vec::new()));
    let results = futures::future::join_all(creates).await;
    assert_eq!(results.iter().filter(|it| it.is_ok()).count(), 1);
    assert!(
        results
            .iter()
            .filter(|it| it.is_err())
            .all(|it| matches!(it, Err(StoreError::AlreadyExists { .. })))
    );
    let other_life = Write::Delete { name: "a".into(), uid: sandbox("b").uid };
    assert!(matches!(store.commit(other_life, Vec::new()).await, Err(StoreError::NotFound { .. })));
    let unknown = store.commit(Write::Update(sandbox("zzz")), Vec::new()).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn a_watch_sees_every_change_once_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut watch = store.watch(0).unwrap();
    let mut resumed = None;
    for index in 0..20 {
        store
            .commit(Write::Create(sandbox(&format!("s{index}"))), vec![event("made")])
            .await
            .unwrap();
        if index == 9 {
            resumed = Some(store.watch(store.sandboxes().1).unwrap());
        }
    }
    let mut seen = Vec::new();
    while seen.len() < 40 {
        seen.extend(watch.next().await.unwrap().unwrap());
    }
    let versions: Vec<u64> = seen.iter().map(|it| it.version).collect();
    assert_eq!(versions, (1..=40).collect::<Vec<_>>());
    let rest = resumed.unwrap().next().await.unwrap().unwrap();
    assert_eq!((rest[0].version, rest.len()), (21, 20));
}

#[tokio::test]
async fn a_watch_that_is_too_far_behind_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(directory.path(), Limits { history: 5, events: 10, ..Limits::default() });
    let mut behind = store.watch(0).unwrap();
    for index in 0..8 {
        store.commit(Write::Create(sandbox(&format!("s{index}"))), Vec::new()).await.unwrap();
    }
    assert_eq!(behind.next().await.map(|_| ()), Err(Gone { version: 0 }));
    assert!(store.watch(2).is_err());
    assert!(store.watch(3).is_ok());
    assert!(store.watch(9).is_err(), "from the future: of another store");
}

#[tokio::test]
async fn large_records_are_kept_for_fewer_changes() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { history_bytes: 100_000, ..Limits::default() };
    let store = open_with(directory.path(), limits);
    for index in 0..20 {
        let mut large = sandbox(&format!("s{index}"));
        large.metadata.labels.insert("l".into(), "x".repeat(10_000));
        store.commit(Write::Create(large), Vec::new()).await.unwrap();
    }
    assert!(store.watch(5).is_err(), "a hundred kilobytes hold no fifteen of them");
    let kept = store.watch(12).unwrap().next().await.unwrap().unwrap();
    assert_eq!(kept.iter().map(|it| it.version).collect::<Vec<_>>(), (13..=20).collect::<Vec<_>>());
    assert_eq!(store.sandboxes().0.len(), 20, "only changes are forgotten");
}

#[tokio::test]
async fn events_are_bounded_in_memory_and_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let store =
        open_with(directory.path(), Limits { history: 1000, events: 20, ..Limits::default() });
    for index in 0..100 {
        store.commit(Write::EventsOnly, vec![event(&index.to_string())]).await.unwrap();
    }
    let count = store.events().0.len();
    assert!((10..=20).contains(&count), "{count}");
    assert_eq!(store.events().0.last().unwrap().message, "99");
    let kept = store.events().0;
    close(store).await;
    assert_eq!(open(directory.path()).events().0, kept);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_set_aside_and_the_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for name in ["a", "b", "c"] {
        store.commit(Write::Create(sandbox(name)), Vec::new()).await.unwrap();
    }
    close(store).await;
    let database = rusqlite::Connection::open(directory.path().join("atoll.db")).unwrap();
    database.execute("UPDATE sandboxes SET body = x'00ff' WHERE name = 'a'", []).unwrap();
    drop(database);
    let (store, bad) = Store::open(directory.path(), Limits::default()).unwrap();
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!(store.sandboxes().0.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    close(store).await;
    assert_eq!(Store::open(directory.path(), Limits::default()).unwrap().1, [], "told once");
    let database = rusqlite::Connection::open(directory.path().join("atoll.db")).unwrap();
    let kept: u32 =
        database.query_row("SELECT count(*) FROM quarantined", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 1, "nothing is thrown away");
}

#[tokio::test]
async fn a_record_of_a_newer_atoll_refuses_the_start_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.commit(Write::Create(sandbox("a")), Vec::new()).await.unwrap();
    close(store).await;
    let database = rusqlite::Connection::open(directory.path().join("atoll.db")).unwrap();
    let sql = "UPDATE sandboxes SET body = CAST(replace(CAST(body AS TEXT), '\"format\":1', '\"format\":9') AS BLOB)";
    assert_eq!(database.execute(sql, []).unwrap(), 1);
    drop(database);
    for _ in 0..2 {
        let refused = Store::open(directory.path(), Limits::default()).map(|_| ());
        assert!(matches!(refused, Err(StoreError::Newer { found: 9, .. })), "{refused:?}");
    }
}

/// A disk that is full from some moment on.
struct FullDisk(Arc<std::sync::atomic::AtomicBool>);

impl Journal for FullDisk {
    fn load(&mut self) -> Result<journal::Loaded, StoreError> {
        Ok(journal::Loaded::default())
    }

    fn commit(&mut self, _: u64, _: &[journal::Mutation]) -> Result<(), StoreError> {
        if self.0.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(StoreError::Disk {
                operation: "commit",
                path: "x".into(),
                message: "disk full".into(),
            });
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_the_disk_does_not_take_is_refused_and_never_seen() {
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (store, _) = Store::over(Box::new(FullDisk(Arc::clone(&full))), Limits::default()).unwrap();
    store.commit(Write::Create(sandbox("a")), Vec::new()).await.unwrap();
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    let refused = store.commit(Write::Create(sandbox("b")), vec![event("made")]).await;
    assert!(matches!(refused, Err(StoreError::Disk { .. })));
    let gone =
        store.commit(Write::Delete { name: "a".into(), uid: sandbox("a").uid }, Vec::new()).await;
    assert!(gone.is_err());
    assert_eq!((store.sandboxes().0.len(), store.version(), store.events().0.len()), (1, 1, 0));
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    let b = store.commit(Write::Create(sandbox("b")), Vec::new()).await.unwrap().unwrap();
    assert_eq!(b.resource_version, 2, "it goes on where it was");
}
