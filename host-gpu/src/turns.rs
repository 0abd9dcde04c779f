//! Who shares cores with threads that compute.
//!
//! The engine's threads compute for milliseconds without a pause, one on each core. A thread that wakes to hand on what they
//! made, and has some microseconds of work, would wait until the system's turn of theirs is over: 3 ms on Linux. One that asked for short
//! turns goes first, and both still get their share.

/// Asks the system to run this thread soon when it wakes, for short turns. Threads and processes that it starts are not concerned.
///
/// What does not know of such turns (Linux before 6.12, other systems) goes on as it does.
pub fn short_turns() {
    #[cfg(target_os = "linux")]
    linux::set_turn_ns(300_000);
}

#[cfg(target_os = "linux")]
mod linux {
    /// `struct sched_attr` in its first version, which every Linux takes.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }

    /// Children do not inherit it.
    const RESET_ON_FORK: u64 = 1;
    /// The policy stays as it is; what else is not said becomes that of nobody.
    const KEEP_POLICY: u64 = 8;

    pub(super) fn set_turn_ns(runtime: u64) {
        let size = size_of::<Attributes>() as u32;
        #[expect(unsafe_code, reason = "no library has this call")]
        // SAFETY: asks for this thread's niceness, which its operator may have set, and touches no memory.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let attributes =
            Attributes { size, flags: RESET_ON_FORK | KEEP_POLICY, nice, runtime, ..Attributes::default() };
        #[expect(unsafe_code, reason = "no library has this call")]
        // SAFETY: the structure is as large as it says and outlives the call, which writes nothing but its `size`; 0 is this thread.
        let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        if result != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "no short turns");
        }
    }
}
