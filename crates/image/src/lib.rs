//! OCI images: pull, import, content-addressed store, confined unpacking, collection.
