//! `atoll get`: tables of objects, or the objects as the API has them; once, or as they change.

use atoll_wire::rest::{
    AssignedPort, External, ExternalEnvelope, ImageInfo, Items, NamedVolume, NodeInfo, Sandbox,
    WatchEvent,
};
use jiff::Timestamp;
use reqwest::Method;
use serde::Serialize;

use super::{Outcome, SUCCESS, connect};
use crate::args::{ConnectionArgs, GetArgs, ListFormat, ResourceKind};
use crate::client::{Client, encoded, sandbox_path, with_query};
use crate::output::{self, Cell, Colour, Styles, Table, age_since, human_bytes};

/// Lists objects, or shows one.
pub(super) async fn get(args: GetArgs, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    let lists_sandboxes =
        args.selector.kind == ResourceKind::Sandbox && args.selector.name.is_none();
    anyhow::ensure!(
        args.labels.is_none() || lists_sandboxes,
        "-l chooses among sandboxes: write `atoll get sandboxes -l {}`",
        args.labels.as_deref().unwrap_or_default()
    );
    if args.watch {
        return watch(&client, &args).await;
    }
    match (args.selector.kind, &args.selector.name) {
        (ResourceKind::Sandbox, None) => {
            let path =
                with_query("/api/v1/sandboxes", &[("label_selector", args.labels.as_deref())]);
            let sandboxes: Items<Sandbox> = client.get(&path).await?;
            show_list(&sandboxes, args.output, sandbox_table)
        }
        (ResourceKind::Sandbox, Some(name)) => {
            show_one(client.sandbox(name).await?, args.output, sandbox_table)
        }
        (ResourceKind::Image, None) => {
            let images: Items<ImageInfo> = client.get("/api/v1/images").await?;
            show_list(&images, args.output, image_table)
        }
        (ResourceKind::Image, Some(name)) => {
            let path = with_query("/api/v1/images/inspect", &[("reference", Some(name))]);
            let image: ImageInfo = client.get(&path).await?;
            show_one(image, args.output, image_table)
        }
        (ResourceKind::External, None) => {
            let externals: Items<External> = client.get("/api/v1/externals").await?;
            show_list(&externals, args.output, external_table)
        }
        (ResourceKind::External, Some(name)) => {
            let path = format!("/api/v1/externals/{}", encoded(name));
            let found: ExternalEnvelope = client.get(&path).await?;
            show_one(found.external, args.output, external_table)
        }
        (ResourceKind::Volume, None) => {
            show_list(&client.volumes().await?, args.output, volume_table)
        }
        (ResourceKind::Volume, Some(name)) => {
            show_one(client.volume(name).await?, args.output, volume_table)
        }
        (ResourceKind::Node, name) => {
            let node: NodeInfo = client.get("/api/v1/node").await?;
            if let Some(name) = name {
                anyhow::ensure!(
                    *name == node.id,
                    "there is no node {name:?}: this one is {:?}",
                    node.id
                );
            }
            match name {
                Some(_) => show_one(node, args.output, node_table),
                None => show_list(
                    &Items { items: vec![node], resource_version: 0 },
                    args.output,
                    node_table,
                ),
            }
        }
    }
}

/// Prints a list in a format.
pub(super) fn show_list<T: Serialize>(
    list: &Items<T>,
    format: ListFormat,
    table: fn(&[T], bool) -> Table,
) -> Outcome {
    match format {
        ListFormat::Json => output::print_json(list)?,
        ListFormat::Yaml => output::print_yaml(list)?,
        ListFormat::Table | ListFormat::Wide if list.items.is_empty() => {
            output::note("There is nothing to show.");
        }
        ListFormat::Table | ListFormat::Wide => {
            let wide = format == ListFormat::Wide;
            output::print(&table(&list.items, wide).render(Styles::stdout()))?;
        }
    }
    Ok(SUCCESS)
}

fn show_one<T: Serialize>(
    object: T,
    format: ListFormat,
    table: fn(&[T], bool) -> Table,
) -> Outcome {
    match format {
        ListFormat::Json => output::print_json(&object)?,
        ListFormat::Yaml => output::print_yaml(&object)?,
        ListFormat::Table | ListFormat::Wide => {
            let wide = format == ListFormat::Wide;
            output::print(&table(&[object], wide).render(Styles::stdout()))?;
        }
    }
    Ok(SUCCESS)
}

