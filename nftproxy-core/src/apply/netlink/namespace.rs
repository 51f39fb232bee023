//! Doing something in another network namespace.

use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns};

use crate::apply::ApplyError;

/// Calls `f` in a network namespace, or right here without one. A socket stays in the namespace
/// that it was opened in.
///
/// It is a thread of its own that goes there, so that the caller's stays where it is even if there
/// was no way back.
pub(super) fn within<T: Send>(
    namespace: Option<BorrowedFd<'_>>,
    f: impl FnOnce() -> Result<T, ApplyError> + Send,
) -> Result<T, ApplyError> {
    let Some(namespace) = namespace else {
        return f();
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| ApplyError::Namespace(errno.into()))?;
            f()
        });
        match thread.map_err(ApplyError::Namespace)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
