//! The JSON of `/config_dump`.
