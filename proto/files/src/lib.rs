//! What coordinator and worker agree on on disk.
