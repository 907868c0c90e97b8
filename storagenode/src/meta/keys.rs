//! Stored keys: one file each, with its schema in the doc comment.
