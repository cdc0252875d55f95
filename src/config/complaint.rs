//! What is wrong with a configuration, before it is known where in the file that stands.

/// The key, or the variable of the environment, that is wrong, and what is wrong with it.
pub type Complaint<Key> = (Key, String);
