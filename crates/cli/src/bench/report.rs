//! What a bench found: as tables for people and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::burst::Burst;
use super::published::Published;
use super::statistics::Summary;
use crate::output::{self, Cell, Colour, Styles, Table, human_micros};

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// `provision` or `exec`.
    pub(crate) suite: &'static str,
    /// Version of atoll.
    pub(crate) version: &'static str,
    /// RFC 3339.
    pub(crate) measured_at: String,
    /// The machine.
    pub(crate) machine: Machine,
    /// The class measured.
    pub(crate) class: String,
    /// The image.
    pub(crate) image: String,
    /// The command.
    pub(crate) command: Vec<String>,
    /// How many times.
    pub(crate) count: u32,
    /// How many at a time.
    pub(crate) concurrency: u32,
    /// A page written and synced in the data directory.
    pub(crate) disk_fdatasync: Summary,
    /// atoll first, then each rival.
    pub(crate) contenders: Vec<Contender>,
    /// With several at a time: all of them begun at once, by themselves.
    pub(crate) bursts: Vec<Burst>,
    /// What others have published of the same, measured on another machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) published: Vec<Published>,
    /// Rivals that were asked for and could not run, and why.
    pub(crate) absent: BTreeMap<String, String>,
    /// For each rival and stage: its p50 and p99 divided by atoll's.
    pub(crate) ratios: BTreeMap<String, BTreeMap<String, Ratio>>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// Kernel release.
    pub(crate) kernel: String,
    /// Processors.
    pub(crate) processors: usize,
    /// Built with optimisation.
    pub(crate) optimised_build: bool,
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Self {
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processors: super::processors(),
            optimised_build: !cfg!(debug_assertions),
        }
    }
}

/// One way to run the command.
#[derive(Debug, Serialize)]
pub(crate) struct Contender {
    /// Its name.
    pub(crate) name: String,
    /// How it was run, exactly.
    pub(crate) how: String,
    /// Stages in order.
    pub(crate) stages: Vec<Stage>,
    /// Runs that failed; they are in no stage.
    pub(crate) failures: Vec<String>,
    /// Wall time of all its runs, with so many at a time.
    pub(crate) makespan_micros: u64,
}

/// One stage.
#[derive(Debug, Serialize)]
pub(crate) struct Stage {
    /// Its name.
    pub(crate) name: String,
    /// Its durations.
    pub(crate) summary: Summary,
}

/// A rival's time divided by atoll's: 2 means that atoll takes half as long.
#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    /// Of the medians.
    pub(crate) p50: f64,
    /// Of the 99th percentiles.
    pub(crate) p99: f64,
}

/// Samples of stages, in the order in which they first came.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    stages: Vec<(String, Vec<u64>)>,
    /// Runs that failed.
    pub(crate) failures: Vec<String>,
    /// Wall time.
    pub(crate) makespan_micros: u64,
}

impl Samples {
    /// Adds a duration to a stage.
    pub(crate) fn add(&mut self, stage: &str, micros: u64) {
        match self.stages.iter_mut().find(|(name, _)| name == stage) {
            Some((_, samples)) => samples.push(micros),
            None => self.stages.push((stage.to_owned(), vec![micros])),
        }
    }

    /// The contender that they make.
    pub(crate) fn into_contender(self, name: &str, how: &str) -> Contender {
        let stages = self
            .stages
            .into_iter()
            .filter_map(|(name, samples)| Some(Stage { name, summary: Summary::of(&samples)? }))
            .collect();
        Contender {
            name: name.to_owned(),
            how: how.to_owned(),
            stages,
            failures: self.failures,
            makespan_micros: self.makespan_micros,
        }
    }
}

/// Each rival's stages of the same name, divided by the first contender's.
pub(crate) fn ratios(contenders: &[Contender]) -> BTreeMap<String, BTreeMap<String, Ratio>> {
    let Some((ours, rivals)) = contenders.split_first() else { return BTreeMap::new() };
    let quotient = |theirs: u64, ours: u64| {
        let exact = theirs as f64 / ours.max(1) as f64;
        (exact * 1000.0).round() / 1000.0
    };
    rivals
        .iter()
        .map(|rival| {
            let stages = rival
                .stages
                .iter()
                .filter_map(|theirs| {
                    let ours = ours.stages.iter().find(|stage| stage.name == theirs.name)?;
                    let ratio = Ratio {
                        p50: quotient(theirs.summary.p50_micros, ours.summary.p50_micros),
                        p99: quotient(theirs.summary.p99_micros, ours.summary.p99_micros),
                    };
                    Some((theirs.name.clone(), ratio))
                })
                .collect();
            (rival.name.clone(), stages)
        })
        .collect()
}

