//! Training and generation on one rank.
