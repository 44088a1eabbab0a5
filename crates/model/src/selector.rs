//! Label selectors: which objects a list is to show. SOURCE: Kubernetes, "Labels and Selectors", equality-based.

use std::collections::BTreeMap;

use crate::validate::{MAX_LABELS, Refused, label, shown};

/// What labels must be like; all of it must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    /// `KEY=VALUE`, `KEY==VALUE`.
    Is(String, String),
    /// `KEY!=VALUE`: also where the label is missing.
    IsNot(String, String),
    /// `KEY`.
    Has(String),
    /// `!KEY`.
    HasNot(String),
}

impl Selector {
    /// Reads `a=b,c!=d,e,!f`. An empty text selects everything.
    ///
    /// # Errors
    /// [`Refused`]: a part is none of these forms, or there are too many.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let parts: Vec<_> = parts.take(MAX_LABELS + 1).collect();
        if parts.len() > MAX_LABELS {
            return Err(Refused(format!("has more than {MAX_LABELS} parts")));
        }
        parts.into_iter().map(requirement).collect::<Result<_, _>>().map(Self)
    }

    /// Whether these labels are as wanted.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Is(key, value) => labels.get(key) == Some(value),
            Requirement::IsNot(key, value) => labels.get(key) != Some(value),
            Requirement::Has(key) => labels.contains_key(key),
            Requirement::HasNot(key) => !labels.contains_key(key),
        })
    }
}

fn requirement(part: &str) -> Result<Requirement, Refused> {
    let pair = |key: &str, value: &str| {
        let (key, value) = (key.trim(), value.trim());
        let plain = !value.contains('=') && !key.contains('!');
        let good = if plain { label(key, value) } else { Err(Refused(String::new())) };
        good.map(|()| (key.to_owned(), value.to_owned())).map_err(|_| malformed(part))
    };
    if let Some((key, value)) = part.split_once("!=") {
        pair(key, value).map(|(key, value)| Requirement::IsNot(key, value))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        pair(key, value).map(|(key, value)| Requirement::Is(key, value))
    } else if let Some(key) = part.strip_prefix('!') {
        pair(key, "").map(|(key, _)| Requirement::HasNot(key))
    } else {
        pair(part, "").map(|(key, _)| Requirement::Has(key))
    }
}

fn malformed(part: &str) -> Refused {
    Refused(format!(
        "{} is no requirement: write KEY=VALUE, KEY!=VALUE, KEY or !KEY, several separated by commas",
        shown(part)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Selector::parse(selector).unwrap().matches(&labels.collect())
    }

    #[test]
    fn all_requirements_must_hold() {
        let labels = [("app", "web"), ("tier", "front")];
        for good in ["", "app=web", "app==web,tier=front", "app!=db", "other!=x", "app,!other"] {
            assert!(matches(good, &labels), "{good}");
        }
        for bad in ["app=db", "app=web,tier=back", "app!=web", "other", "!app", "app="] {
            assert!(!matches(bad, &labels), "{bad}");
        }
    }

    #[test]
    fn what_is_no_requirement_is_named() {
        for bad in ["=x", "!", "!=x", "a=b=c", "a in (b)=c=d", "a!=b=c", "!a=b"] {
            let error = Selector::parse(bad).unwrap_err().to_string();
            assert!(error.contains("no requirement"), "{bad}: {error}");
        }
        assert!(Selector::parse(&vec!["a"; MAX_LABELS + 1].join(",")).is_err());
    }
}
