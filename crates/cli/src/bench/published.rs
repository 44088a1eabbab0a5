//! What sandboxd-o has published of the same specifications: figures of another machine, shown beside, never in a ratio of one run.
//!
//! SOURCE: sandboxd-o's README at v0.5.0, appendix A (nginx, 45 runs) and its resource sweep (httpd, 5 runs each, mean and p95 only).

use serde::Serialize;

/// One published row, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct PublishedStage {
    /// The stage of atoll that does the same.
    pub(crate) stage: &'static str,
    /// What it is called there.
    pub(crate) published_as: &'static str,
    /// Mean.
    pub(crate) mean_millis: f64,
    /// Median, where it was published.
    pub(crate) p50_millis: Option<f64>,
    /// 95th percentile.
    pub(crate) p95_millis: f64,
    /// 99th percentile, where it was published.
    pub(crate) p99_millis: Option<f64>,
}

/// A specification that was published with figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Published {
    /// The contender of atoll that it stands beside.
    pub(crate) beside: String,
    /// Its rows.
    pub(crate) stages: Vec<PublishedStage>,
}

const fn row(
    stage: &'static str,
    published_as: &'static str,
    [mean_millis, p50, p95_millis, p99]: [f64; 4],
) -> PublishedStage {
    PublishedStage {
        stage,
        published_as,
        mean_millis,
        p50_millis: Some(p50),
        p95_millis,
        p99_millis: Some(p99),
    }
}

/// nginx, 500m, 512Mi, probe by HTTP with delay and period of 1 s.
pub(crate) const NGINX: [PublishedStage; 8] = [
    row("ready", "client_ready", [18_718.0, 18_942.0, 19_030.2, 19_073.4]),
    row("phases together", "sbxlet total", [2178.6, 2053.9, 2944.3, 3097.3]),
    row("phase image", "container_image_pull (cached)", [0.56, 0.51, 0.97, 0.99]),
    row("phase prepare", "network_policy_apply", [150.3, 149.3, 197.7, 208.4]),
    row("phase sandbox", "pod_sandbox_create_total", [344.3, 330.8, 472.2, 649.6]),
    row("phase command", "container_create_start_total", [487.2, 497.6, 634.1, 716.3]),
    row("phase ready", "wait_readiness_probe", [1138.2, 1005.3, 2013.7, 2044.0]),
    row("phase publish", "hostport_publish_apply", [27.2, 23.9, 42.3, 48.2]),
];

/// A size of the sweep: CPU, memory, then mean and p95 of client_ready, total, probe wait, pod create, container create and start,
/// policy, host port.
pub(crate) struct Size {
    /// As a quantity.
    pub(crate) cpu: &'static str,
    /// As a quantity.
    pub(crate) memory: &'static str,
    figures: [[f64; 2]; 7],
}

/// httpd, the second sweep: from 64m to 1500m.
pub(crate) const HTTPD: [Size; 10] = [
    size(
        "64m",
        "256Mi",
        [
            [44553., 50457.],
            [32252., 33556.],
            [24321., 24791.],
            [4645., 5088.],
            [2978., 3206.],
            [227., 236.],
            [48., 47.],
        ],
    ),
    size(
        "128m",
        "384Mi",
        [
            [38440., 38677.],
            [19181., 19677.],
            [15629., 16194.],
            [1887., 2137.],
            [1418., 1466.],
            [189., 241.],
            [29., 35.],
        ],
    ),
    size(
        "200m",
        "512Mi",
        [
            [18698., 18735.],
            [15235., 15461.],
            [12828., 13073.],
            [1061., 1081.],
            [1078., 1168.],
            [197., 235.],
            [34., 43.],
        ],
    ),
    size(
        "300m",
        "640Mi",
        [
            [18835., 18866.],
            [13762., 13933.],
            [12048., 12051.],
            [630., 819.],
            [826., 947.],
            [204., 229.],
            [27., 27.],
        ],
    ),
    size(
        "400m",
        "768Mi",
        [
            [18856., 18899.],
            [12261., 12372.],
            [10861., 10987.],
            [518., 618.],
            [633., 665.],
            [187., 196.],
            [36., 46.],
        ],
    ),
    size(
        "600m",
        "1Gi",
        [
            [18904., 18965.],
            [12029., 12152.],
            [10941., 11042.],
            [326., 362.],
            [576., 645.],
            [132., 144.],
            [28., 30.],
        ],
    ),
    size(
        "800m",
        "1280Mi",
        [
            [18819., 18883.],
            [11566., 11985.],
            [10601., 11043.],
            [277., 292.],
            [453., 534.],
            [170., 187.],
            [37., 45.],
        ],
    ),
    size(
        "1000m",
        "1536Mi",
        [
            [18857., 18864.],
            [11179., 11082.],
            [10192., 9992.],
            [342., 387.],
            [375., 368.],
            [193., 206.],
            [41., 47.],
        ],
    ),
    size(
        "1250m",
        "1792Mi",
        [
            [18885., 18981.],
            [10914., 10928.],
            [9936., 9965.],
            [336., 349.],
            [409., 427.],
            [161., 180.],
            [41., 48.],
        ],
    ),
    size(
        "1500m",
        "2Gi",
        [
            [18855., 18894.],
            [10817., 10863.],
            [9900., 9934.],
            [304., 320.],
            [388., 400.],
            [161., 185.],
            [38., 48.],
        ],
    ),
];

const fn size(cpu: &'static str, memory: &'static str, figures: [[f64; 2]; 7]) -> Size {
    Size { cpu, memory, figures }
}

impl Size {
    /// Its rows.
    pub(crate) fn stages(&self) -> Vec<PublishedStage> {
        let names = [
            ("ready", "client_ready"),
            ("phases together", "total"),
            ("phase ready", "probe wait"),
            ("phase sandbox", "pod create"),
            ("phase command", "container create+start"),
            ("phase prepare", "policy"),
            ("phase publish", "host port"),
        ];
        let one = |((stage, published_as), [mean_millis, p95_millis]): ((_, _), [f64; 2])| {
            PublishedStage {
                stage,
                published_as,
                mean_millis,
                p50_millis: None,
                p95_millis,
                p99_millis: None,
            }
        };
        names.into_iter().zip(self.figures).map(one).collect()
    }
}
