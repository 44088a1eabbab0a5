//! Disks for real, where root and loop devices are to be had.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, openat};

use super::*;
use crate::loop_device::attached;

const SIZE_BYTES: u64 = 16 << 20;

fn usable() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    match detect(dir.path()) {
        Ok(()) => Some(dir),
        Err(error) => {
            println!("SKIPPED: container/disk-image: {error}: {error:?}");
            None
        }
    }
}

/// The kernel finishes an unmount after the last close returned, and tells nobody when.
fn detached_in_the_end(image: &Path) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if attached().unwrap().iter().all(|(_, file)| !file.starts_with(image)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

#[test]
fn a_template_is_made_once_and_copied_sparsely() {
    let dir = tempfile::tempdir().unwrap();
    if !Path::new("/usr/sbin/mkfs.ext4").exists() && !Path::new("/sbin/mkfs.ext4").exists() {
        println!("SKIPPED: container/disk-image: mkfs.ext4 is not installed");
        return;
    }
    let template = TemplateImage::prepare(dir.path(), SIZE_BYTES + 17).unwrap();
    let made = fs::metadata(template.path()).unwrap();
    assert_eq!((template.size_bytes(), made.len()), (SIZE_BYTES, SIZE_BYTES));
    assert_eq!(TemplateImage::prepare(dir.path(), SIZE_BYTES).unwrap(), template);
    assert_eq!(fs::metadata(template.path()).unwrap().ino(), made.ino(), "made twice");
    let copy_path = dir.path().join("copy");
    let copy = template.instantiate(&copy_path).unwrap().metadata().unwrap();
    assert_eq!((copy.len(), copy.mode() & 0o777), (SIZE_BYTES, 0o600));
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
    assert_eq!(fs::read(&copy_path).unwrap(), fs::read(template.path()).unwrap());
    assert!(template.instantiate(&copy_path).is_err(), "an existing file is never written over");
    let names = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 2, "something half-made is left");
    let error = TemplateImage::prepare(dir.path(), 4095).unwrap_err();
    assert!(error.to_string().contains("too small"));
}

/// Two devices on one image would destroy it.
#[test]
fn a_lasting_image_has_one_device_however_often_it_is_mounted_and_keeps_its_files() {
    let Some(dir) = usable() else { return };
    let path = dir.path().join("disk.ext4");
    let files = || fs::read_dir(dir.path()).unwrap().count();
    let before = files();
    let image = make_lasting_image(&path, SIZE_BYTES).unwrap();
    assert_eq!(files(), before + 1, "nothing but the image is made");
    let devices = || attached().unwrap().iter().filter(|(_, file)| *file == path).count();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let open = |mount: &OwnedFd| File::from(openat(mount, "file", flags, Mode::RWXU).unwrap());
    let one = mount_lasting_image(&image, &path).unwrap();
    // As another process would, which knows the file's name alone.
    let again = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let other = mount_lasting_image(&again, &path).unwrap();
    assert_eq!(devices(), 1);
    open(&one).write_all(b"kept").unwrap();
    assert_eq!(std::io::read_to_string(open(&other)).unwrap(), "kept");
    // Renamed while it is in use, it is found under its new name.
    let moved = dir.path().join("moved");
    fs::create_dir(&moved).unwrap();
    let moved = moved.join("disk.ext4");
    fs::rename(&path, &moved).unwrap();
    let third = mount_lasting_image(&again, &moved).unwrap();
    assert_eq!(std::io::read_to_string(open(&third)).unwrap(), "kept");
    drop((one, other, third));
    assert!(detached_in_the_end(&moved));
    let later = mount_lasting_image(&again, &moved).unwrap();
    assert_eq!(std::io::read_to_string(open(&later)).unwrap(), "kept");
}

