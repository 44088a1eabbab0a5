//! Promises between programs and releases: REST shapes, guest and shim protocol, on-disk records.
