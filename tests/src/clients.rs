//! Small clients for real servers, on std alone. Each request has a connection
//! of its own, which is closed when the answer is in: none is open when the
//! snapshot is taken.
