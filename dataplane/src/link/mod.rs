//! The I/O shell around one tunnel connection.
