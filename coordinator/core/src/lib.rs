//! Every decision of the coordinator, free of I/O.
