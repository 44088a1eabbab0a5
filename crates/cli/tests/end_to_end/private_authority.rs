//! Pulls over TLS from a registry with a certificate of a private authority: what the operator puts into `certs/` is trusted, nothing else.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::support::{Behaviour, Finished, Instance, Registry, Served, instance_with_image};

/// An authority that no system knows.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(parameters, key) }
    }

    /// A registry with a certificate for this name, good until the end of that year.
    fn registry(&self, image: &Arc<Served>, name: &str, last_year: i32) -> Registry {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let behaviour = Behaviour { tls: Some(Arc::new(tls)), ..Behaviour::default() };
        Registry::start("127.0.0.1:0", image, behaviour)
    }

    /// What an operator does.
    fn trust(&self, directory: &Path) {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("ca.pem"), &self.pem).unwrap();
    }
}

/// A pull that must fail, naming the registry and the reason. Nothing was asked, and nothing is left.
#[track_caller]
fn refused(instance: &Instance, registry: &Registry, flags: &[&str], reason: &str) -> Finished {
    let reference = registry.reference();
    let arguments = ["image", "pull"].into_iter().chain(flags.iter().copied());
    let pull = instance.atoll(arguments.chain([reference.as_str()]));
    pull.ended_with(1);
    pull.complains(reason);
    assert!(registry.paths().is_empty(), "not a word before trust: {:?}", registry.paths());
    let shown = instance.atoll(["image", "ls"]).succeeded();
    assert!(!shown.contains(&reference), "{shown}");
    pull
}

#[test]
fn a_registry_of_a_private_authority_is_pulled_from_once_the_operator_trusts_it() {
    let Some(instance) = instance_with_image("private_authority") else { return };
    let certificates = instance.data_dir().join("certs");
    let (authority, stranger) = (Authority::new(), Authority::new());
    let image = Arc::new(Served::new());
    let registry = authority.registry(&image, "127.0.0.1", 4000);

    let not_trusted = format!("{} shows a certificate that is not trusted", registry.address);
    refused(&instance, &registry, &[], &not_trusted).complains("UnknownIssuer").complains("certs/");
    // One of the same name is not it.
    stranger.trust(&certificates);
    refused(&instance, &registry, &[], &not_trusted).complains("certs/");
    // Nor is it this registry's when it is trusted for another.
    authority.trust(&certificates.join("registry.example"));
    refused(&instance, &registry, &[], &not_trusted);

    // Without a restart of the server.
    authority.trust(&certificates.join(registry.address.to_string()));
    let reference = registry.reference();
    instance.atoll(["image", "pull", &reference]).succeeded();
    assert_eq!(registry.layer_asked_from(), [0]);
    let run = ["run", "--pull", "never", &reference, "--", "cat", "/etc/pulled"];
    assert_eq!(instance.atoll(run).succeeded(), "whole\n");
    instance.end();
}

#[test]
fn a_trusted_authority_does_not_make_a_wrong_certificate_right() {
    let Some(instance) = instance_with_image("wrong_certificates") else { return };
    let authority = Authority::new();
    authority.trust(&instance.data_dir().join("certs"));
    let image = Arc::new(Served::new());
    let other_name = authority.registry(&image, "registry.example", 4000);
    let not_trusted = |registry: &Registry| {
        format!("{} shows a certificate that is not trusted", registry.address)
    };
    refused(&instance, &other_name, &[], &not_trusted(&other_name))
        .complains("not valid for name")
        .complains("registry.example");
    let expired = authority.registry(&image, "127.0.0.1", 2001);
    refused(&instance, &expired, &[], &not_trusted(&expired)).complains("expired");
    // Plain HTTP is no way around it.
    refused(&instance, &expired, &["--plain-http"], &expired.address.to_string());
    // One that does not speak TLS at all.
    let plain = Registry::start("127.0.0.1:0", &image, Behaviour::default());
    let pull = instance.atoll(["image", "pull", &plain.reference()]);
    pull.ended_with(1);
    pull.complains(&plain.address.to_string()).complains("--plain-http");
    instance.end();
}
