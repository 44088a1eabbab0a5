//! `atoll image …`: the local image store.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use atoll_wire::rest::{CollectedImages, Deleted, ImageInfo, ImageProgress, Items, PullImage};
use reqwest::{Body, Method};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::get::{image_table, short_digest, show_list};
use super::{FAILURE, Outcome, SUCCESS, connect};
use crate::args::{
    ConnectionArgs, ImageCommand, ImageGcArgs, ImageImportArgs, ImagePullArgs, ImageRemoveArgs,
    PlainFormat,
};
use crate::client::{Client, LineStream, with_query};
use crate::output::{self, TransferProgress, human_bytes};

/// Bytes that are read from a file at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// When progress is worth a line of the terminal.
const PATIENCE: Duration = Duration::from_secs(1);

/// Works with images.
pub(super) async fn image(command: ImageCommand, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    match command {
        ImageCommand::Import(args) => import(&client, args).await,
        ImageCommand::Pull(args) => pull(&client, args).await,
        ImageCommand::Ls(args) => {
            let images: Items<ImageInfo> = client.get("/api/v1/images").await?;
            show_list(&images, args.output, image_table)
        }
        ImageCommand::Inspect(args) => {
            let path =
                with_query("/api/v1/images/inspect", &[("reference", Some(&args.reference))]);
            let image: ImageInfo = client.get(&path).await?;
            output::print_json(&image)?;
            Ok(SUCCESS)
        }
        ImageCommand::Rm(args) => remove(&client, args).await,
        ImageCommand::Gc(args) => collect(&client, args).await,
    }
}

async fn import(client: &Client, args: ImageImportArgs) -> Outcome {
    let path = with_query("/api/v1/images/import", &[("reference", args.reference.as_deref())]);
    let source: Box<dyn AsyncRead + Send + Unpin> = if args.file == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let file = tokio::fs::File::open(&args.file)
            .await
            .with_context(|| format!("cannot open {}", args.file.display()))?;
        Box::new(file)
    };
    let body = Body::wrap_stream(ReaderStream::with_capacity(source, CHUNK_BYTES));
    let lines = client.lines(client.request(Method::POST, &path).body(body)).await?;
    show_progress(lines, false).await
}

async fn pull(client: &Client, args: ImagePullArgs) -> Outcome {
    let body = PullImage { reference: args.reference, plain_http: args.plain_http };
    let request = client.request(Method::POST, "/api/v1/images/pull").json(&body);
    show_progress(client.lines(request).await?, args.quiet).await
}

/// Shows a bar while it takes longer than a moment, then what was got.
async fn show_progress(mut lines: LineStream, quiet: bool) -> Outcome {
    let begun = Instant::now();
    let mut layers: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut bar = None;
    while let Some(progress) = lines.next::<ImageProgress>().await? {
        if let Some(error) = progress.error {
            drop(bar);
            let mut text = error.error;
            for field in error.fields {
                text.push_str(&format!("\n  {}: {}", field.path, field.message));
            }
            anyhow::bail!(text);
        }
        if let Some(images) = progress.done {
            drop(bar);
            for image in images {
                print_image(&image)?;
            }
            return Ok(SUCCESS);
        }
        if let (Some(layer), Some(done)) = (progress.layer, progress.done_bytes) {
            layers.insert(layer, (done, progress.total_bytes.unwrap_or(done)));
        }
        if !quiet && begun.elapsed() >= PATIENCE {
            let bar = bar.get_or_insert_with(|| TransferProgress::new("", Some(0)));
            let (done, total) =
                layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
            bar.label(&progress.status);
            bar.set(done, total);
        }
    }
    anyhow::bail!("the server ended without saying whether it is done: see its log")
}

fn print_image(image: &ImageInfo) -> anyhow::Result<()> {
    let name = if image.references.is_empty() {
        image.digest.clone()
    } else {
        image.references.join(", ")
    };
    output::print(&format!(
        "{name}   {}   {}   {} layer{}\n",
        short_digest(&image.digest),
        human_bytes(image.size_bytes),
        image.layers,
        if image.layers == 1 { "" } else { "s" }
    ))
}

async fn remove(client: &Client, args: ImageRemoveArgs) -> Outcome {
    let mut code = SUCCESS;
    for reference in &args.references {
        let path = with_query("/api/v1/images", &[("reference", Some(reference))]);
        match client.json::<Deleted>(client.request(Method::DELETE, &path)).await {
            Ok(deleted) => output::print(&format!("image/{} deleted\n", deleted.deleted))?,
            Err(error) => {
                output::error(&error.into());
                code = FAILURE;
            }
        }
    }
    Ok(code)
}

async fn collect(client: &Client, args: ImageGcArgs) -> Outcome {
    let collected: CollectedImages =
        client.json(client.request(Method::POST, "/api/v1/images/gc")).await?;
    if args.output == PlainFormat::Json {
        output::print_json(&collected)?;
        return Ok(SUCCESS);
    }
    for removed in &collected.removed {
        output::print(&format!("{removed} removed\n"))?;
    }
    output::print(&format!("{} freed\n", human_bytes(collected.freed_bytes)))?;
    Ok(SUCCESS)
}
