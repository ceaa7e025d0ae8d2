//! L1 windows and the L2 cache.
