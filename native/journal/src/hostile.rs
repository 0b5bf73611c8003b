//! A node that is fed with records by hand, which whoever has the log could have put there.
