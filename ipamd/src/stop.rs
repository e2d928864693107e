//! What a program of ours runs in: one thread, and the signals that end it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::RunError;

/// Does something that looks after its own end when it is told to stop.
///
/// # Errors
/// That of the work, or when there is no runtime or no signal to be had.
pub(crate) fn until_stopped(
    work: impl AsyncFnOnce(&mut Stop) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::local("start the runtime"))?;
    let ended = runtime.block_on(async {
        let mut stop = Stop::listen().map_err(RunError::local("listen to signals"))?;
        work(&mut stop).await
    });
    // To drop it would be to wait for whatever still blocks: names asked for while DNS is away, a program that gives credentials.
    runtime.shutdown_background();
    ended
}

/// SIGTERM and SIGINT, listened to from the first moment on: by default they do not end the first process of a container.
pub(crate) struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    fn listen() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn told(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }

    /// What this gives, unless we are told to stop before it does.
    pub(crate) async fn before<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.told() => None,
            done = work => Some(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_still_blocks_when_all_is_done_is_not_waited_for() {
        let over = Arc::new(AtomicBool::new(false));
        let (end, ended) = mpsc::channel::<()>();
        let at_the_end = Arc::clone(&over);

        until_stopped(async |_stop| {
            let (begin, begun) = tokio::sync::oneshot::channel();
            drop(tokio::task::spawn_blocking(move || {
                begin.send(()).unwrap();
                // It has an end, so that this test has one too.
                let _time_or_end = ended.recv_timeout(Duration::from_secs(10));
                at_the_end.store(true, Ordering::SeqCst);
            }));
            drop(begun.await);
            Ok(())
        })
        .unwrap();

        assert!(!over.load(Ordering::SeqCst));
        drop(end);
    }
}
