//! The pieces of work of an owner, as futures that can be dropped at any moment: nothing half-made stays behind.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::causes::with_causes;
use atoll_model::image_reference::ImageReference;
use atoll_model::spec::{Container, PullPolicy, SandboxSpec};
use atoll_model::state::Cause;
use atoll_runtime::{Adoption, EventReceiver, Runtime, RuntimeError, Sandbox};
use atoll_wire::guest::UserIds;
use atoll_wire::rest::ImageProgress;
use atoll_wire::shim::SandboxPlan;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{Context, Subject};
use crate::images::{ImageConfig, ImageSourceError, Progress, ResolvedImage, ResolvedUser};
use crate::plan::{self, NamedVolumes, PlannedImage};
use crate::store::{NewEvent, Write};

/// How long an adoption may take: a shim answers within milliseconds, a busy machine within seconds.
const ADOPTION_DEADLINE: Duration = Duration::from_secs(20);

/// What a piece of work came to.
pub(super) enum Outcome {
    /// There are more volumes than before.
    VolumeOffered,
    /// It is this sandbox's turn.
    Turn(OwnedSemaphorePermit),
    /// All images are here.
    Images(Result<(Vec<PlannedImage>, OwnedSemaphorePermit), Cause>),
    /// The shim has it.
    Launched(Result<(Arc<dyn Sandbox>, EventReceiver), Cause>),
    /// What was found of it.
    Adopted(Result<Adoption, String>),
    /// Nothing can be found: its class is missing.
    ClassMissing(String),
    /// Nothing of it is left on the host.
    Destroyed(Result<(), String>),
    /// A pause is over: the work after it.
    Paused(After),
}

/// What comes after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Adopt,
    Destroy,
}

/// A piece of work under way.
pub(super) type Work = BoxFuture<'static, Outcome>;

/// Waits until there are more volumes.
pub(super) fn offer(mut offers: watch::Receiver<u64>) -> Work {
    Box::pin(async move {
        match offers.changed().await {
            Ok(()) => Outcome::VolumeOffered,
            // Never closed while owners run.
            Err(_) => std::future::pending().await,
        }
    })
}

/// Waits for a turn.
pub(super) fn turn(context: &Context) -> Work {
    let launches = Arc::clone(&context.launches);
    Box::pin(async move {
        match launches.acquire_owned().await {
            Ok(permit) => Outcome::Turn(permit),
            // Never closed while owners run.
            Err(_) => std::future::pending().await,
        }
    })
}

/// Waits.
pub(super) fn pause(pause: Duration, after: After) -> Work {
    Box::pin(async move {
        tokio::time::sleep(pause).await;
        Outcome::Paused(after)
    })
}

/// Finds or pulls every image, leases it, and looks up users. While a registry is asked the turn is given to others.
pub(super) fn images(
    context: &Arc<Context>,
    subject: &Subject,
    permit: OwnedSemaphorePermit,
) -> Work {
    let (context, spec) = (Arc::clone(context), Arc::clone(&subject.spec));
    let (name, uid) = (subject.name.to_string(), subject.uid.to_string());
    Box::pin(async move {
        let mut permit = Some(permit);
        let mut planned = Vec::with_capacity(spec.containers.len());
        for container in &spec.containers {
            match one_image(&context, &name, &uid, container, &mut permit).await {
                Ok(image) => planned.push(image),
                Err(error) => {
                    let reason = if matches!(error, ImageSourceError::NotFound { .. }) {
                        "ImageNotFound"
                    } else {
                        "ImagePull"
                    };
                    let message = format!(
                        "container {}: image {}: {error}",
                        container.name,
                        container.image.familiar()
                    );
                    return Outcome::Images(Err(Cause { reason: reason.to_owned(), message }));
                }
            }
        }
        let permit = match permit {
            Some(permit) => permit,
            None => match Arc::clone(&context.launches).acquire_owned().await {
                Ok(permit) => permit,
                Err(_) => std::future::pending().await,
            },
        };
        Outcome::Images(Ok((planned, permit)))
    })
}

async fn one_image(
    context: &Arc<Context>,
    name: &str,
    uid: &str,
    container: &Container,
    permit: &mut Option<OwnedSemaphorePermit>,
) -> Result<PlannedImage, ImageSourceError> {
    let found = match container.pull {
        PullPolicy::Always => None,
        PullPolicy::Missing | PullPolicy::Never => context.images.find(&container.image).await?,
    };
    let image = match found {
        Some(image) => image,
        None if container.pull == PullPolicy::Never => {
            let message =
                "is not here, and its pull policy is 'never'; import or pull it first".to_owned();
            return Err(ImageSourceError::NotFound { message });
        }
        None => {
            drop(permit.take());
            pull(context, name, &container.image).await?
        }
    };
    context.images.lease(&image.digest, uid).await?;
    let user = container.user.as_deref().unwrap_or(&image.config.user);
    let user = context.images.resolve_user(&image.digest, user).await?;
    Ok(PlannedImage { image, user })
}

