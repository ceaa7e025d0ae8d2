//! What the machine is, and where the threads go.
