//! Journals at work, with their threads, on one log in memory.
