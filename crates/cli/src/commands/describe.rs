//! `atoll describe`: everything about an object, for people.

use std::fmt::Write as _;

use atoll_wire::rest::{
    AssignedPort, ContainerSpec, ContainerStatus, Event, ExternalEnvelope, ImageInfo, NamedVolume,
    NodeInfo, Sandbox, Timeline,
};
use jiff::Timestamp;

use super::get::{phase_colour, volume_colour};
use super::{Outcome, SUCCESS, connect, events};
use crate::args::{ConnectionArgs, DescribeArgs, ResourceKind};
use crate::client::{encoded, with_query};
use crate::output::{self, Cell, Colour, Styles, Table, age_since, human_bytes, human_micros};

/// Width of a full bar of the timeline.
const BAR_WIDTH: usize = 32;
/// Events that are shown, newest last.
const MAX_EVENTS: usize = 20;

/// Describes objects.
pub(super) async fn describe(args: DescribeArgs, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    let styles = Styles::stdout();
    for (index, object) in args.objects.iter().enumerate() {
        if index > 0 {
            output::print("\n")?;
        }
        let text = match object.kind {
            ResourceKind::Sandbox => {
                let sandbox = client.sandbox(&object.name).await?;
                let reference = format!("sandbox/{}", object.name);
                let events = events::of_object(&client, Some(&reference)).await?;
                sandbox_text(&sandbox, &events.items, styles, Timestamp::now())
            }
            ResourceKind::Image => {
                let path =
                    with_query("/api/v1/images/inspect", &[("reference", Some(&object.name))]);
                image_text(&client.get::<ImageInfo>(&path).await?, styles)?
            }
            ResourceKind::External => {
                let path = format!("/api/v1/externals/{}", encoded(&object.name));
                let found: ExternalEnvelope = client.get(&path).await?;
                let it = found.external;
                format!("{}: node {} is reached as {}\n", it.id, it.node_id, it.external)
            }
            ResourceKind::Volume => {
                let volume = client.volume(&object.name).await?;
                let reference = format!("volume/{}", object.name);
                let events = events::of_object(&client, Some(&reference)).await?;
                volume_text(&volume, &events.items, styles, Timestamp::now())
            }
            ResourceKind::Node => node_text(&client.get::<NodeInfo>("/api/v1/node").await?, styles),
        };
        output::print(&text)?;
    }
    Ok(SUCCESS)
}

/// Lines of `key: value`, and sections below headings.
struct Text {
    out: String,
    styles: Styles,
}

impl Text {
    fn heading(&mut self, title: &str) {
        let _ = writeln!(self.out, "\n{}", self.styles.paint(Colour::Strong, title));
    }

    fn line(&mut self, key: &str, value: impl Into<String>) {
        self.cell(key, Cell::new(value));
    }

    fn optional(&mut self, key: &str, value: Option<&String>) {
        if let Some(value) = value {
            self.line(key, value);
        }
    }

    fn cell(&mut self, key: &str, value: Cell) {
        let mut table = Table::new(&["", ""]);
        table.row(vec![Cell::new(format!("  {key}:")), value]);
        let mut widths = vec![16];
        self.out.push_str(&table.render_with(self.styles, &mut widths, false));
    }

    fn events(&mut self, events: &[Event], now: Timestamp) {
        if !events.is_empty() {
            self.heading("Events");
            let shown = &events[events.len().saturating_sub(MAX_EVENTS)..];
            self.table(&events::table(shown, "AGE", |event| age_since(&event.time, now)));
        }
    }

    fn table(&mut self, table: &Table) {
        for line in table.render(self.styles).lines() {
            let _ = writeln!(self.out, "  {line}");
        }
    }
}

/// `10000 -> 80/tcp`.
fn port_text(port: &AssignedPort) -> String {
    format!("{} -> {}/{}", port.host_port, port.container_port, port.protocol)
}

