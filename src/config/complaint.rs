//! The type of a complaint about a configuration whose place in the file is not known yet.

/// Complaint about a configuration: the key or environment variable that is wrong, and what is
/// wrong with it.
pub type Complaint<Key> = (Key, String);