async fn pull(
    context: &Arc<Context>,
    name: &str,
    reference: &ImageReference,
) -> Result<ResolvedImage, ImageSourceError> {
    let event = |reason, message| NewEvent {
        warning: false,
        reason,
        object: format!("sandbox/{name}"),
        message,
    };
    let note = |event: NewEvent| {
        let store = context.store.clone();
        // An event that the disk does not take is told by what fails next.
        tokio::spawn(async move { store.commit(Write::EventsOnly, vec![event]).await.ok() });
    };
    note(event("Pulling", format!("image {}", reference.familiar())));
    // Nobody watches this one: who wants to see progress pulls by itself.
    let progress: Progress = Arc::new(|_: ImageProgress| {});
    // Loopback registries have no certificates: plain HTTP is tried there, and nowhere else.
    let image = context.images.pull(reference, reference.registry_is_loopback(), progress).await?;
    note(event("Pulled", format!("image {}, {}", reference.familiar(), image.digest)));
    Ok(image)
}

/// Plans and launches.
pub(super) fn launch(
    runtime: Arc<dyn Runtime>,
    plan: SandboxPlan,
    permit: OwnedSemaphorePermit,
) -> Work {
    Box::pin(async move {
        let launched = runtime.launch(plan).await;
        drop(permit);
        Outcome::Launched(launched.map_err(|error| launch_cause(&error)))
    })
}

fn launch_cause(error: &RuntimeError) -> Cause {
    let reason = match error {
        RuntimeError::Host { .. } | RuntimeError::Io { .. } => "HostError",
        RuntimeError::Unsupported { .. } => "Unsupported",
        _ => "StartFailed",
    };
    Cause { reason: reason.to_owned(), message: with_causes(error) }
}

/// Finds a sandbox that an earlier server, or a shim that was lost, began.
pub(super) fn adopt(runtime: Arc<dyn Runtime>, uid: String) -> Work {
    Box::pin(async move {
        let adoption = tokio::time::timeout(ADOPTION_DEADLINE, runtime.adopt(&uid)).await;
        Outcome::Adopted(match adoption {
            Ok(result) => result.map_err(|error| with_causes(&error)),
            Err(_) => {
                Err(format!("its shim did not answer within {} s", ADOPTION_DEADLINE.as_secs()))
            }
        })
    })
}

/// How much of a sandbox goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    /// Everything.
    All,
    /// Everything but its directory, where its logs lie.
    AllButDirectory,
}

/// Removes a sandbox from the host, and its leases.
pub(super) fn destroy(context: &Arc<Context>, subject: &Subject, removal: Removal) -> Work {
    let context = Arc::clone(context);
    let (uid, class) = (subject.uid.to_string(), subject.class);
    Box::pin(async move {
        let destroyed = match context.runtimes.get(&class) {
            Some(runtime) => remove(runtime, &uid, removal).await,
            None => destroy_without_runtime(&context, &uid, removal).await,
        };
        let released = match destroyed {
            Ok(()) => context.images.release(&uid).await.map_err(|error| with_causes(&error)),
            Err(error) => Err(error),
        };
        Outcome::Destroyed(released)
    })
}

async fn remove(runtime: &Arc<dyn Runtime>, uid: &str, removal: Removal) -> Result<(), String> {
    let removed = match removal {
        Removal::All => runtime.destroy(uid).await,
        Removal::AllButDirectory => runtime.clear(uid).await,
    };
    removed.map_err(|error| with_causes(&error))
}

/// The class is not to be had any more: another one's runtime knows as well how to remove what lies on this host.
async fn destroy_without_runtime(
    context: &Context,
    uid: &str,
    removal: Removal,
) -> Result<(), String> {
    for runtime in context.runtimes.values() {
        remove(runtime, uid, removal).await?;
    }
    Ok(())
}

/// The plan of a sandbox that an earlier server began; only what concerns further processes is used. What an image says is left out
/// where the image is not here any more.
pub(super) async fn plan_again(
    context: &Context,
    subject: &Subject,
    digests: &[String],
) -> SandboxPlan {
    let mut planned = Vec::new();
    for (index, container) in subject.spec.containers.iter().enumerate() {
        let digest = digests.get(index).map_or("", String::as_str);
        let image = image_again(context, subject, digest).await;
        let user = container.user.as_deref().unwrap_or(&image.config.user);
        let user = context.images.resolve_user(digest, user).await.unwrap_or_else(|error| {
            tracing::warn!(%error, sandbox = %subject.name, "a user cannot be looked up again; further processes run as nobody");
            let ids = UserIds { uid: NOBODY, gid: NOBODY, supplementary_gids: Vec::new() };
            ResolvedUser { ids, home: None }
        });
        planned.push(PlannedImage { image, user });
    }
    plan::plan_without_commands(subject.uid, &subject.name, &subject.spec, &planned)
}

/// SOURCE: Debian's base-passwd and Linux' overflow id.
const NOBODY: u32 = 65_534;

async fn image_again(context: &Context, subject: &Subject, digest: &str) -> ResolvedImage {
    let found = context.images.by_digest(digest).await;
    if let Ok(Some(image)) = found {
        if let Err(error) = context.images.lease(digest, &subject.uid.to_string()).await {
            tracing::warn!(%error, sandbox = %subject.name, "an image in use could not be leased again");
        }
        return image;
    }
    tracing::warn!(sandbox = %subject.name, digest, "an image in use is not here any more");
    ResolvedImage { digest: digest.to_owned(), layers: Vec::new(), config: ImageConfig::default() }
}

/// The plan, or why there is none.
pub(super) fn make_plan(
    subject: &Subject,
    spec: &SandboxSpec,
    images: &[PlannedImage],
    named_volumes: &NamedVolumes,
) -> Result<SandboxPlan, Cause> {
    plan::plan(subject.uid, &subject.name, spec, images, named_volumes)
        .map_err(|error| Cause { reason: "StartFailed".to_owned(), message: error.to_string() })
}