fn sandbox_text(sandbox: &Sandbox, events: &[Event], styles: Styles, now: Timestamp) -> String {
    let status = &sandbox.status;
    let mut text = Text { out: String::new(), styles };
    text.out.push_str(&styles.paint(Colour::Strong, &format!("sandbox/{}\n", sandbox.id)));
    text.cell("Phase", Cell::coloured(&status.phase, phase_colour(&status.phase)));
    text.line("Ready", if status.ready { "yes" } else { "no" });
    text.optional("Reason", status.reason.as_ref());
    text.optional("Last error", status.last_error.as_ref());
    text.optional("Class", status.class.as_ref().or(sandbox.spec.class.as_ref()));
    text.optional("Limits per", status.limits_scope.as_ref());
    text.optional("Node", status.node_name.as_ref());
    text.optional("Address", status.ip.as_ref());
    for port in &status.assigned_ports {
        text.line("Port", port_text(port));
    }
    text.line(
        "Created",
        format!("{} ({} ago)", sandbox.created_at, age_since(&sandbox.created_at, now)),
    );
    text.optional("Expires", status.expire_at.as_ref());
    text.line("Uid", &sandbox.uid);
    for (key, value) in &sandbox.metadata.labels {
        text.line("Label", format!("{key}={value}"));
    }
    for container in &sandbox.spec.containers {
        text.heading(&format!("Container {}", container.name));
        container_spec(&mut text, container);
        let state = status.containers.iter().find(|state| state.name == container.name);
        if let Some(state) = state {
            container_status(&mut text, state);
        }
    }
    if !status.conditions.is_empty() {
        text.heading("Conditions");
        let mut table = Table::new(&["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"]);
        for condition in &status.conditions {
            table.row(vec![
                Cell::new(&condition.kind),
                Cell::new(&condition.status),
                Cell::new(&condition.reason),
                Cell::new(age_since(&condition.last_transition_time, now)),
                Cell::new(&condition.message),
            ]);
        }
        text.table(&table);
    }
    if let Some(timeline) = &status.timeline {
        text.heading("Timeline");
        timeline_bars(&mut text, timeline);
    }
    text.events(events, now);
    text.out
}

