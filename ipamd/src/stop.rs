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
    runtime.block_on(async {
        let mut stop = Stop::listen().map_err(RunError::local("listen to signals"))?;
        work(&mut stop).await
    })
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
