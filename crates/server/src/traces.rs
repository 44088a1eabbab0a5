//! Spans for OpenTelemetry: one tree per creation, its phases as children. Only where OTEL_EXPORTER_OTLP_ENDPOINT is set.

use std::time::{Duration, SystemTime};

use atoll_model::timeline::Timeline;
use opentelemetry::trace::{
    Span, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

/// Where spans go: nowhere, unless configured.
#[derive(Clone, Default)]
pub(crate) struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// To the collector of an endpoint, by HTTP, in batches from a thread of its own.
    pub(crate) fn to(endpoint: Option<&str>) -> Self {
        let Some(endpoint) = endpoint.filter(|it| !it.is_empty()) else { return Self(None) };
        // For https; one for the process, whoever comes first.
        rustls::crypto::ring::default_provider().install_default().ok();
        // SOURCE: OpenTelemetry, OTLP exporter: the general endpoint has the signal's path appended.
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter =
            opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(url).build();
        match exporter {
            Ok(exporter) => {
                let resource = Resource::builder().with_service_name("atoll").build();
                Self(Some(
                    SdkTracerProvider::builder()
                        .with_batch_exporter(exporter)
                        .with_resource(resource)
                        .build(),
                ))
            }
            Err(error) => {
                tracing::warn!(%error, endpoint, "spans cannot be exported; they are dropped");
                Self(None)
            }
        }
    }

    /// A creation that succeeded, or failed with an error.
    pub(crate) fn creation(
        &self,
        sandbox: &str,
        class: &'static str,
        timeline: &Timeline,
        error: Option<&str>,
    ) {
        let Some(provider) = &self.0 else { return };
        let tracer = provider.tracer("atoll");
        let begun = SystemTime::UNIX_EPOCH
            + Duration::from_micros(u64::try_from(timeline.begun().0).unwrap_or(0));
        let at = |micros: u64| begun + Duration::from_micros(micros);
        let attributes = [
            KeyValue::new("atoll.sandbox", sandbox.to_owned()),
            KeyValue::new("atoll.class", class),
        ];
        let builder = SpanBuilder::from_name("sandbox.create").with_kind(SpanKind::Server);
        let mut root = tracer.build(builder.with_start_time(begun).with_attributes(attributes));
        if let Some(error) = error {
            root.set_status(Status::error(error.to_owned()));
        }
        let context = Context::new().with_span(root);
        let mut from = 0;
        for (phase, micros) in timeline.phases() {
            let builder = SpanBuilder::from_name(phase.name()).with_start_time(at(from));
            from += micros;
            tracer.build_with_context(builder, &context).end_with_timestamp(at(from));
        }
        context.span().end_with_timestamp(at(timeline.total_micros()));
    }

    /// Sends what waits. Blocks for a while at most.
    pub(crate) fn flush(&self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(Duration::from_secs(2))
        {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}
