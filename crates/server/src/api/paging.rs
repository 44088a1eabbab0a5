//! Lists by pages: a page begins after the place that its cursor names, so what is created or deleted meanwhile moves nothing else:
//! whatever is there all the time is shown exactly once.

use super::error::ApiError;

/// Largest page. Guess: some megabytes of sandboxes.
const MAX_LIMIT: usize = 1000;

/// What a client wants of a list: `limit`, `cursor`. Without either it gets all of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    pub(super) limit: Option<usize>,
    pub(super) cursor: Option<String>,
}

/// Where an object stands in its list; never the place of another, and the same as long as the object is there.
pub(super) trait Placed {
    /// As text, which sorts as the list does not have to.
    type Place: Ord;

    /// The object's place.
    fn place(&self) -> Self::Place;

    /// A place as a cursor.
    fn cursor(place: &Self::Place) -> String;

    /// Reads a cursor.
    fn parse(cursor: &str) -> Option<Self::Place>;
}

impl Wanted {
    /// Pages are of lists: a watch has none.
    pub(super) fn refuse_with_watch(&self) -> Result<(), ApiError> {
        if self.limit.is_some() || self.cursor.is_some() {
            return Err(ApiError::malformed("limit, cursor: a watch has no pages"));
        }
        Ok(())
    }

    /// The page of a list that is in order, and where the next one begins, if there is one.
    pub(super) fn page<'a, T: Placed>(
        &self,
        all: impl Iterator<Item = &'a T>,
    ) -> Result<(Vec<&'a T>, Option<String>), ApiError> {
        let limit = match self.limit {
            None => usize::MAX,
            Some(limit @ 1..=MAX_LIMIT) => limit,
            Some(limit) => {
                let message = format!("limit: is {limit}, allowed are 1 to {MAX_LIMIT}");
                return Err(ApiError::malformed(message));
            }
        };
        let after = match &self.cursor {
            None => None,
            Some(cursor) => Some(T::parse(cursor).ok_or_else(|| {
                ApiError::malformed("cursor: is none that this list gave: begin again without it")
            })?),
        };
        let mut rest = all.filter(|it| after.as_ref().is_none_or(|after| it.place() > *after));
        let items: Vec<&T> = rest.by_ref().take(limit).collect();
        let more = items.last().filter(|_| rest.next().is_some());
        let next = more.map(|last| T::cursor(&last.place()));
        Ok((items, next))
    }
}

/// An object of a list that is in order of creation.
trait Created {
    fn created_at(&self) -> &str;
    fn id(&self) -> &str;
}

impl Created for atoll_wire::rest::Sandbox {
    fn created_at(&self) -> &str {
        &self.created_at
    }

    fn id(&self) -> &str {
        &self.id
    }
}

impl Created for atoll_wire::rest::NamedVolume {
    fn created_at(&self) -> &str {
        &self.created_at
    }

    fn id(&self) -> &str {
        &self.id
    }
}

impl<T: Created> Placed for T {
    type Place = (String, String);

    fn place(&self) -> Self::Place {
        (self.created_at().to_owned(), self.id().to_owned())
    }

    fn cursor((created_at, id): &Self::Place) -> String {
        format!("{created_at},{id}")
    }

    fn parse(cursor: &str) -> Option<Self::Place> {
        let (created_at, id) = cursor.split_once(',')?;
        // Places are compared as text: only the one way to write a time is good.
        let time = crate::time::parse(created_at)?;
        id.parse::<atoll_model::ids::ObjectName>().ok()?;
        (crate::time::text(time) == created_at).then(|| (created_at.to_owned(), id.to_owned()))
    }
}

impl Placed for atoll_wire::rest::External {
    type Place = String;

    fn place(&self) -> String {
        self.id.clone()
    }

    fn cursor(place: &String) -> String {
        place.clone()
    }

    fn parse(cursor: &str) -> Option<String> {
        cursor.parse::<atoll_model::ids::ObjectName>().ok().map(|_| cursor.to_owned())
    }
}

impl Placed for atoll_wire::rest::Event {
    type Place = u64;

    fn place(&self) -> u64 {
        self.resource_version
    }

    fn cursor(place: &u64) -> String {
        place.to_string()
    }

    fn parse(cursor: &str) -> Option<u64> {
        cursor.parse().ok()
    }
}
