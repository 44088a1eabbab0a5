//! The journal on one machine: SQLite, write-ahead log, full sync at each commit.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, params};

use super::StoreError;
use super::journal::{Journal, Loaded, Mutation};

/// Steps from one schema version to the next; the number of steps is the version. Never change one that was released.
const MIGRATIONS: [&str; 3] = [
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
     INSERT INTO meta VALUES ('version', 0);
     CREATE TABLE sandboxes (uid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body BLOB NOT NULL) STRICT;
     CREATE TABLE events (version INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;",
    "CREATE TABLE quarantined (uid TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL, reason TEXT NOT NULL) STRICT;",
    "CREATE TABLE items (kind TEXT NOT NULL, uid TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
                         PRIMARY KEY (kind, uid), UNIQUE (kind, name)) STRICT;",
];

/// A SQLite database.
pub(crate) struct SqliteJournal {
    path: PathBuf,
    connection: Connection,
}

impl SqliteJournal {
    /// Opens or makes `atoll.db` in a directory, both for the owner only; migrates an older one.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("atoll.db");
        let disk = |operation| {
            let path = path.clone();
            move |error: std::io::Error| StoreError::Disk {
                operation,
                path,
                message: error.to_string(),
            }
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(disk("make its directory"))?;
        // SQLite gives its log and shared memory the mode of the database.
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        file.map_err(disk("open"))?;
        let connection =
            Connection::open(&path).map_err(|error| translate(&path, "open", &error))?;
        let mut journal = Self { path, connection };
        journal.prepare().and_then(|()| journal.migrate(&MIGRATIONS))?;
        Ok(journal)
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA locking_mode = EXCLUSIVE;";
        self.connection
            .execute_batch(pragmas)
            .map_err(|error| translate(&self.path, "open", &error))?;
        let verdict: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| translate(&self.path, "check", &error))?;
        if verdict == "ok" {
            Ok(())
        } else {
            Err(StoreError::Damaged { path: self.path.clone(), message: verdict })
        }
    }

    fn migrate(&mut self, migrations: &[&str]) -> Result<(), StoreError> {
        let failed = |error: &rusqlite::Error| translate(&self.path, "migrate", error);
        let found: u32 = self
            .connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(|error| failed(&error))?;
        let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
        if found > known {
            return Err(StoreError::Newer { path: self.path.clone(), found, known });
        }
        let transaction = self
            .connection
            .transaction()
            .map_err(|error| translate(&self.path, "migrate", &error))?;
        let steps = migrations.iter().skip(usize::try_from(found).unwrap_or(0));
        for step in steps {
            transaction
                .execute_batch(step)
                .map_err(|error| translate(&self.path, "migrate", &error))?;
        }
        let done = transaction
            .pragma_update(None, "user_version", known)
            .and_then(|()| transaction.commit());
        done.map_err(|error| translate(&self.path, "migrate", &error))
    }
}

impl Journal for SqliteJournal {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let load = || -> rusqlite::Result<Loaded> {
            let version = self.connection.query_row(
                "SELECT value FROM meta WHERE key = 'version'",
                [],
                |row| row.get(0),
            )?;
            let mut statement = self.connection.prepare("SELECT uid, body FROM sandboxes")?;
            let records = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let records = records.collect::<Result<_, _>>()?;
            let mut statement =
                self.connection.prepare("SELECT version, body FROM events ORDER BY version")?;
            let events = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let events = events.collect::<Result<_, _>>()?;
            let mut statement = self.connection.prepare("SELECT kind, uid, body FROM items")?;
            let items =
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(Loaded { version, records, items: items.collect::<Result<_, _>>()?, events })
        };
        load().map_err(|error| translate(&self.path, "load", &error))
    }

    fn commit(&mut self, version: u64, mutations: &[Mutation]) -> Result<(), StoreError> {
        commit(&mut self.connection, version, mutations)
            .map_err(|error| translate(&self.path, "commit", &error))
    }
}

fn commit(
    connection: &mut Connection,
    version: u64,
    mutations: &[Mutation],
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for mutation in mutations {
        match mutation {
            Mutation::Put { uid, name, body } => {
                let sql = "INSERT INTO sandboxes VALUES (?1, ?2, ?3)
                           ON CONFLICT (uid) DO UPDATE SET name = excluded.name, body = excluded.body";
                transaction.prepare_cached(sql)?.execute(params![uid, name, body])?
            }
            Mutation::Remove { uid } => transaction
                .prepare_cached("DELETE FROM sandboxes WHERE uid = ?1")?
                .execute([uid])?,
            Mutation::PutItem { kind, uid, name, body } => {
                let sql = "INSERT INTO items VALUES (?1, ?2, ?3, ?4)
                           ON CONFLICT (kind, uid) DO UPDATE SET name = excluded.name, body = excluded.body";
                transaction.prepare_cached(sql)?.execute(params![kind, uid, name, body])?
            }
            Mutation::RemoveItem { kind, uid } => transaction
                .prepare_cached("DELETE FROM items WHERE kind = ?1 AND uid = ?2")?
                .execute(params![kind, uid])?,
            Mutation::Event { version, body } => transaction
                .prepare_cached("INSERT INTO events VALUES (?1, ?2)")?
                .execute(params![version, body])?,
            Mutation::ForgetEvents { through } => transaction
                .prepare_cached("DELETE FROM events WHERE version <= ?1")?
                .execute([through])?,
            Mutation::Quarantine { uid, reason } => {
                let sql = "INSERT INTO quarantined SELECT uid, name, body, ?2 FROM sandboxes WHERE uid = ?1";
                transaction.prepare_cached(sql)?.execute(params![uid, reason])?;
                transaction
                    .prepare_cached("DELETE FROM sandboxes WHERE uid = ?1")?
                    .execute([uid])?
            }
            Mutation::QuarantineItem { kind, uid, reason } => {
                let sql = "INSERT INTO quarantined SELECT uid, name, body, ?3 FROM items WHERE kind = ?1 AND uid = ?2";
                transaction.prepare_cached(sql)?.execute(params![kind, uid, reason])?;
                transaction
                    .prepare_cached("DELETE FROM items WHERE kind = ?1 AND uid = ?2")?
                    .execute(params![kind, uid])?
            }
        };
    }
    transaction
        .prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'version'")?
        .execute([version])?;
    transaction.commit()
}

fn translate(path: &Path, operation: &'static str, error: &rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    let message = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Damaged { path, message }
        }
        _ => StoreError::Disk { operation, path, message },
    }
}

#[cfg(test)]
mod tests;
