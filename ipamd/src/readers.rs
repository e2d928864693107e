//! Readers of the state: they ask its owner, and wait so long and no longer.

use std::time::Duration;

use pool::Snapshot;
use tokio::sync::{mpsc, oneshot};
use wire::Report;

/// How long the owner may take to answer; it never has anything to do that takes longer than milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// Readers that may wait for the owner; more wait until these are answered.
const WAITING_MAX: usize = 4;

/// What somebody wants to read, and where it goes.
#[derive(Debug)]
pub(crate) enum Reader {
    /// The state in words and numbers.
    Report(oneshot::Sender<Report>),
    /// The pool, address by address, and the state at the same moment.
    Pool(oneshot::Sender<(Snapshot, Report)>),
}

/// The way to the owner; copies lead to the same.
#[derive(Debug, Clone)]
pub(crate) struct Readers(mpsc::Sender<Reader>);

/// A way to the owner, and its end there.
pub(crate) fn readers() -> (Readers, mpsc::Receiver<Reader>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Readers(sender), receiver)
}

impl Readers {
    /// The state as it is now; `None` from an owner that has ended or hangs.
    pub(crate) async fn report(&self) -> Option<Report> {
        self.read(Reader::Report).await
    }

    /// The pool as it is now, and the state with it; likewise.
    pub(crate) async fn pool(&self) -> Option<(Snapshot, Report)> {
        self.read(Reader::Pool).await
    }

    async fn read<T>(&self, what: impl FnOnce(oneshot::Sender<T>) -> Reader) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.0.send(what(reply)).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
    }
}
