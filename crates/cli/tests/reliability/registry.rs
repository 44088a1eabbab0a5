//! A registry that dies in the middle of a pull: a clear word, nothing half-made, and the next pull goes on where this one ended.

use std::sync::Arc;

use crate::support::{Behaviour, Registry, Served, instance_with_image};

#[test]
fn a_registry_that_dies_in_the_middle_of_a_pull_leaves_nothing_half_made_and_the_next_pull_resumes()
{
    let Some(instance) = instance_with_image("registry_gone") else { return };
    let image = Arc::new(Served::new());
    let dying =
        Registry::start("127.0.0.1:0", &image, Behaviour { dies: true, ..Behaviour::default() });
    let (reference, address) = (dying.reference(), dying.address.to_string());
    let failed = instance.atoll(["image", "pull", "--plain-http", &reference]);
    failed.ended_with(1);
    failed.complains(&address);
    assert_eq!(dying.layer_asked_from(), [0]);
    drop(dying);

    let images = instance.atoll(["image", "ls", "-o", "json"]).json();
    assert_eq!(
        images["items"].as_array().map(Vec::len),
        Some(1),
        "only the imported one: {images}"
    );
    let refused = instance.atoll(["run", "--pull", "never", &reference, "--", "true"]);
    refused.ended_with(125);
    refused.complains("half");
    instance.has_no_sandboxes();

    let healthy = Registry::start(&address, &image, Behaviour::default());
    instance.atoll(["image", "pull", "--plain-http", &reference]).succeeded();
    let asked = healthy.layer_asked_from();
    assert!(
        asked.len() == 1 && asked[0] > 0,
        "the second pull goes on where the first ended: {asked:?}"
    );
    let pulled = instance.atoll(["run", "--pull", "never", &reference, "--", "cat", "/etc/pulled"]);
    assert_eq!(pulled.succeeded(), "whole\n");
    instance.end();
}
