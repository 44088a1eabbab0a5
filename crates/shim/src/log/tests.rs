use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

fn records(path: &Path) -> Vec<LogRecord> {
    let bytes = fs::read(path).unwrap_or_default();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| LogRecord::parse(line).expect("every line is a record")).collect()
}

fn text(records: &[LogRecord], stream: LogStream) -> Vec<u8> {
    let mut text = Vec::new();
    for record in records.iter().filter(|record| record.stream == stream) {
        text.extend_from_slice(&record.text);
        if record.full {
            text.push(b'\n');
        }
    }
    text
}

#[test]
fn any_bytes_come_back_as_they_were_whatever_the_cuts() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(directory.path(), "main", 1 << 20);
    let mut wanted = b"first\n\nno end, then \xff\xfe bytes\n".to_vec();
    wanted.extend(std::iter::repeat_n(b'x', 100_000));
    wanted.extend_from_slice(b"\nlast without end");
    let mut offset = 0;
    for part in wanted.chunks(7001) {
        log.append(Output::Stdout, offset, part);
        offset += part.len() as u64;
    }
    log.append(Output::Stderr, 0, b"error\n");
    let records = records(&directory.path().join("main.log"));
    assert_eq!(text(&records, LogStream::Stdout), wanted);
    assert_eq!(text(&records, LogStream::Stderr), b"error\n");
    assert!(records.iter().all(|record| record.text.len() <= MAX_TEXT_BYTES));
    assert_eq!(log.dropped_bytes(), 0);
}

#[test]
fn the_files_stay_within_the_bound_and_kept_plus_dropped_is_everything() {
    let directory = tempfile::tempdir().unwrap();
    let most = 20_000;
    let mut log = LogWriter::open(directory.path(), "main", most);
    let line = b"0123456789012345678901234567890123456789\n";
    let mut offset = 0;
    for _ in 0..5_000 {
        log.append(Output::Stdout, offset, line);
        offset += line.len() as u64;
    }
    let paths = [directory.path().join("main.log.1"), directory.path().join("main.log")];
    let on_disk: u64 = paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(on_disk <= most, "{on_disk} bytes on disk");
    let kept: usize = paths.iter().map(|path| text(&records(path), LogStream::Stdout).len()).sum();
    assert!(kept as u64 > most / 8, "{kept} bytes kept");
    assert_eq!(kept as u64 + log.dropped_bytes(), offset);
}

#[test]
fn newlines_alone_do_not_break_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(directory.path(), "main", 8_000);
    log.append(Output::Stdout, 0, &[b'\n'; 32 * 1024]);
    let sizes: Vec<u64> = ["main.log", "main.log.1"]
        .iter()
        .map(|name| fs::metadata(directory.path().join(name)).unwrap().len())
        .collect();
    assert!(sizes.iter().sum::<u64>() <= 8_000, "{sizes:?}");
}

#[test]
fn no_room_for_a_log_keeps_nothing_and_counts_everything() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(directory.path(), "main", 100);
    log.append(Output::Stdout, 0, b"hello\n");
    log.append(Output::Stderr, 0, b"hello\n");
    assert_eq!((log.dropped_bytes(), log.taken_bytes(Output::Stdout)), (12, 6));
    assert!(!directory.path().join("main.log").exists());
}

#[test]
fn a_successor_goes_on_exactly_and_marks_only_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(directory.path(), "main", 1 << 20);
    log.append(Output::Stdout, 0, b"one\ntwo\n");
    drop(log);
    let mut log = LogWriter::open(directory.path(), "main", 1 << 20);
    assert_eq!(log.taken_bytes(Output::Stdout), 8);
    log.append(Output::Stdout, 4, b"two\nthree\n");
    log.append(Output::Stdout, 100, b"later\n");
    let records = records(&directory.path().join("main.log"));
    assert_eq!(text(&records, LogStream::Stdout), b"one\ntwo\nthree\nlater\n");
    let gaps: Vec<_> = records.iter().filter(|record| record.stream == LogStream::Gap).collect();
    assert_eq!(gaps.len(), 1);
    assert!(gaps[0].text.starts_with(b"86 bytes"), "{:?}", gaps[0]);
    assert_eq!(log.dropped_bytes(), 86);
}

/// Every point at which a shim can die in the middle of a write.
#[test]
fn a_write_that_was_cut_is_cut_off_and_a_whole_one_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("main.log");
    let mut log = LogWriter::open(directory.path(), "main", 1 << 20);
    log.append(Output::Stdout, 0, b"before\n");
    let before = fs::read(&path).unwrap();
    log.append(Output::Stdout, 7, b"cut\n");
    let after = fs::read(&path).unwrap();
    drop(log);
    let stored = fs::read(directory.path().join("main.log.at")).unwrap();
    for length in before.len()..=after.len() {
        fs::write(&path, &after[..length]).unwrap();
        fs::write(directory.path().join("main.log.at"), &stored).unwrap();
        let log = LogWriter::open(directory.path(), "main", 1 << 20);
        let whole = length == after.len();
        assert_eq!(log.taken_bytes(Output::Stdout), if whole { 11 } else { 7 }, "cut at {length}");
        assert_eq!(fs::read(&path).unwrap(), if whole { &after[..] } else { &before[..] });
    }
}

#[test]
fn a_damaged_position_is_no_position() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("main.log.at"), b"rubbish").unwrap();
    let mut log = LogWriter::open(directory.path(), "main", 1 << 20);
    log.append(Output::Stdout, 0, b"works\n");
    assert_eq!(text(&records(&directory.path().join("main.log")), LogStream::Stdout), b"works\n");
}

/// The other half of GO-2026-5622: who writes logs as root must not be led to the host's files either.
#[test]
fn nothing_is_written_or_moved_through_what_stands_in_a_logs_place() {
    let directory = tempfile::tempdir().unwrap();
    let (host, logs) = (directory.path().join("host"), directory.path().join("logs"));
    let stored = "a file of the host\n".repeat(1000);
    fs::write(&host, &stored).unwrap();
    let output = b"output\n".repeat(100);
    for linked in ["main.log", "main.log.at", "main.log.1"] {
        fs::create_dir(&logs).unwrap();
        symlink(&host, logs.join(linked)).unwrap();
        let mut log = LogWriter::open(&logs, "main", 4096);
        for round in 0..20 {
            log.append(Output::Stdout, round * output.len() as u64, &output);
        }
        drop(log);
        // Also for who takes over.
        LogWriter::open(&logs, "main", 4096).append(Output::Stdout, 0, &output);
        assert_eq!(fs::read_to_string(&host).unwrap(), stored, "through {linked}");
        fs::remove_dir_all(&logs).unwrap();
    }
    // Nobody reads it: a writer would wait for ever.
    fs::create_dir(&logs).unwrap();
    crate::directory::make_fifo(&logs.join("main.log")).unwrap();
    let mut log = LogWriter::open(&logs, "main", 4096);
    log.append(Output::Stdout, 0, b"lost\n");
    assert_eq!(log.dropped_bytes(), 5);
    drop(log);
    fs::remove_dir_all(&logs).unwrap();
    let elsewhere = directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, &logs).unwrap();
    let mut log = LogWriter::open(&logs, "main", 4096);
    log.append(Output::Stdout, 0, b"lost\n");
    assert_eq!(log.dropped_bytes(), 5);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing is made elsewhere");
}