fn container_spec(text: &mut Text, container: &ContainerSpec) {
    text.line("Image", &container.image);
    let command: Vec<&String> = container.command.iter().chain(&container.args).collect();
    if !command.is_empty() {
        text.line("Command", command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
    }
    text.optional("Working dir", container.work_dir.as_ref());
    text.optional("User", container.user.as_ref());
    for entry in &container.env {
        // Values may be secrets: the name says enough to a person.
        let key = entry.split('=').next().unwrap_or_default();
        text.line("Environment", format!("{key}=…"));
    }
    let resource = &container.resource;
    let limits: Vec<String> = [
        ("cpu", resource.cpu.clone()),
        ("memory", resource.memory.clone()),
        ("disk", resource.ephemeral_storage.clone()),
        ("pids", resource.pids.map(|pids| pids.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| value.map(|value| format!("{name} {value}")))
    .collect();
    if !limits.is_empty() {
        text.line("Limits", limits.join(", "));
    }
    if !container.depends_on.is_empty() {
        text.line("Depends on", container.depends_on.join(", "));
    }
    if container.read_only {
        text.line("Root", "read-only");
    }
}

fn container_status(text: &mut Text, state: &ContainerStatus) {
    let colour = match (state.state.as_str(), state.exit_code) {
        ("running", _) | ("exited", Some(0)) => Colour::Good,
        ("exited" | "unknown", _) => Colour::Bad,
        _ => Colour::Busy,
    };
    text.cell("State", Cell::coloured(&state.state, colour));
    if !state.waiting_for.is_empty() {
        text.line("Waits for", state.waiting_for.join(", "));
    }
    if let Some(code) = state.exit_code {
        let signal = state.signal.map(|signal| format!(" (signal {signal})")).unwrap_or_default();
        text.line("Exit code", format!("{code}{signal}"));
    }
    text.optional("Reason", state.reason.as_ref());
    text.optional("Message", state.message.as_ref());
    text.optional("Started", state.started_at.as_ref());
    text.optional("Finished", state.finished_at.as_ref());
    text.optional("Image digest", state.image_digest.as_ref());
    if let Some(disk) = &state.disk {
        let (used, limit) = (human_bytes(disk.used_bytes), human_bytes(disk.limit_bytes));
        text.line("Disk", format!("{used} of {limit} used ({})", disk.backend));
    }
    if state.log_dropped_bytes > 0 {
        text.line("Log dropped", human_bytes(state.log_dropped_bytes));
    }
}

/// One bar for each phase, as long as its share, beginning where the one before ended.
fn timeline_bars(text: &mut Text, timeline: &Timeline) {
    let mut table = Table::new(&["PHASE", "TIME", "SHARE", ""]);
    let total = timeline.total_micros.max(1);
    let position = |micros: u64| {
        let cells = u128::from(micros) * BAR_WIDTH as u128 / u128::from(total);
        usize::try_from(cells).unwrap_or(BAR_WIDTH).min(BAR_WIDTH)
    };
    let mut begin = 0;
    for phase in &timeline.phases {
        let end = begin + phase.micros;
        let (from, to) = (position(begin), position(end));
        let bar = match to - from {
            0 if phase.micros > 0 => "▏".to_owned(),
            length => "█".repeat(length),
        };
        table.row(vec![
            Cell::new(&phase.name),
            Cell::figure(human_micros(phase.micros)),
            Cell::figure(format!("{} %", phase.micros * 100 / total)),
            Cell::coloured(format!("{}{bar}", " ".repeat(from)), Colour::Good),
        ]);
        begin = end;
    }
    table.row(vec![
        Cell::coloured("total", Colour::Strong),
        Cell::figure(human_micros(timeline.total_micros)),
        Cell::figure("100 %"),
        Cell::new(format!("from {}", timeline.begun_at)),
    ]);
    text.table(&table);
}

/// A word as a shell would need it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn image_text(image: &ImageInfo, styles: Styles) -> anyhow::Result<String> {
    let mut text = Text { out: String::new(), styles };
    let title = image.references.first().unwrap_or(&image.digest);
    text.out.push_str(&styles.paint(Colour::Strong, &format!("image/{title}\n")));
    for reference in &image.references {
        text.line("Reference", reference);
    }
    text.line("Digest", &image.digest);
    text.line("Platform", &image.platform);
    text.line("Size", human_bytes(image.size_bytes));
    text.line("Layers", image.layers.to_string());
    text.line("Imported", &image.imported_at);
    text.optional("Last used", image.last_used_at.as_ref());
    text.line("Used by", image.used_by.join(", "));
    if let Some(config) = &image.config {
        text.heading("Configuration");
        for line in serde_yaml_ng::to_string(config)?.lines() {
            let _ = writeln!(text.out, "  {line}");
        }
    }
    Ok(text.out)
}

fn volume_text(volume: &NamedVolume, events: &[Event], styles: Styles, now: Timestamp) -> String {
    let status = &volume.status;
    let mut text = Text { out: String::new(), styles };
    text.out.push_str(&styles.paint(Colour::Strong, &format!("volume/{}\n", volume.id)));
    text.cell("Phase", Cell::coloured(&status.phase, volume_colour(&status.phase)));
    text.optional("Last error", status.last_error.as_ref());
    text.line("Size", &volume.spec.size);
    if let (Some(used), Some(limit)) = (status.used_bytes, status.limit_bytes) {
        text.line("Used", format!("{} of {}", human_bytes(used), human_bytes(limit)));
    }
    text.optional("Backend", status.backend.as_ref());
    text.line("Used by", status.used_by.join(", "));
    let age = age_since(&volume.created_at, now);
    text.line("Created", format!("{} ({age} ago)", volume.created_at));
    text.line("Uid", &volume.uid);
    for (key, value) in &volume.metadata.labels {
        text.line("Label", format!("{key}={value}"));
    }
    text.events(events, now);
    text.out
}

fn node_text(node: &NodeInfo, styles: Styles) -> String {
    let mut text = Text { out: String::new(), styles };
    text.out.push_str(&styles.paint(Colour::Strong, &format!("node/{}\n", node.id)));
    text.line("Version", &node.version);
    text.line("Process", node.pid.to_string());
    text.line("Default class", &node.default_class);
    for (key, value) in &node.labels {
        text.line("Label", format!("{key}={value}"));
    }
    text.heading("Classes");
    let mut table = Table::new(&["CLASS", "AVAILABLE", "LIMITS HOLD FOR", "DETAIL"]);
    for class in &node.classes {
        let available = if class.available {
            Cell::coloured("yes", Colour::Good)
        } else {
            Cell::coloured("no", Colour::Bad)
        };
        table.row(vec![
            Cell::new(&class.name),
            available,
            Cell::new(&class.limits_scope),
            Cell::new(&class.detail),
        ]);
    }
    text.table(&table);
    text.out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sandbox {
        serde_json::from_value(serde_json::json!({
            "id": "work", "uid": "00ff", "resource_version": 3,
            "spec": {"containers": [{
                "name": "main", "image": "busybox", "args": ["echo", "it's here"],
                "env": ["PASSWORD=hunter2"], "resource": {"memory": "64Mi"},
            }]},
            "status": {
                "phase": "Failed", "reason": "OutOfMemory",
                "containers": [{"name": "main", "state": "exited", "exit_code": 137, "signal": 9}],
                "timeline": {"begun_at": "2026-01-01T00:00:00Z", "total_micros": 10_000, "phases": [
                    {"name": "store", "micros": 2_500}, {"name": "spawn", "micros": 7_490},
                    {"name": "publish", "micros": 10},
                ]},
            },
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn a_person_sees_what_went_wrong_and_where_the_time_went() {
        let now = "2026-01-01T00:00:05Z".parse().unwrap();
        let text = sandbox_text(&sample(), &[], Styles::plain(), now);
        for expected in [
            "Phase:           Failed\n",
            "OutOfMemory",
            "Exit code:       137 (signal 9)",
            "echo 'it'\\''s here'",
            "(5s ago)",
            "memory 64Mi",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
        }
        assert!(!text.contains("hunter2"), "secrets are not shown:\n{text}");
    }

    #[test]
    fn a_running_containers_disk_is_shown_with_its_limit_and_backend() {
        let mut sandbox = sample();
        let disk =
            serde_json::json!({"backend": "image", "limit_bytes": 64 << 20, "used_bytes": 1 << 20});
        sandbox.status.containers[0].disk = serde_json::from_value(disk).unwrap();
        let text = sandbox_text(&sandbox, &[], Styles::plain(), Timestamp::UNIX_EPOCH);
        assert!(text.contains("Disk:            1.0 MiB of 64.0 MiB used (image)\n"), "{text}");
    }

    #[test]
    fn the_bars_follow_each_other_and_the_total_is_there() {
        let now = "2026-01-01T00:00:05Z".parse().unwrap();
        let text = sandbox_text(&sample(), &[], Styles::plain(), now);
        let bar = |phase: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(phase)).unwrap();
            (line.chars().filter(|c| *c == '█').count(), line.contains('▏'))
        };
        assert_eq!(bar("store"), (8, false), "{text}");
        assert!(bar("spawn").0 >= 23, "{text}");
        assert!(bar("publish").1 || bar("publish").0 == 1, "{text}");
        assert!(text.contains("total"), "{text}");
        assert!(text.contains("10.0 ms"), "{text}");
    }
}
