//! Which fields a shape knows at a path: asked of its `Deserialize`, which names them to whatever deserializer it is given.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// The steps of a path.
pub(super) fn segments(path: &serde_ignored::Path<'_>) -> Vec<Segment> {
    use serde_ignored::Path;
    match path {
        Path::Root => Vec::new(),
        Path::Seq { parent, index } => with(parent, Segment::Index(*index)),
        Path::Map { parent, key } => with(parent, Segment::Key(key.clone())),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => segments(parent),
    }
}

fn with(parent: &serde_ignored::Path<'_>, last: Segment) -> Vec<Segment> {
    let mut all = segments(parent);
    all.push(last);
    all
}

/// A path as people write it: `spec.containers[0].name`.
pub(super) fn shown(path: &[Segment]) -> String {
    let mut out = String::new();
    for segment in path {
        match segment {
            Segment::Index(index) => out.push_str(&format!("[{index}]")),
            Segment::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.extend(key.chars().take(64));
            }
        }
    }
    out
}

/// The names that the struct knows which holds the last step of the path.
pub(super) fn names_at<T: DeserializeOwned>(path: &[Segment]) -> Option<&'static [&'static str]> {
    let found = Cell::new(None);
    // Ends with an error always: nothing is to be built.
    let _ = T::deserialize(Probe { path, found: &found });
    found.get()
}

/// Leads a `Deserialize` along a path.
#[derive(Clone, Copy)]
struct Probe<'a> {
    path: &'a [Segment],
    found: &'a Cell<Option<&'static [&'static str]>>,
}

/// The probe is over.
#[derive(Debug)]
struct Over;

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the probe is over")
    }
}

impl std::error::Error for Over {}

impl Error for Over {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Over;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Over> {
        match self.path.split_first() {
            Some((Segment::Key(key), rest)) => {
                visitor.visit_map(Along { key: Some(key), next: Probe { path: rest, ..self } })
            }
            Some((Segment::Index(_), rest)) => {
                visitor.visit_seq(Along { key: None, next: Probe { path: rest, ..self } })
            }
            None => Err(Over),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Over> {
        if self.path.len() == 1 {
            self.found.set(Some(fields));
            return Err(Over);
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Over> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Over> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

/// One entry of a map or list: the next step.
struct Along<'a> {
    key: Option<&'a str>,
    next: Probe<'a>,
}

impl<'de> MapAccess<'de> for Along<'_> {
    type Error = Over;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Over> {
        match self.key.take() {
            Some(key) => seed.deserialize(key.into_deserializer()).map(Some),
            None => Err(Over),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Over> {
        seed.deserialize(self.next)
    }
}

impl<'de> SeqAccess<'de> for Along<'_> {
    type Error = Over;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Over> {
        seed.deserialize(self.next).map(Some)
    }
}
