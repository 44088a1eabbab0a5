//! Pure core: ids, units, sandbox spec, validation, state machine, decisions. No I/O.