/// Prints the report, and writes it as JSON where wanted (`-`: instead of the tables).
pub(crate) fn publish(report: &Report, json: Option<&Path>) -> anyhow::Result<()> {
    match json {
        Some(path) if path == Path::new("-") => return output::print_json(report),
        Some(path) => {
            let mut text = serde_json::to_string_pretty(report)?;
            text.push('\n');
            std::fs::write(path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => {}
    }
    output::print(&text(report, Styles::stdout()))
}

fn text(report: &Report, styles: Styles) -> String {
    let mut text = head_text(report);
    for contender in &report.contenders {
        text.push_str(&contender_text(contender, styles));
        for published in report.published.iter().filter(|it| it.beside == contender.name) {
            text.push_str(&published_text(contender, published, styles));
        }
    }
    for burst in &report.bursts {
        text.push_str(&burst_text(burst));
    }
    text.push_str(&ratios_text(&report.ratios));
    for (rival, reason) in &report.absent {
        text.push_str(&format!("{rival}: absent ({reason})\n"));
    }
    text
}

/// What was measured, and where.
fn head_text(report: &Report) -> String {
    let mut text = format!(
        "{}: class {}, image {}, {} times, {} at a time: {}\n",
        report.suite,
        report.class,
        report.image,
        report.count,
        report.concurrency,
        report.command.join(" ")
    );
    text.push_str(&format!(
        "{} processors, kernel {}, disk fdatasync p50 {} p99 {}\n",
        report.machine.processors,
        report.machine.kernel,
        human_micros(report.disk_fdatasync.p50_micros),
        human_micros(report.disk_fdatasync.p99_micros)
    ));
    if !report.machine.optimised_build {
        text.push_str("This atoll was built without optimisation: its figures say little.\n");
    }
    text
}

fn contender_text(contender: &Contender, styles: Styles) -> String {
    let name = styles.paint(Colour::Strong, &contender.name);
    let mut text = format!("\n{name} ({})\n", contender.how);
    let mut table = Table::new(&["STAGE", "N", "MEAN", "P50", "P95", "P99", "MAX"]);
    for stage in &contender.stages {
        let summary = &stage.summary;
        let mut row = vec![Cell::new(&stage.name), Cell::figure(summary.n.to_string())];
        for value in [
            summary.mean_micros,
            summary.p50_micros,
            summary.p95_micros,
            summary.p99_micros,
            summary.max_micros,
        ] {
            row.push(Cell::figure(human_micros(value)));
        }
        table.row(row);
    }
    text.push_str(&table.render(styles));
    text.push_str(&format!("all in {}", human_micros(contender.makespan_micros)));
    match contender.failures.first() {
        Some(first) => {
            text.push_str(&format!("; {} failed, the first: {first}\n", contender.failures.len()));
        }
        None => text.push('\n'),
    }
    text
}

/// Each published row, with atoll's stage that does the same.
fn published_text(contender: &Contender, published: &Published, styles: Styles) -> String {
    let heads = ["STAGE", "PUBLISHED AS", "MEAN", "P50", "P95", "P99", "ATOLL P50", "ATOLL P95"];
    let mut table = Table::new(&heads);
    let millis = |millis: f64| Cell::figure(human_micros((millis * 1000.0) as u64));
    let or_none = |value: Option<f64>| value.map_or(Cell::figure("-"), millis);
    for row in &published.stages {
        let ours = contender.stages.iter().find(|stage| stage.name == row.stage);
        let own = |of: fn(&Summary) -> u64| {
            ours.map_or(Cell::figure("-"), |it| Cell::figure(human_micros(of(&it.summary))))
        };
        table.row(vec![
            Cell::new(row.stage),
            Cell::new(row.published_as),
            millis(row.mean_millis),
            or_none(row.p50_millis),
            millis(row.p95_millis),
            or_none(row.p99_millis),
            own(|summary| summary.p50_micros),
            own(|summary| summary.p95_micros),
        ]);
    }
    format!("published by sandboxd-o, on another machine:\n{}", table.render(styles))
}

fn ratios_text(ratios: &BTreeMap<String, BTreeMap<String, Ratio>>) -> String {
    let mut text = String::new();
    for (rival, stages) in ratios {
        for (stage, ratio) in stages {
            text.push_str(&format!(
                "\n{rival} / atoll, {stage}: p50 {:.2}, p99 {:.2}",
                ratio.p50, ratio.p99
            ));
        }
    }
    if !ratios.is_empty() {
        text.push('\n');
    }
    text
}

fn burst_text(burst: &Burst) -> String {
    let mut text = format!(
        "\n{}: {} creates, {} at a time: all started in {}, all gone {} later\n\
         = {:.2} x (count / cores) x p50 of one at a time ({})\n",
        burst.name,
        burst.count,
        burst.concurrency,
        human_micros(burst.all_started_micros),
        human_micros(burst.all_gone_micros),
        burst.ratio,
        human_micros(burst.alone.p50_micros)
    );
    if let Some(first) = burst.failures.first() {
        text.push_str(&format!("{} failed, the first: {first}\n", burst.failures.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &str, times: &[u64]) -> Contender {
        let mut samples = Samples::default();
        for time in times {
            samples.add("first output", *time);
            samples.add(name, *time);
        }
        samples.into_contender(name, "as it is")
    }

    #[test]
    fn a_ratio_says_how_many_times_longer_the_rival_takes() {
        let ratios = ratios(&[contender("atoll", &[10, 10]), contender("runc", &[25, 40])]);
        let stages = &ratios["runc"];
        assert_eq!(stages.len(), 1, "only stages that both have");
        assert!((stages["first output"].p50 - 2.5).abs() < 1e-9);
        assert!((stages["first output"].p99 - 4.0).abs() < 1e-9);
    }
}