#[test]
fn the_disk_holds_files_up_to_its_size_and_then_says_no_space() {
    let Some(dir) = usable() else { return };
    let template = TemplateImage::prepare(dir.path(), SIZE_BYTES).unwrap();
    let path = dir.path().join("disk");
    let image = template.instantiate(&path).unwrap();
    let mount = mount_image(&image, &path).unwrap();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let mut file = File::from(openat(&mount, "big", flags, Mode::RWXU).unwrap());
    let chunk = vec![7_u8; 1 << 20];
    let mut written_mib = 0;
    let error = loop {
        match file.write_all(&chunk) {
            Ok(()) => written_mib += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!((14..16).contains(&written_mib), "{written_mib} MiB");
    drop((file, mount));
    assert!(detached_in_the_end(&path));
}

#[test]
fn dropping_the_mount_frees_the_loop_device() {
    let Some(dir) = usable() else { return };
    let template = TemplateImage::prepare(dir.path(), SIZE_BYTES).unwrap();
    let mounts: Vec<_> = (0..4)
        .map(|number| {
            let path = dir.path().join(format!("disk-{number}"));
            let image = template.instantiate(&path).unwrap();
            mount_image(&image, &path).unwrap()
        })
        .collect();
    let ours = || {
        let all = attached().unwrap();
        all.into_iter().filter(|(_, file)| file.starts_with(dir.path())).count()
    };
    assert!(ours() >= 4);
    drop(mounts);
    assert!(detached_in_the_end(dir.path()));
}

#[test]
fn a_killed_holder_leaves_no_loop_device() {
    let Some(dir) = usable() else { return };
    let template = TemplateImage::prepare(dir.path(), SIZE_BYTES).unwrap();
    let path = dir.path().join("disk");
    let mount = mount_image(&template.instantiate(&path).unwrap(), &path).unwrap();
    // The child gets the mount as its standard input, and is then its only holder.
    let mut holder = Command::new("sh")
        .args(["-c", "echo ready; exec sleep 1000"])
        .stdin(mount)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(attached().unwrap().iter().any(|(_, file)| *file == path), "held by the child");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(detached_in_the_end(&path));
}

#[test]
fn many_at_once_race_for_devices_and_all_get_one() {
    let Some(dir) = usable() else { return };
    let template = TemplateImage::prepare(dir.path(), SIZE_BYTES).unwrap();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (dir, template) = (dir.path(), &template);
            scope.spawn(move || {
                let path = dir.join(format!("disk-{number}"));
                let image = template.instantiate(&path).unwrap();
                let mount = mount_image(&image, &path).unwrap();
                assert!(
                    rustix::fs::statat(mount.as_fd(), "lost+found", rustix::fs::AtFlags::empty())
                        .is_ok()
                );
            });
        }
    });
    assert!(detached_in_the_end(dir.path()));
}

#[test]
fn what_the_steps_take() {
    let Some(dir) = usable() else { return };
    let started = Instant::now();
    let template = TemplateImage::prepare(dir.path(), 128 << 20).unwrap();
    println!("prepare 128 MiB: {:?}", started.elapsed());
    let mut took = [const { Vec::new() }; 4];
    for number in 0..20 {
        let path = dir.path().join(format!("disk-{number}"));
        let mut lap = Instant::now();
        let mut next = |step: usize| {
            took[step].push(lap.elapsed());
            lap = Instant::now();
        };
        let image = template.instantiate(&path).unwrap();
        next(0);
        let device = attach(&image, &path, LoopOptions { direct_io: true }).unwrap();
        next(1);
        let mount = mount_detached(&device, &SANDBOX_DISK_OPTIONS).unwrap();
        next(2);
        drop((device, mount));
        next(3);
    }
    for (name, mut times) in ["instantiate", "attach", "mount", "close"].into_iter().zip(took) {
        times.sort_unstable();
        println!("{name}: p50 {:?}, most {:?}", times[10], times[19]);
    }
    assert!(detached_in_the_end(dir.path()));
}
