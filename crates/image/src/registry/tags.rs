//! The tags a repository has, for those who asked for one that it has not: shown in an error, believed nowhere else.

use atoll_model::image_reference::ImageReference;
use reqwest::StatusCode;
use serde::Deserialize;

use super::{Client, read_bounded};

/// How many tags a registry is asked for. Guess: a page that all of them give.
const ASKED: usize = 1000;
/// Longest list that is read: [`ASKED`] of the longest tags.
const MAX_LIST_BYTES: u64 = 136 * 1024;
/// How many are shown.
const SHOWN: usize = 5;

/// SOURCE: OCI distribution-spec 1.1, "Listing Tags".
#[derive(Deserialize)]
struct TagList {
    /// Some registries write null where there are none.
    tags: Option<Vec<String>>,
}

impl Client {
    /// What to do about a tag that is not there: the tags most like it that are. Asks once; a registry that does not list its tags is no error.
    pub(super) async fn advice_without(&self, tag: &str) -> String {
        match self.tags().await {
            Some(tags) if tags.is_empty() => "the repository has no tags".to_owned(),
            Some(tags) => advice(&self.registry, &self.repository, tags, tag),
            None => "check repository and tag".to_owned(),
        }
    }

    async fn tags(&self) -> Option<Vec<String>> {
        let response = self.get(&format!("tags/list?n={ASKED}"), &[]).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = read_bounded(response, MAX_LIST_BYTES).await.ok()?;
        let list: TagList = serde_json::from_slice(&body).ok()?;
        Some(list.tags.unwrap_or_default())
    }
}

fn advice(registry: &str, repository: &str, tags: Vec<String>, wanted: &str) -> String {
    // Only what could be asked for is shown: a registry may write anything.
    let is_tag = |tag: &String| {
        format!("{registry}/{repository}:{tag}")
            .parse::<ImageReference>()
            .is_ok_and(|reference| reference.tag() == Some(tag))
    };
    let mut tags: Vec<String> = tags.into_iter().filter(is_tag).collect();
    let all = tags.len();
    let alike = |tag: &String| tag.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
    tags.sort_by_key(|tag| std::cmp::Reverse(alike(tag)));
    tags.truncate(SHOWN);
    match all {
        0 => "check repository and tag".to_owned(),
        1..=SHOWN => format!("tags that it has: {}", tags.join(", ")),
        _ => format!("some of the tags that it has: {}", tags.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tags: &[&str], wanted: &str) -> String {
        advice("r.example", "app", tags.iter().map(|&tag| tag.to_owned()).collect(), wanted)
    }

    #[test]
    fn the_tags_most_like_the_missing_one_are_shown() {
        assert_eq!(shown(&["1", "latest"], "nope"), "tags that it has: 1, latest");
        let many = ["1", "2", "3", "4", "5", "3.12-slim"];
        assert_eq!(shown(&many, "3.12-slm"), "some of the tags that it has: 3.12-slim, 3, 1, 2, 4");
    }

    #[test]
    fn what_is_no_tag_is_not_shown() {
        let text = shown(&["\u{1b}[2J", "a b", "sha256@x", "", &"x".repeat(500)], "nope");
        assert_eq!(text, "check repository and tag");
    }
}
