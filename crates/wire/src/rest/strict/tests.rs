use super::*;
use crate::rest::{CreateSandbox, Manifest, ResourceSpec};

fn from_yaml<T: DeserializeOwned>(text: &[u8]) -> Result<T, DocumentError> {
    from_value(yaml_value(text)?)
}

fn fields<T: DeserializeOwned>(text: &str) -> Vec<(String, String)> {
    match from_yaml::<T>(text.as_bytes()) {
        Err(DocumentError::Fields(fields)) => {
            fields.into_iter().map(|it| (it.path, it.message)).collect()
        }
        Err(DocumentError::Syntax(message)) => panic!("{message}"),
        Ok(_) => Vec::new(),
    }
}

#[test]
fn an_unknown_field_is_named_with_its_path_and_the_nearest_name() {
    let json = br#"{"spec":{"containers":[{"name":"a","image":"b"},{"name":"c","image":"d","resource":{"memmory":"1Mi"}}],"ttl":3}}"#;
    let Err(DocumentError::Fields(found)) = from_json::<CreateSandbox>(json) else {
        panic!("accepted")
    };
    assert_eq!(found[0].path, "spec.containers[1].resource.memmory");
    assert_eq!(found[0].message, "unknown field \"memmory\", did you mean \"memory\"?");
    assert_eq!((found[1].path.as_str(), found.len()), ("spec.ttl", 2));
    assert!(found[1].message.contains("did you mean \"ttl_seconds\"?"), "{}", found[1].message);
    let yaml = "kind: Sandbox\nid: x\nspec:\n  containers: []\n  readiness_probe: {protokol: tcp, zzz: 1}\n";
    let found = fields::<Manifest>(yaml);
    assert_eq!(found[0].0, "spec.readiness_probe.protokol");
    assert!(found[0].1.contains("did you mean \"protocol\""));
    assert!(
        found[1].1.starts_with("unknown field \"zzz\"; known here: protocol, port, path"),
        "{}",
        found[1].1
    );
}

#[test]
fn a_wrong_type_is_named_with_its_path_together_with_unknown_fields() {
    let found =
        fields::<CreateSandbox>("idd: 1\nspec:\n  containers:\n    - {name: a, image: [1]}\n");
    assert_eq!(found[0].0, "idd");
    assert_eq!(found[1].0, "spec.containers[0].image");
    assert!(found[1].1.contains("expected a string"));
}

#[test]
fn quantities_may_be_written_as_numbers() {
    let resource: ResourceSpec =
        from_yaml(b"cpu: 0.5\nmemory: 67108864\nephemeral_storage: 64Mi\n").unwrap();
    assert_eq!(
        (resource.cpu.as_deref(), resource.memory.as_deref()),
        (Some("0.5"), Some("67108864"))
    );
    assert_eq!(fields::<ResourceSpec>("cpu: [1]\n").len(), 1);
}

#[test]
fn what_is_no_document_is_refused() {
    let syntax = |result: Result<serde_json::Value, DocumentError>| {
        matches!(result, Err(DocumentError::Syntax(_)))
    };
    for bad in [
        "",
        "{",
        "{}x",
        "[1,]",
        "{\"a\":1,\"a\":2}",
        "nul",
        &"[".repeat(100),
        &"{\"a\":".repeat(100),
    ] {
        assert!(syntax(json_value(bad.as_bytes())), "{bad}");
    }
    for bad in [
        "",
        "a: [",
        "a: 1\na: 2",
        "a: .nan",
        "a: !tag x",
        "--- 1\n--- 2",
        "\t- x",
        "? [a]\n: b",
        &"- ".repeat(100),
    ] {
        assert!(syntax(yaml_value(bad.as_bytes())), "{bad:?}");
    }
    assert!(syntax(json_value(b"\"\xff\"")));
    assert!(syntax(yaml_value(b"a: \xff\xfe")));
}

/// A text of a kilobyte that stands for 10^9 values, and one for gigabytes of text.
#[test]
fn alias_bombs_are_refused_before_they_are_built() {
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..10 {
        let previous = vec![format!("*a{}", level - 1); 10].join(",");
        bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
    }
    assert!(matches!(yaml_value(bomb.as_bytes()), Err(DocumentError::Syntax(_))));
    let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 1000].join(","));
    let Err(DocumentError::Syntax(message)) = yaml_value(text.as_bytes()) else {
        panic!("accepted")
    };
    assert!(message.contains("bytes of text"), "{message}");
}

#[test]
fn the_fuzz_body_runs_over_its_corpus() {
    let corpus: [&[u8]; 9] = [
        b"kind: Sandbox\nid: a\nspec:\n  containers:\n  - {name: a, image: b, env: [A=b], resource: {cpu: 1, memory: 64Mi}}\n",
        br#"{"kind":"Sandbox","id":"a","metadata":{"labels":{"a":"b"}},"spec":{"containers":[],"boost_seconds":0,"shm_size":"1Mi"}}"#,
        b"a: &a [*a]",
        b"&a {<<: *a}",
        b"{\"spec\":null}",
        b"kind: 1\nid: .inf\nspec: ~",
        b"!!binary aGk=",
        b"\xef\xbb\xbfkind: x",
        b"{\"command\":[\"x\"],\"size\":{\"rows\":99999}}",
    ];
    corpus.iter().for_each(|data| fuzz_manifest(data));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(data in proptest::collection::vec(proptest::num::u8::ANY, 0..200), cut in 0_usize..120) {
        fuzz_manifest(&data);
        let manifest = b"kind: Sandbox\nid: a\nspec:\n  containers:\n  - {name: a, image: b, env: [A=b], tmpfs: [{mount_path: /x}]}\n";
        let mut mixed = manifest[..cut.min(manifest.len())].to_vec();
        mixed.extend_from_slice(&data);
        fuzz_manifest(&mixed);
    }
}
