//! What the keeper's proxy costs: streams in bulk, small requests and new connections, beside the same without it.
//!
//! `cargo build --release -p atoll-keeper --bins --examples && target/release/examples/proxy_speed`
#![allow(clippy::print_stdout, reason = "it prints what it measures")]

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use atoll_keeper::{
    Addresses, KeeperClient, Member, Names, Port, PortHold, Protocol, StartOptions,
};

type Outcome<T> = Result<T, Box<dyn Error>>;
/// Measures a port: how much in a second.
type Figure = fn(u16) -> Outcome<f64>;

/// How long each figure is measured, and how often in turn.
const EACH: Duration = Duration::from_millis(700);
const ROUNDS: usize = 5;

fn main() -> Outcome<()> {
    let own = std::env::current_exe()?;
    let directory = own.parent().and_then(|examples| examples.parent()).ok_or("no directory")?;
    let program = directory.join("atoll-network-keeper");
    let data_dir = std::env::temp_dir().join(format!("atoll-proxy-speed-{}", std::process::id()));
    std::fs::create_dir_all(data_dir.join("network"))?;
    let outcome = measure(program, data_dir.clone());
    std::fs::remove_dir_all(data_dir)?;
    outcome
}

fn measure(program: PathBuf, data_dir: PathBuf) -> Outcome<()> {
    let keeper = KeeperClient::start_or_attach(&StartOptions::new(program, data_dir))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let direct = listener.local_addr()?.port();
    std::thread::spawn(move || serve(&listener));
    let proxied = free_port()?;
    let hold = PortHold { protocol: Protocol::Tcp, host_port: proxied };
    keeper.put(&Member {
        uid: "measured".into(),
        addresses: Some(Addresses { ipv4: Ipv4Addr::LOCALHOST, ipv6: Ipv6Addr::LOCALHOST }),
        names: Names::Refuse,
        ports: vec![Port { hold, target_port: direct, open: true }],
    })?;
    let figures: [(&str, &str, Figure); 3] = [
        ("bulk", "MiB/s", bulk),
        ("requests of one connection", "/s", requests),
        ("new connections", "/s", connections),
    ];
    for (name, unit, figure) in figures {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            without.push(figure(direct)?);
            with.push(figure(proxied)?);
        }
        let (without, with) = (median(without), median(with));
        println!(
            "{name:30} direct {without:9.0} {unit:6} proxied {with:9.0} {unit:6} {:.2}x",
            with / without
        );
        let before = ticks(keeper.pid())?;
        let done = figure(proxied)? * EACH.as_secs_f64();
        let spent = (ticks(keeper.pid())? - before) / TICKS_A_SECOND;
        println!("{:30} {:.1} us of CPU each in the keeper", "", spent * 1e6 / done);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", keeper.pid()))?;
    for line in
        status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("RssAnon"))
    {
        println!("{line}");
    }
    keeper.retire()?;
    Ok(())
}

/// SOURCE: USER_HZ, 100 on every architecture that Rust has a target for.
const TICKS_A_SECOND: f64 = 100.0;

/// CPU time that a process has used. SOURCE: proc(5), fields 14 and 15 of stat.
fn ticks(pid: u32) -> Outcome<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').ok_or("no stat")?;
    let field = |at: usize| fields.split_whitespace().nth(at).and_then(|text| text.parse().ok());
    let (user, system): (f64, f64) = (field(11).ok_or("no time")?, field(12).ok_or("no time")?);
    Ok(user + system)
}

fn free_port() -> Outcome<u16> {
    let probe =
        (20_000..30_000).find(|port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).is_ok());
    probe.ok_or_else(|| "no port is free".into())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The first byte says what is wanted: `b` gets bytes without end, everything else is echoed.
fn serve(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        std::thread::spawn(move || -> std::io::Result<()> {
            stream.set_nodelay(true)?;
            let mut buffer = vec![0; 256 * 1024];
            let count = stream.read(&mut buffer)?;
            if buffer.first() == Some(&b'b') {
                loop {
                    stream.write_all(&buffer)?;
                }
            }
            stream.write_all(&buffer[..count])?;
            loop {
                let count = stream.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..count])?;
            }
        });
    }
}

fn connect(port: u16) -> Outcome<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn bulk(port: u16) -> Outcome<f64> {
    let mut stream = connect(port)?;
    stream.write_all(b"b")?;
    let mut buffer = vec![0; 256 * 1024];
    let begun = Instant::now();
    let mut bytes = 0_usize;
    while begun.elapsed() < EACH {
        bytes += stream.read(&mut buffer)?;
    }
    Ok(bytes as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64())
}

fn requests(port: u16) -> Outcome<f64> {
    let mut stream = connect(port)?;
    rate(|| {
        stream.write_all(b"e")?;
        stream.read_exact(&mut [0])?;
        Ok(())
    })
}

fn connections(port: u16) -> Outcome<f64> {
    rate(|| {
        let mut stream = connect(port)?;
        stream.write_all(b"e")?;
        stream.read_exact(&mut [0])?;
        Ok(())
    })
}

fn rate(mut act: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let begun = Instant::now();
    let mut count = 0.0;
    while begun.elapsed() < EACH {
        act()?;
        count += 1.0;
    }
    Ok(count / begun.elapsed().as_secs_f64())
}