/// Shows what there is, then a row (or a line of JSON, or a YAML document) for each change, until the user ends it.
async fn watch(client: &Client, args: &GetArgs) -> Outcome {
    anyhow::ensure!(
        args.selector.kind == ResourceKind::Sandbox,
        "only sandboxes can be watched: leave -w out"
    );
    let base = match &args.selector.name {
        Some(name) => sandbox_path(name),
        None => "/api/v1/sandboxes".to_owned(),
    };
    let path =
        with_query(&base, &[("watch", Some("true")), ("label_selector", args.labels.as_deref())]);
    let mut lines = client.lines(client.request(Method::GET, &path)).await?;
    let wide = args.output == ListFormat::Wide;
    let mut widths = Vec::new();
    let mut headings = true;
    while let Some(event) = lines.next::<WatchEvent<Sandbox>>().await? {
        let Some(sandbox) = &event.object else { continue };
        match args.output {
            ListFormat::Json => output::print_json_line(&event)?,
            ListFormat::Yaml => {
                output::print(&format!("---\n{}", serde_yaml_ng::to_string(&event)?))?
            }
            ListFormat::Table | ListFormat::Wide => {
                let mut shown = sandbox.clone();
                if event.kind == "DELETED" {
                    shown.status.phase = "Deleted".to_owned();
                }
                let table = sandbox_table(&[shown], wide);
                output::print(&table.render_with(Styles::stdout(), &mut widths, headings))?;
                headings = false;
            }
        }
        if event.kind == "DELETED" && args.selector.name.is_some() {
            break;
        }
    }
    Ok(SUCCESS)
}

/// The colour of a phase.
pub(super) fn phase_colour(phase: &str) -> Colour {
    match phase {
        "Running" | "Succeeded" => Colour::Good,
        "Failed" | "Unknown" => Colour::Bad,
        _ => Colour::Busy,
    }
}

fn sandbox_table(sandboxes: &[Sandbox], wide: bool) -> Table {
    let mut table = if wide {
        Table::new(&[
            "NAME",
            "PHASE",
            "READY",
            "CLASS",
            "IMAGE",
            "EXIT",
            "AGE",
            "UID",
            "NODE",
            "IP",
            "PORTS",
            "EXPIRES",
            "REASON",
            "LAST ERROR",
        ])
    } else {
        Table::new(&["NAME", "PHASE", "READY", "CLASS", "IMAGE", "EXIT", "AGE"])
    };
    let now = Timestamp::now();
    for sandbox in sandboxes {
        table.row(sandbox_row(sandbox, wide, now));
    }
    table
}

fn sandbox_row(sandbox: &Sandbox, wide: bool, now: Timestamp) -> Vec<Cell> {
    let status = &sandbox.status;
    let text = |value: &Option<String>| Cell::new(value.clone().unwrap_or_default());
    let mut cells = vec![
        Cell::new(&sandbox.id),
        Cell::coloured(&status.phase, phase_colour(&status.phase)),
        Cell::new(ready_count(sandbox)),
        Cell::new(status.class.clone().or_else(|| sandbox.spec.class.clone()).unwrap_or_default()),
        Cell::new(images_of(sandbox)),
        Cell::new(exit_codes(sandbox)),
        Cell::new(age_since(&sandbox.created_at, now)),
    ];
    if wide {
        cells.extend([
            Cell::new(&sandbox.uid),
            text(&status.node_name),
            text(&status.ip),
            Cell::new(ports_of(sandbox)),
            text(&status.expire_at),
            text(&status.reason),
            text(&status.last_error),
        ]);
    }
    cells
}

/// `10000->80/tcp,10001->53/udp`.
fn ports_of(sandbox: &Sandbox) -> String {
    let port =
        |it: &AssignedPort| format!("{}->{}/{}", it.host_port, it.container_port, it.protocol);
    sandbox.status.assigned_ports.iter().map(port).collect::<Vec<_>>().join(",")
}

/// Containers that run, of how many.
fn ready_count(sandbox: &Sandbox) -> String {
    let running =
        sandbox.status.containers.iter().filter(|container| container.state == "running").count();
    format!("{running}/{}", sandbox.spec.containers.len())
}

fn images_of(sandbox: &Sandbox) -> String {
    let mut images: Vec<&str> =
        sandbox.spec.containers.iter().map(|container| container.image.as_str()).collect();
    images.dedup();
    images.join(",")
}

