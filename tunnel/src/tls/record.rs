//! The record layer of TLS 1.3 (RFC 8446 section 5) over extracted secrets: records are sealed and opened in place.
