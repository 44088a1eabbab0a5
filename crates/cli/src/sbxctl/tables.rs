//! sbxctl's columns. SOURCE: sandboxd-o.

use atoll_wire::rest::{AssignedPort, External, Node, Sandbox};

use crate::output::{Cell, Table};

/// What is shown where no external is known. SOURCE: sandboxd-o.
const NO_EXTERNAL: &str = "(none)";

/// Sandboxes.
pub(super) fn sandboxes(items: &[Sandbox], wide: bool) -> Table {
    let mut table = if wide {
        Table::new(&[
            "NAME",
            "PHASE",
            "NODE",
            "EXTERNAL",
            "IP",
            "PORTS",
            "EGRESS",
            "CONTAINERS",
            "EXPIRE_AT",
            "LAST_ERROR",
            "CREATED",
        ])
    } else {
        Table::new(&["NAME", "PHASE", "NODE", "EXTERNAL", "CREATED"])
    };
    for it in items {
        let status = &it.status;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let external = status.external.clone().unwrap_or_else(|| NO_EXTERNAL.to_owned());
        let mut cells =
            vec![it.id.clone(), status.phase.clone(), text(&status.node_name), external];
        if wide {
            let port = |it: &AssignedPort| {
                format!("{}/{}->{}", it.host_port, it.protocol, it.container_port)
            };
            let ports: Vec<String> = status.assigned_ports.iter().map(port).collect();
            let names: Vec<&str> = it.spec.containers.iter().map(|it| it.name.as_str()).collect();
            cells.extend([
                text(&status.ip),
                ports.join(","),
                it.spec.egress.to_string(),
                names.join(","),
            ]);
            cells.extend([text(&status.expire_at), text(&status.last_error)]);
        }
        cells.push(it.created_at.clone());
        table.row(cells.into_iter().map(Cell::new).collect());
    }
    table
}

/// Nodes.
pub(super) fn nodes(items: &[Node], wide: bool, labels: bool) -> Table {
    let mut headings = vec!["NAME", "STATE", "SCHEDULABLE", "IP", "PORT", "EXTERNAL"];
    if wide {
        headings.extend([
            "CPU(ALLOC/USED/AVAIL)",
            "MEM(ALLOC/USED/AVAIL)",
            "LAST_ERROR",
            "HEARTBEAT",
        ]);
    }
    headings.extend(labels.then_some("LABELS"));
    headings.push("UPDATED");
    let mut table = Table::new(&headings);
    for it in items {
        let has = &it.resources;
        let schedulable = (!it.unschedulable).to_string();
        let mut cells = vec![it.id.clone(), it.state.clone(), schedulable, it.ip.clone()];
        cells.extend([it.port.to_string(), has.external.clone()]);
        if wide {
            let milli = |value: i64| format!("{value}m");
            let mebi = |value: i64| format!("{}MB", value >> 20);
            let three = |write: &dyn Fn(i64) -> String, of: [i64; 3]| of.map(write).join("/");
            cells.push(three(
                &milli,
                [has.allocatable_cpu_milli, has.used_cpu_milli, has.available_cpu_milli],
            ));
            cells.push(three(
                &mebi,
                [has.allocatable_memory_bytes, has.used_memory_bytes, has.available_memory_bytes],
            ));
            // It answers itself: it has no errors of a probe, and no heartbeat but this answer.
            cells.extend([String::new(), String::new()]);
        }
        let pairs: Vec<String> =
            it.metadata.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        cells.extend(labels.then(|| pairs.join(",")));
        cells.push(it.updated_at.clone());
        table.row(cells.into_iter().map(Cell::new).collect());
    }
    table
}

/// Externals.
pub(super) fn externals(items: &[External]) -> Table {
    let mut table = Table::new(&["ID", "NODE_ID", "EXTERNAL", "UPDATED"]);
    for it in items {
        table.row([&it.id, &it.node_id, &it.external, &it.updated_at].map(Cell::new).into());
    }
    table
}
