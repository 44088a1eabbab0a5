use super::*;

fn put(uid: &str, name: &str) -> Mutation {
    Mutation::Put { uid: uid.into(), name: name.into(), body: b"{}".to_vec() }
}

#[test]
fn a_commit_is_whole_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = SqliteJournal::open(directory.path()).unwrap();
    journal.commit(1, &[put("a", "one")]).unwrap();
    let clash = [put("b", "two"), put("c", "one")];
    assert!(matches!(journal.commit(3, &clash), Err(StoreError::Disk { operation: "commit", .. })));
    let loaded = journal.load().unwrap();
    assert_eq!((loaded.version, loaded.records.len()), (1, 1), "nothing of the second commit");
}

#[test]
fn an_older_schema_is_migrated_and_a_newer_one_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atoll.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(MIGRATIONS[0]).unwrap();
    connection
        .execute_batch(
            "INSERT INTO sandboxes VALUES ('a', 'one', x'7b7d'); PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(connection);
    let mut journal = SqliteJournal::open(directory.path()).unwrap();
    assert_eq!(journal.load().unwrap().records, [("a".to_owned(), b"{}".to_vec())]);
    journal.commit(1, &[Mutation::Quarantine { uid: "a".into(), reason: "test".into() }]).unwrap();
    drop(journal);
    Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 4;").unwrap();
    match SqliteJournal::open(directory.path()).map(|_| ()) {
        Err(StoreError::Newer { found: 4, known: 3, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_damaged_database_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atoll.db");
    std::fs::write(&path, b"this is no database at all, but a file of another program".repeat(100))
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    match SqliteJournal::open(directory.path()).map(|_| ()) {
        Err(StoreError::Damaged { path: named, .. }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn only_the_owner_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let mut journal = SqliteJournal::open(&store).unwrap();
    journal.commit(1, &[put("a", "one")]).unwrap();
    for entry in std::fs::read_dir(&store).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
    assert_eq!(std::fs::metadata(&store).unwrap().permissions().mode() & 0o077, 0);
}
