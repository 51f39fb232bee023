//! What a panic does: it ends the process, so that none stays up and does nothing.

use std::io::Write;

use tracing::error;

/// The exit code of a Rust program whose main thread panics.
const EXIT_CODE: i32 = 101;

/// Has any panic from now on, on whatever thread and in whatever task, be logged on one line and
/// end the process. The rules stay in the kernel.
pub(crate) fn end_process() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let owned = payload.downcast_ref::<String>().map(String::as_str);
        let message = owned.or_else(|| payload.downcast_ref::<&str>().copied());
        let message = message.unwrap_or("no message");
        let place = panic.location().map(ToString::to_string);
        let place = place.as_deref().unwrap_or("an unknown place");
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or_default();
        let line = format!("panic at {place}: {}", message.replace('\n', "; "));
        // Before logging is set up there is nowhere else to say it.
        if tracing::dispatcher::has_been_set() {
            error!(thread, "{line}");
        } else {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        std::process::exit(EXIT_CODE);
    }));
}
