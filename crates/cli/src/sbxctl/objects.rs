//! `sbxctl get`.

use atoll_wire::rest::{External, Node, Sandbox};
use reqwest::Method;
use serde_json::{Map, Value};

use super::arguments::{Format, Kind, Reference};
use super::{Session, tables};
use crate::client::encoded;
use crate::output::{self, Styles, Table};

impl Session {
    /// Lists of one or several kinds, or one object, which is always shown whole.
    pub(super) async fn get(&self, objects: &str, show_labels: bool) -> anyhow::Result<()> {
        if objects.contains('/') {
            let one: Reference = objects.parse().map_err(anyhow::Error::msg)?;
            let path = format!("{}/{}", one.kind.path(), encoded(&one.name));
            let answer = self.ask(Method::GET, &path, None).await?;
            return match self.config.output {
                Some(Format::Yaml) => output::print_yaml(&answer[one.kind.singular()]),
                _ => output::print_json(&answer[one.kind.singular()]),
            };
        }
        let kinds: Result<Vec<Kind>, String> =
            objects.split(',').map(|kind| kind.trim().parse()).collect();
        let mut whole = Map::new();
        for kind in kinds.map_err(anyhow::Error::msg)? {
            let answer = self.ask(Method::GET, kind.path(), None).await?;
            let items = answer["items"].clone();
            match self.config.output {
                Some(Format::Json | Format::Yaml) => {
                    whole.insert(kind.plural().to_owned(), items);
                }
                wide => show(kind, items, wide.is_some(), show_labels)?,
            }
        }
        match self.config.output {
            Some(Format::Json) => output::print_json(&whole),
            Some(Format::Yaml) => output::print_yaml(&whole),
            _ => Ok(()),
        }
    }
}

fn show(kind: Kind, items: Value, wide: bool, labels: bool) -> anyhow::Result<()> {
    let table: Option<Table> = match kind {
        Kind::Sandbox => {
            let items: Vec<Sandbox> = serde_json::from_value(items)?;
            (!items.is_empty()).then(|| tables::sandboxes(&items, wide))
        }
        Kind::Node => {
            let items: Vec<Node> = serde_json::from_value(items)?;
            (!items.is_empty()).then(|| tables::nodes(&items, wide, labels))
        }
        Kind::External => {
            let items: Vec<External> = serde_json::from_value(items)?;
            (!items.is_empty()).then(|| tables::externals(&items))
        }
    };
    output::print(&format!("RESOURCE: {}\n", kind.singular()))?;
    match table {
        Some(table) => output::print(&table.render(Styles::plain())),
        None => output::print("No resources found\n"),
    }
}
