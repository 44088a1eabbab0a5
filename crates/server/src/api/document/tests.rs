use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn document() -> Value {
    build()
}

/// Every value of a key, anywhere.
fn values_of<'a>(key: &str, value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key));
            map.values().for_each(|inner| values_of(key, inner, found));
        }
        Value::Array(list) => list.iter().for_each(|inner| values_of(key, inner, found)),
        _ => {}
    }
}

#[test]
fn the_described_paths_are_the_routers() {
    let document = document();
    let described: BTreeSet<&str> =
        document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let paths = super::super::routes().into_paths();
    let routed: BTreeSet<&str> = paths.iter().map(String::as_str).collect();
    let missing: Vec<_> = routed.difference(&described).collect();
    assert!(missing.is_empty(), "describe them in api/document/operations.rs: {missing:?}");
    let gone: Vec<_> = described.difference(&routed).collect();
    assert!(gone.is_empty(), "described, but no routes: {gone:?}");
}

#[test]
fn every_reference_leads_somewhere_and_every_operation_is_whole() {
    let document = document();
    let mut references = Vec::new();
    values_of("$ref", &document, &mut references);
    assert!(references.len() > 50, "{}", references.len());
    for reference in references.iter().filter_map(|it| it.as_str()) {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference}"));
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let name = |name: &str| {
        name.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'_' | b'-'))
    };
    // SOURCE: OpenAPI 3.1.0, components object.
    assert!(document["components"]["schemas"].as_object().unwrap().keys().all(|it| name(it)));
    let mut ids = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let at = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap();
            assert_eq!(ids.insert(id.to_owned(), at.clone()), None, "{at}: {id} is there twice");
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{at}");
            let answers = operation["responses"].as_object().unwrap();
            assert!(answers.len() >= 2 && answers.contains_key("default"), "{at}");
            for parameter in operation["parameters"].as_array().unwrap() {
                let name = parameter["name"].as_str().unwrap();
                assert_ne!(parameter["description"], "", "{at}: explain {name} in operations.rs");
                assert!(parameter["schema"].is_object(), "{at}: {parameter}");
            }
        }
    }
}

#[test]
fn what_a_manifest_may_say_is_described_from_its_type() {
    let document = document();
    let spec = &document["components"]["schemas"]["SandboxSpec"];
    assert_eq!(spec["required"], json!(["containers"]));
    assert!(
        spec["properties"]["ttl_seconds"]["description"].as_str().unwrap().contains("0: never")
    );
    let list = &document["paths"]["/api/v1/sandboxes"]["get"];
    let names: Vec<&str> = list["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    for wanted in ["limit", "cursor", "label_selector", "watch"] {
        assert!(names.contains(&wanted), "{names:?}");
    }
    let logs = &document["paths"]["/api/v1/sandboxes/{id}/logs"]["get"]["parameters"];
    let format = logs.as_array().unwrap().iter().find(|it| it["name"] == "format").unwrap();
    assert!(format["schema"].to_string().contains("records"), "{format}");
}

#[test]
fn the_page_needs_nobody_else() {
    assert!(!PAGE.contains("http://") && !PAGE.contains("https://") && !PAGE.contains(" src="));
    assert!(PAGE.len() < 32 << 10);
}
