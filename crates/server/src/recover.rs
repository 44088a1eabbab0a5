//! The restart: every record gets its owner, every orphan on the host is removed, before the first client is served.

use std::collections::HashSet;
use std::sync::Arc;

use atoll_model::causes::with_causes;
use atoll_model::ids::SandboxUid;
use atoll_model::spec::Class;
use atoll_model::state::Phase;
use atoll_wire::rest::Sandbox;
use tokio::sync::oneshot;

use crate::admission;
use crate::owner::{self, Begin, Context, Subject};
use crate::ports::plans;
use crate::store::{BadRecord, NewEvent, Write};

/// Takes up where the last server ended.
pub(crate) async fn recover(context: &Arc<Context>, bad: Vec<BadRecord>) {
    report(context, bad).await;
    let (records, _) = context.store.sandboxes();
    context.volumes.recover(&context.store).await;
    hold_ports(context, &records).await;
    let mut known: HashSet<String> = HashSet::new();
    let mut waiters = Vec::new();
    for record in &records {
        known.insert(record.uid.clone());
        if let Some(waiter) = take_up(context, record).await {
            waiters.push(waiter);
        }
    }
    let alive =
        records.iter().filter(|it| !Phase::from_name(&it.status.phase).is_some_and(Phase::is_over));
    let holders: HashSet<String> = alive.map(|it| it.uid.clone()).collect();
    if let Err(error) = context.images.retain_leases(&holders).await {
        tracing::warn!(%error, "leases of sandboxes that are gone could not be ended; images may stay longer than needed");
    }
    remove_orphans(context, &known).await;
    for waiter in waiters {
        // Dropped, not sent, when it is known what became of the sandbox.
        waiter.await.ok();
    }
    tracing::info!(sandboxes = records.len(), "took up what the last server left");
}

/// Before anybody else is given a port: those that were assigned are their sandboxes', and held.
async fn hold_ports(context: &Context, records: &[Arc<Sandbox>]) {
    let Some(network) = &context.network else { return };
    for record in records {
        let ports = &record.status.assigned_ports;
        if ports.is_empty() {
            continue;
        }
        context.ports.note(&record.uid, &record.id, ports);
        let phase = Phase::from_name(&record.status.phase);
        let is_pending = matches!(phase, Some(Phase::Pending | Phase::Scheduled));
        // Those that run have a place in the network, which holds theirs already.
        if is_pending && let Err(error) = network.hold(&record.uid, &plans(ports)).await {
            tracing::error!(sandbox = record.id, %error, "its ports could not be held again");
            let object = format!("sandbox/{}", record.id);
            let message = format!("its ports could not be held again: {error}");
            let event = NewEvent { warning: true, reason: "PortLost", object, message };
            context.store.commit(Write::EventsOnly, vec![event]).await.ok();
        }
    }
    network.retain().await;
}

async fn report(context: &Context, bad: Vec<BadRecord>) {
    if bad.is_empty() {
        return;
    }
    let event = |it: BadRecord| {
        tracing::error!(
            uid = it.uid,
            reason = it.reason,
            "a record could not be read and was set aside"
        );
        let message = format!(
            "its record could not be read and was set aside; what runs of it is removed: {}",
            it.reason
        );
        NewEvent {
            warning: true,
            reason: "Quarantined",
            object: format!("{}/{}", it.kind, it.uid),
            message,
        }
    };
    let events = bad.into_iter().map(event).collect();
    if let Err(error) = context.store.commit(Write::EventsOnly, events).await {
        tracing::warn!(%error, "this could not be recorded as an event");
    }
}

/// Begins a record's owner. A record whose specification this version cannot read is not touched, and not run.
async fn take_up(context: &Arc<Context>, record: &Arc<Sandbox>) -> Option<oneshot::Receiver<()>> {
    match subject(record) {
        Ok(subject) => {
            if !Phase::from_name(&record.status.phase).is_some_and(Phase::is_over) {
                context.volumes.rebind(subject.uid, &record.id, &subject.spec);
            }
            let (recovered, waiter) = oneshot::channel();
            owner::begin(context, subject, Begin::Recovered(recovered));
            Some(waiter)
        }
        Err(reason) => {
            tracing::error!(
                sandbox = record.id,
                reason,
                "its specification cannot be read; it is left as it is"
            );
            let object = format!("sandbox/{}", record.id);
            let event = NewEvent { warning: true, reason: "Unreadable", object, message: reason };
            context.store.commit(Write::EventsOnly, vec![event]).await.ok();
            None
        }
    }
}

fn subject(record: &Sandbox) -> Result<Subject, String> {
    let uid: SandboxUid = record.uid.parse().map_err(|error| format!("uid: {error}"))?;
    let name = record.id.parse().map_err(|error| format!("id: {error}"))?;
    let class = record.status.class.as_deref().and_then(Class::from_name);
    let class = class.ok_or_else(|| format!("class {:?} is not known", record.status.class))?;
    let spec = admission::read_admitted(&record.spec).map_err(|problems| {
        problems
            .into_iter()
            .map(|it| format!("{}: {}", it.path, it.message))
            .collect::<Vec<_>>()
            .join("; ")
    })?;
    Ok(Subject { name, uid, class, spec: Arc::new(spec), record: record.clone() })
}

/// Whatever no record knows must go: its creation was never acknowledged, or its deletion was.
async fn remove_orphans(context: &Context, known: &HashSet<String>) {
    for (class, runtime) in &context.runtimes {
        let inventory = match runtime.inventory().await {
            Ok(inventory) => inventory,
            Err(error) => {
                tracing::error!(
                    class = class.name(),
                    error = with_causes(&error),
                    "what is on this host cannot be listed; orphans stay"
                );
                continue;
            }
        };
        for uid in inventory.into_iter().filter(|uid| !known.contains(uid)) {
            match runtime.destroy(&uid).await {
                Ok(()) => tracing::info!(uid, class = class.name(), "removed what no record knows"),
                Err(error) => {
                    tracing::error!(
                        uid,
                        error = with_causes(&error),
                        "an orphan could not be removed"
                    )
                }
            }
        }
    }
}
