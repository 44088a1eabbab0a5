//! `atoll events`: what happened, and what happens.

use atoll_wire::rest::{Event, Items, WatchEvent};
use jiff::Timestamp;
use reqwest::Method;

use super::{Outcome, SUCCESS, connect};
use crate::args::{ConnectionArgs, EventsArgs, PlainFormat};
use crate::client::{Client, ClientError, with_query};
use crate::output::{self, Cell, Colour, Styles, Table, age_since};

/// Shows events, oldest first.
pub(super) async fn events(args: EventsArgs, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    let object = args.object.map(|object| format!("{}/{}", object.kind.name(), object.name));
    if args.follow {
        return follow(&client, object.as_deref(), args.output).await;
    }
    let list = of_object(&client, object.as_deref()).await?;
    match args.output {
        PlainFormat::Json => output::print_json(&list)?,
        PlainFormat::Text if list.items.is_empty() => output::note("Nothing has happened yet."),
        PlainFormat::Text => {
            let now = Timestamp::now();
            let ages = |event: &Event| age_since(&event.time, now);
            output::print(&table(&list.items, "AGE", ages).render(Styles::stdout()))?;
        }
    }
    Ok(SUCCESS)
}

/// The events of an object, or all.
pub(super) async fn of_object(
    client: &Client,
    object: Option<&str>,
) -> Result<Items<Event>, ClientError> {
    client.get(&with_query("/api/v1/events", &[("object", object)])).await
}

/// The newest event's text.
pub(super) async fn latest_message(client: &Client, sandbox: &str) -> Option<String> {
    let object = format!("sandbox/{sandbox}");
    let events = of_object(client, Some(&object)).await.ok()?;
    events.items.last().map(|event| format!("{}: {}", event.reason, event.message))
}

async fn follow(client: &Client, object: Option<&str>, format: PlainFormat) -> Outcome {
    let path = with_query("/api/v1/events", &[("object", object), ("watch", Some("true"))]);
    let mut lines = client.lines(client.request(Method::GET, &path)).await?;
    let mut widths = Vec::new();
    let mut headings = true;
    while let Some(line) = lines.next::<WatchEvent<Event>>().await? {
        let Some(event) = line.object else { continue };
        if format == PlainFormat::Json {
            output::print_json_line(&event)?;
            continue;
        }
        let rows = table(&[event], "TIME", |event| event.time.clone());
        output::print(&rows.render_with(Styles::stdout(), &mut widths, headings))?;
        headings = false;
    }
    Ok(SUCCESS)
}

/// A table of events, with the time in the first column.
pub(super) fn table(
    events: &[Event],
    time_heading: &'static str,
    time: impl Fn(&Event) -> String,
) -> Table {
    let mut table = Table::new(&[time_heading, "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    for event in events {
        let kind = if event.kind == "Warning" {
            Cell::coloured(&event.kind, Colour::Bad)
        } else {
            Cell::new(&event.kind)
        };
        table.row(vec![
            Cell::new(time(event)),
            kind,
            Cell::new(&event.reason),
            Cell::new(&event.object),
            Cell::new(&event.message),
        ]);
    }
    table
}