/// Exit codes of the containers that ended; `?` where nobody saw it.
fn exit_codes(sandbox: &Sandbox) -> String {
    let codes: Vec<String> = sandbox
        .status
        .containers
        .iter()
        .filter(|container| container.state == "exited")
        .map(|container| container.exit_code.map_or("?".to_owned(), |code| code.to_string()))
        .collect();
    codes.join(",")
}

/// A table of images.
pub(super) fn image_table(images: &[ImageInfo], wide: bool) -> Table {
    let mut table = if wide {
        Table::new(&[
            "REFERENCE",
            "DIGEST",
            "PLATFORM",
            "SIZE",
            "LAYERS",
            "USED BY",
            "LAST USED",
            "AGE",
        ])
    } else {
        Table::new(&["REFERENCE", "DIGEST", "SIZE", "USED BY", "AGE"])
    };
    let now = Timestamp::now();
    for image in images {
        let digest = if wide { image.digest.clone() } else { short_digest(&image.digest) };
        let size = Cell::figure(human_bytes(image.size_bytes));
        let age = Cell::new(age_since(&image.imported_at, now));
        let used_by = Cell::new(if image.used_by.is_empty() {
            String::new()
        } else {
            image.used_by.len().to_string()
        });
        for reference in shown_references(image) {
            let mut cells = vec![Cell::new(reference), Cell::new(&digest)];
            if wide {
                cells.push(Cell::new(&image.platform));
            }
            cells.push(size.clone());
            if wide {
                cells.push(Cell::figure(image.layers.to_string()));
            }
            cells.push(used_by.clone());
            if wide {
                let last = image.last_used_at.as_ref().map(|time| age_since(time, now));
                cells.push(Cell::new(last.unwrap_or_default()));
            }
            cells.push(age.clone());
            table.row(cells);
        }
    }
    table
}

fn shown_references(image: &ImageInfo) -> Vec<String> {
    if image.references.is_empty() { vec!["<none>".to_owned()] } else { image.references.clone() }
}

/// The first twelve digits of a digest.
pub(super) fn short_digest(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

fn external_table(externals: &[External], _: bool) -> Table {
    let mut table = Table::new(&["NAME", "NODE", "EXTERNAL", "AGE"]);
    let now = Timestamp::now();
    for it in externals {
        let age = age_since(&it.created_at, now);
        table.row([&it.id, &it.node_id, &it.external, &age].map(Cell::new).into());
    }
    table
}

/// Bytes that are used are known of a single one only.
fn volume_table(volumes: &[NamedVolume], wide: bool) -> Table {
    let mut table = if wide {
        Table::new(&["NAME", "PHASE", "SIZE", "USED", "USED BY", "AGE", "BACKEND", "UID"])
    } else {
        Table::new(&["NAME", "PHASE", "SIZE", "USED", "USED BY", "AGE"])
    };
    let now = Timestamp::now();
    for volume in volumes {
        let status = &volume.status;
        let mut cells = vec![
            Cell::new(&volume.id),
            Cell::coloured(&status.phase, volume_colour(&status.phase)),
            Cell::figure(&volume.spec.size),
            Cell::figure(status.used_bytes.map(human_bytes).unwrap_or_default()),
            Cell::new(status.used_by.join(",")),
            Cell::new(age_since(&volume.created_at, now)),
        ];
        if wide {
            cells.push(Cell::new(status.backend.clone().unwrap_or_default()));
            cells.push(Cell::new(&volume.uid));
        }
        table.row(cells);
    }
    table
}

/// The colour of a volume's phase.
pub(super) fn volume_colour(phase: &str) -> Colour {
    match phase {
        "Ready" => Colour::Good,
        "Lost" => Colour::Bad,
        _ => Colour::Busy,
    }
}

fn node_table(nodes: &[NodeInfo], wide: bool) -> Table {
    let mut table = if wide {
        Table::new(&["NAME", "VERSION", "CLASSES", "DEFAULT", "PID", "LABELS"])
    } else {
        Table::new(&["NAME", "VERSION", "CLASSES", "DEFAULT"])
    };
    for node in nodes {
        let classes: Vec<&str> = node
            .classes
            .iter()
            .filter(|class| class.available)
            .map(|class| class.name.as_str())
            .collect();
        let mut cells = vec![
            Cell::new(&node.id),
            Cell::new(&node.version),
            Cell::new(classes.join(",")),
            Cell::new(&node.default_class),
        ];
        if wide {
            let labels: Vec<String> =
                node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            cells.push(Cell::figure(node.pid.to_string()));
            cells.push(Cell::new(labels.join(",")));
        }
        table.row(cells);
    }
    table
}
