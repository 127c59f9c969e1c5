//! Words and strings on their way to people.
