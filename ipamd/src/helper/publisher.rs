//! Tells CloudWatch, and says once what stands in the way.

use tokio::sync::mpsc;

use super::board::{Board, Told};
use super::queue::Waiting;
use crate::clock::Clock;
use crate::cloud::cloudwatch::BATCH;
use crate::cloud::{CloudError, CloudErrorKind, CloudWatch, Ec2, Imds, MetricPoint};
use crate::cluster::Notes;
use crate::config::{Helper, is_cluster_id};
use crate::metrics::Metrics;
use crate::server::chain;

/// Tags of the instance that name its cluster, the first one first.
const TAGS: [&str; 3] = ["eks:cluster-name", "CLUSTER_ID", "Name"];
/// What a cluster is called that nobody names.
const UNNAMED: &str = "k8s-cluster";

/// Whoever tells CloudWatch.
pub(super) struct Publisher {
    settings: Helper,
    board: Board,
    clock: Clock,
    waiting: Waiting,
    /// The client and the cluster's name, once both are known.
    way: Option<(CloudWatch, String)>,
    /// What stands in the way.
    trouble: Option<CloudErrorKind>,
}

impl Publisher {
    pub(super) fn new(settings: Helper, board: Board, clock: Clock) -> Self {
        Self { settings, board, clock, waiting: Waiting::default(), way: None, trouble: None }
    }

    /// Tells what comes, until nothing comes any more.
    pub(super) async fn run(mut self, mut rounds: mpsc::Receiver<Vec<MetricPoint>>) {
        while let Some(points) = rounds.recv().await {
            match self.waiting.push(points) {
                0 => {}
                dropped => self.board.told(Told::Dropped, dropped),
            }
            self.tell().await;
            self.board.waiting(self.waiting.len());
        }
    }

    async fn tell(&mut self) {
        while let Some(batch) = self.waiting.next(self.clock.now(), BATCH) {
            let outcome = self.put(&batch).await;
            if let Err(error) = outcome {
                let now = self.clock.now();
                if self.waiting.failed(batch.len(), error.kind(), now, spread()) {
                    self.board.told(Told::GivenUp, batch.len());
                }
                self.stands_in_the_way(&error);
                return;
            }
            self.waiting.done(batch.len());
            self.board.told(Told::Done, batch.len());
            if self.trouble.take().is_some() {
                tracing::info!("CloudWatch takes the figures again");
            }
        }
        if self.waiting.len() == 0 {
            self.waiting.rest();
        }
    }

    async fn put(&mut self, batch: &[MetricPoint]) -> Result<(), CloudError> {
        if self.way.is_none() {
            self.way = Some(way(&self.settings).await?);
        }
        match &mut self.way {
            Some((client, cluster)) => client.put(cluster, batch).await,
            None => Ok(()),
        }
    }

    /// Once for each kind of trouble.
    fn stands_in_the_way(&mut self, error: &CloudError) {
        let (reason, cause) = (error.kind().reason(), chain(error));
        if self.trouble.replace(error.kind()) == Some(error.kind()) {
            tracing::debug!(%reason, cause, "CloudWatch still does not take the figures");
        } else {
            tracing::warn!(%reason, cause, "CloudWatch does not take the figures; they wait");
        }
    }
}

/// The client of the region, and the cluster's name.
async fn way(settings: &Helper) -> Result<(CloudWatch, String), CloudError> {
    let config = &settings.config;
    let imds = Imds::connect(config);
    let region = match &settings.region {
        Some(region) => region.clone(),
        None => imds.region().await?,
    };
    let cluster = match &settings.cluster_id {
        Some(name) => name.clone(),
        None => named(settings, &imds, &region).await?,
    };
    let client = CloudWatch::connect(config, &region, settings.endpoint.as_deref()).await;
    tracing::info!(region, cluster, "CloudWatch will be told");
    Ok((client, cluster))
}

/// The cluster's name by the instance's tags. Who may not read them, or has no instance metadata, has none by that name.
async fn named(settings: &Helper, imds: &Imds, region: &str) -> Result<String, CloudError> {
    let tags = async {
        let instance = imds.instance().await.map_err(|error| (true, error))?;
        let ec2 = Ec2::connect(&settings.config, region, Metrics::default(), Notes::default()).await;
        let tags = ec2.tags_of(&instance).await;
        tags.map_err(|error| (error.kind() == CloudErrorKind::Denied, error))
    };
    match tags.await {
        Ok(tags) => {
            let mut named = TAGS.iter().filter_map(|key| tags.get(*key)).filter(|name| is_cluster_id(name));
            Ok(named.next().cloned().unwrap_or_else(|| UNNAMED.to_owned()))
        }
        Err((true, error)) => {
            let cause = chain(&error);
            tracing::warn!(
                cause,
                "the cluster is called {UNNAMED}, as its name cannot be read; AWS_CLUSTER_ID would tell it"
            );
            Ok(UNNAMED.to_owned())
        }
        Err((false, error)) => Err(error),
    }
}

/// Up to 999, so that not all try again at once. No randomness is no reason to wait for it.
fn spread() -> u32 {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(_) => u32::from_ne_bytes(bytes) % 1000,
        Err(_) => 0,
    }
}
