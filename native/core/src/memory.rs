//! What the allocator keeps and the system could have.

/// Gives the pages of freed memory back to the system, where the allocator would keep them.
///
/// An arena of the allocator is locked meanwhile, for about 0.1 ms for each MiB there is to give. Templates,
/// authorities and sessions of clients are in there; what a server's store keeps otherwise has pages of its own.
#[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
#[allow(unsafe_code)]
pub fn give_back() {
    // SAFETY: takes no pointer, touches no memory in use, and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators are left to themselves, and Miri has none.
#[cfg(any(not(all(target_os = "linux", target_env = "gnu")), miri))]
pub fn give_back() {}
