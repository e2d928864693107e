//! The real metrics helper, in a node's namespace.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::LabError;
use crate::node::{Node, binary};

/// Where it serves.
const PORT: u16 = 61681;
/// How long what happens by itself may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running helper; ended when dropped.
#[derive(Debug)]
pub struct MetricsHelper {
    child: Child,
    log: PathBuf,
}

impl MetricsHelper {
    /// Starts it with the lab's settings and these.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(node: &Node, settings: &[(&str, &str)]) -> Result<Self, LabError> {
        let log = node.run_dir().join("metrics-helper.log");
        let file = File::create(&log).map_err(LabError::doing("make the helper's log"))?;
        let mut command = Command::new(binary("IPAMD_BIN", "ipamd")?);
        command.arg("metrics-helper").env_clear().envs(node.environment());
        // A round each second, where a cluster has one each half minute.
        command.env("METRIC_UPDATE_INTERVAL", "1").envs(settings.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = node.netns().spawn(command).map_err(LabError::doing("start the metrics helper"))?;
        Ok(Self { child, log })
    }

    /// What it has told so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn told(&self) -> Result<String, LabError> {
        std::fs::read_to_string(&self.log).map_err(LabError::doing("read the helper's log"))
    }

    /// Waits until it has told this.
    ///
    /// # Errors
    /// When that takes too long; with what it told.
    pub fn wait_told(&self, words: &str) -> Result<(), LabError> {
        let until = Instant::now() + PATIENCE;
        while !self.told()?.contains(words) {
            if Instant::now() > until {
                return Err(LabError::Otherwise(format!("{words:?} is not in\n{}", self.told()?)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The value of a sample that it serves, if it does.
    #[must_use]
    pub fn served(&self, node: &Node, sample: &str) -> Option<f64> {
        let (_, page) = node.get(PORT, "/metrics").ok()?;
        let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    /// Waits until it serves this value.
    ///
    /// # Errors
    /// When that takes too long; with what it serves.
    pub fn wait_served(&self, node: &Node, sample: &str, value: f64) -> Result<(), LabError> {
        let until = Instant::now() + PATIENCE;
        while self.served(node, sample) != Some(value) {
            if Instant::now() > until {
                let (served, told) = (self.served(node, sample), self.told()?);
                return Err(LabError::Otherwise(format!("{sample} is {served:?}, not {value}\n{told}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for MetricsHelper {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
