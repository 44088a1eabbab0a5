//! `atoll doctor`: what this machine offers, what is missing, and what to install. Works without a server and changes nothing.

mod checks;

use atoll_runtime::RuntimeClass;
use atoll_wire::rest::NodeInfo;
use serde::Serialize;

use super::{FAILURE, Outcome, SUCCESS, connect};
use crate::args::{ConnectionArgs, DoctorArgs, PlainFormat};
use crate::output::{self, Cell, Colour, Styles, Table};

/// How good the answer to a question is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// There.
    Good,
    /// Not there, and atoll works without it.
    Limited,
    /// Not there, and needed.
    Missing,
}

/// One question to the machine and its answer.
#[derive(Debug, Clone, Serialize)]
struct Check {
    /// What was looked at.
    name: &'static str,
    /// How good it is.
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What it is for, where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    consequence: Option<&'static str>,
    /// What to do, where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, found: found.into(), consequence: None, remedy: None }
    }

    fn bad(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        consequence: &'static str,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            consequence: Some(consequence),
            remedy: Some(remedy.into()),
        }
    }
}

/// The class that isolates nothing.
const SIM: &str = RuntimeClass::Sim.name();

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
    server: Option<NodeInfo>,
}

/// Looks at the machine. Fails when something is missing without which no sandbox runs.
pub(super) async fn doctor(args: DoctorArgs, connection: &ConnectionArgs) -> Outcome {
    if args.classes {
        let classes = checks::classes(&connection.data_dir)?;
        output::print(&classes.iter().map(|class| format!("{class}\n")).collect::<String>())?;
        return Ok(if classes.is_empty() { FAILURE } else { SUCCESS });
    }
    let mut report = Report { checks: checks::all(&connection.data_dir), server: None };
    let mut why_no_server = String::new();
    match connect(connection) {
        Ok(client) => match client.get::<NodeInfo>("/api/v1/node").await {
            Ok(node) => report.server = Some(node),
            Err(error) => why_no_server = error.to_string(),
        },
        Err(error) => why_no_server = error.to_string(),
    }
    match args.output {
        PlainFormat::Json => output::print_json(&report)?,
        PlainFormat::Text => output::print(&text(&report, &why_no_server, Styles::stdout()))?,
    }
    let missing = report.checks.iter().any(|check| check.verdict == Verdict::Missing);
    Ok(if missing { FAILURE } else { SUCCESS })
}

fn text(report: &Report, why_no_server: &str, styles: Styles) -> String {
    let mut table = Table::new(&["", "WHAT", "FOUND"]);
    for check in &report.checks {
        let (mark, colour) = match check.verdict {
            Verdict::Good => ("ok", Colour::Good),
            Verdict::Limited => ("limited", Colour::Busy),
            Verdict::Missing => ("missing", Colour::Bad),
        };
        table.row(vec![
            Cell::coloured(mark, colour),
            Cell::new(check.name),
            Cell::new(&check.found),
        ]);
    }
    let mut text = table.render(styles);
    let remedies: Vec<&Check> =
        report.checks.iter().filter(|check| check.remedy.is_some()).collect();
    if !remedies.is_empty() {
        text.push_str(&format!("\n{}\n", styles.paint(Colour::Strong, "What to do")));
        for check in remedies {
            let consequence = check.consequence.unwrap_or_default();
            let remedy = check.remedy.as_deref().unwrap_or_default();
            text.push_str(&format!("  {}: {consequence}. {remedy}\n", check.name));
        }
    }
    text.push_str(&format!("\n{}\n", styles.paint(Colour::Strong, "Server")));
    match &report.server {
        Some(node) => {
            let mut classes = Table::new(&["CLASS", "AVAILABLE", "DETAIL"]);
            // Class sim isolates nothing: nobody is to take it for something that this machine offers.
            for class in node.classes.iter().filter(|class| class.name != SIM) {
                let available = if class.available {
                    Cell::coloured("yes", Colour::Good)
                } else {
                    Cell::coloured("no", Colour::Bad)
                };
                classes.row(vec![Cell::new(&class.name), available, Cell::new(&class.detail)]);
            }
            text.push_str(&format!(
                "  atoll {} runs as pid {}; sandboxes that name no class get {}\n",
                node.version, node.pid, node.default_class
            ));
            for line in classes.render(styles).lines() {
                text.push_str(&format!("  {line}\n"));
            }
        }
        None => text.push_str(&format!("  {why_no_server}\n")),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_what_to_do() {
        let report = Report {
            checks: vec![
                Check::good("kernel", "6.1"),
                Check::bad(
                    "runsc",
                    Verdict::Limited,
                    "not found",
                    "no class gvisor",
                    "Install runsc.",
                ),
            ],
            server: None,
        };
        let text = text(&report, "no atoll runs", Styles::plain());
        assert!(text.contains("limited   runsc    not found"), "{text}");
        assert!(text.contains("runsc: no class gvisor. Install runsc."), "{text}");
        assert!(text.contains("no atoll runs"), "{text}");
    }

    #[test]
    fn this_machine_can_be_looked_at_without_harm() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("not/there/yet");
        let checks = checks::all(&missing);
        assert!(checks.iter().any(|check| check.name == "kernel"));
        let classes = checks::classes(&missing).unwrap();
        assert!(!classes.contains(&SIM), "{classes:?}");
        assert!(!missing.exists(), "looking must not create the data directory");
    }
}
