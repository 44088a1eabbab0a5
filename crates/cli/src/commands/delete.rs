//! `atoll delete`: returns once nothing is left of what was deleted.

use atoll_wire::rest::{Deleted, External, ImageInfo, Items};
use futures::StreamExt;
use reqwest::Method;

use super::{FAILURE, Outcome, SUCCESS, connect};
use crate::args::{ConnectionArgs, DeleteArgs, ObjectReference, ResourceKind};
use crate::client::{Client, ClientError, encoded, volume_path, with_query};
use crate::output;

/// Deletions at the same time.
const CONCURRENT: usize = 8;

/// Deletes objects; goes on after a failure, and fails at the end then.
pub(super) async fn delete(args: DeleteArgs, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    let mut targets = Vec::new();
    for selector in args.objects {
        match (selector.name, args.all) {
            (Some(name), false) => targets.push(ObjectReference { kind: selector.kind, name }),
            (None, true) => targets.extend(all_of(&client, selector.kind).await?),
            (Some(name), true) => anyhow::bail!(
                "--all deletes all objects of a kind: write `atoll delete {} --all`, or leave --all out to delete {name}",
                selector.kind.name()
            ),
            (None, false) => anyhow::bail!(
                "write {kind}/NAME, or `atoll delete {kind} --all` for all of them",
                kind = selector.kind.name()
            ),
        }
    }
    let results: Vec<(ObjectReference, Result<(), ClientError>)> = futures::stream::iter(targets)
        .map(|target| {
            let client = client.clone();
            async move {
                let result = delete_one(&client, &target).await;
                (target, result)
            }
        })
        .buffered(CONCURRENT)
        .collect()
        .await;
    let mut code = SUCCESS;
    for (target, result) in results {
        let name = format!("{}/{}", target.kind.name(), target.name);
        match result {
            Ok(()) => output::print(&format!("{name} deleted\n"))?,
            Err(error) if args.ignore_not_found && error.is_not_found() => {}
            Err(error) => {
                output::error(&anyhow::Error::new(error).context(name));
                code = FAILURE;
            }
        }
    }
    Ok(code)
}

async fn all_of(client: &Client, kind: ResourceKind) -> anyhow::Result<Vec<ObjectReference>> {
    let names: Vec<String> = match kind {
        ResourceKind::Sandbox => {
            client.sandboxes().await?.items.into_iter().map(|sandbox| sandbox.id).collect()
        }
        ResourceKind::Image => {
            let images: Items<ImageInfo> = client.get("/api/v1/images").await?;
            images
                .items
                .into_iter()
                .map(|image| image.references.into_iter().next().unwrap_or(image.digest))
                .collect()
        }
        ResourceKind::External => {
            let externals: Items<External> = client.get("/api/v1/externals").await?;
            externals.items.into_iter().map(|external| external.id).collect()
        }
        ResourceKind::Volume => {
            client.volumes().await?.items.into_iter().map(|volume| volume.id).collect()
        }
        ResourceKind::Node => {
            anyhow::bail!("this machine cannot be deleted: end it with `atoll down`")
        }
    };
    Ok(names.into_iter().map(|name| ObjectReference { kind, name }).collect())
}

async fn delete_one(client: &Client, target: &ObjectReference) -> Result<(), ClientError> {
    let path = match target.kind {
        ResourceKind::Sandbox => return client.delete_sandbox(&target.name).await,
        ResourceKind::Image => with_query("/api/v1/images", &[("reference", Some(&target.name))]),
        ResourceKind::External => format!("/api/v1/externals/{}", encoded(&target.name)),
        ResourceKind::Volume => volume_path(&target.name),
        // Refused by the server, which is the machine.
        ResourceKind::Node => format!("/api/v1/nodes/{}", encoded(&target.name)),
    };
    let _: Deleted = client.json(client.request(Method::DELETE, &path)).await?;
    Ok(())
}
