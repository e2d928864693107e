//! The main job, shown: nodes, pods, and packets between them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::LabError;
use crate::ec2::Config;
use crate::fabric::{Drops, Fabric, INTERNET_HOST, SECOND_CIDR_HOST};
use crate::netns::{Entered, Netns};
use crate::node::{Node, binary};
use crate::probe::{Echo, ask};
use crate::runtime::Pod;

/// Three ENIs with ten addresses each.
const INSTANCE_TYPE: &str = "m5.large";
/// Pods that fit on a node.
const PODS_MAX: u32 = 27;
/// After how many pods one is told how many there are.
const PODS_TOLD: u32 = 20;
/// Pods that fit on its primary ENI.
const ON_PRIMARY: usize = 9;
/// How long EC2 takes to attach an ENI here.
pub(crate) const ATTACH_DELAY: Duration = Duration::from_millis(300);

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Nodes.
    pub nodes: u32,
    /// Pods over all nodes.
    pub pods: u32,
}

/// Colours for a terminal; none for a file.
#[derive(Debug, Clone, Copy)]
pub struct Paint(bool);

impl Paint {
    /// With colours, or without.
    #[must_use]
    pub const fn new(colours: bool) -> Self {
        Self(colours)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn title(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(crate) fn mark(self, good: bool) -> String {
        if good { self.wrap("32", "ok") } else { self.wrap("1;31", "WRONG") }
    }
}

/// A running demo. Fields drop in this order: echoes, pods, nodes, fabric.
#[derive(Debug)]
pub struct Demo {
    _echoes: Vec<Echo>,
    pods: Vec<Placed>,
    nodes: Vec<Node>,
    fabric: Fabric,
    paint: Paint,
}

/// A pod and where it is.
#[derive(Debug)]
struct Placed {
    pod: Pod,
    address: Ipv4Addr,
    node: usize,
    eni: String,
    device: u8,
}

/// One question of the matrix.
#[derive(Debug)]
struct Cell {
    from: String,
    to: String,
    want: Ipv4Addr,
    seen: Option<Ipv4Addr>,
}

impl Demo {
    /// Sets everything up.
    ///
    /// # Errors
    /// Whatever keeps it from standing.
    pub fn start(wish: Wish, paint: Paint, say: &mut dyn FnMut(&str)) -> Result<Self, LabError> {
        if wish.pods > wish.nodes * PODS_MAX {
            let message = format!(
                "a node holds {PODS_MAX} pods at most: --nodes {} is too little for --pods {}",
                wish.nodes, wish.pods
            );
            return Err(LabError::Otherwise(message));
        }
        say(&paint.title("── a VPC (10.0.0.0/16, 100.64.0.0/16) with an internet gateway"));
        let fabric = Fabric::create(Config { attach_delay: ATTACH_DELAY, ..Config::default() })?;
        let mut echoes = vec![Echo::start(fabric.internet())?, Echo::start(fabric.second())?];
        let mut nodes = Vec::new();
        for number in 1..=wish.nodes {
            let started = Instant::now();
            let node = Node::launch(&fabric, &format!("node{number}"), INSTANCE_TYPE)?;
            node.start_daemon(&[])?;
            node.wait_ready()?;
            let (id, address) = (&node.instance().id, node.instance().address);
            say(&format!(
                "   node{number}  {id}  {address}  ipamd ready in {} ms",
                started.elapsed().as_millis()
            ));
            echoes.push(Echo::start(node.netns())?);
            nodes.push(node);
        }
        say(&paint.title(&format!("── pods: {}", wish.pods)));
        let mut pods = Vec::new();
        for number in 0..wish.pods {
            let node = usize::try_from(number % wish.nodes).unwrap_or(0);
            let mut pod = Pod::create(&format!("pod-{number:02}"), &format!("sandbox{number:04}"))?;
            let address = pod.add(&nodes[node])?;
            if (number + 1) % PODS_TOLD == 0 && number + 1 < wish.pods {
                say(&format!("   {} of {}", number + 1, wish.pods));
            }
            echoes.push(Echo::start(&pod.netns)?);
            pods.push(Placed { pod, address, node, eni: String::new(), device: 0 });
        }
        let mut this = Self { _echoes: echoes, pods, nodes, fabric, paint };
        this.place()?;
        Ok(this)
    }

    /// Asks the daemons where the pods' addresses belong.
    fn place(&mut self) -> Result<(), LabError> {
        for (index, node) in self.nodes.iter().enumerate() {
            let report = node.report()?;
            let devices: BTreeMap<_, _> =
                report.enis.iter().map(|eni| (eni.id.clone(), eni.device.0)).collect();
            for placed in self.pods.iter_mut().filter(|placed| placed.node == index) {
                let held = report.pods.iter().find(|pod| pod.address == placed.address);
                let Some(eni) = held.and_then(|pod| pod.eni.clone()) else {
                    return Err(LabError::Otherwise(format!("ipamd does not know {}", placed.address)));
                };
                placed.device = devices.get(&eni).copied().unwrap_or(u8::MAX);
                placed.eni = eni.to_string();
            }
        }
        Ok(())
    }

    /// Shows the pods and who reaches whom. True when all is as expected.
    ///
    /// # Errors
    /// When something cannot be asked.
    pub fn show(&mut self, say: &mut dyn FnMut(&str)) -> Result<bool, LabError> {
        let head = format!(
            "   {:<8} {:<6} {:<22} {:<6} {:<12} {:>8}",
            "pod", "node", "ENI", "device", "address", "ADD"
        );
        say(&format!("\n{}", self.paint.title(&head)));
        for Placed { pod, address, node, eni, device } in &self.pods {
            let (node, ms) = (node + 1, pod.took.as_secs_f64() * 1000.0);
            say(&format!(
                "   {:<8} node{node:<2} {eni:<22} {device:<6} {address:<12} {ms:>5.1} ms",
                pod.name
            ));
        }
        if self.pods.iter().any(|placed| placed.device > 0) {
            let ms = ATTACH_DELAY.as_millis();
            say(&format!(
                "   device 0 is the primary ENI. EC2 takes {ms} ms here to attach another; the daemon asks for it before it is needed, so an ADD\n   waits for what is left of that at most."
            ));
        }
        let cells = self.ask_all()?;
        let mut kinds: BTreeMap<(String, String), (usize, Vec<&Cell>)> = BTreeMap::new();
        for cell in &cells {
            let kind = kinds.entry((cell.from.clone(), cell.to.clone())).or_default();
            kind.0 += 1;
            if cell.seen != Some(cell.want) {
                kind.1.push(cell);
            }
        }
        let head = format!("   {:<24} {:<34} {:>8}", "from", "to (whose address it must see)", "right");
        say(&format!("\n{}", self.paint.title(&head)));
        say(
            "   right: answered, and the source that was seen is the expected one; each pod asks some six of the other pods",
        );
        for ((from, to), (asked, bad)) in &kinds {
            let mark = self.paint.mark(bad.is_empty());
            say(&format!("   {from:<24} {to:<34} {:>4}/{asked:<3} {mark}", asked - bad.len()));
            for cell in bad.iter().take(3) {
                let seen = cell.seen.map_or_else(|| "no answer".to_owned(), |seen| seen.to_string());
                say(&format!("      expected {}, {seen}", cell.want));
            }
        }
        let drops = self.fabric.drops()?;
        let Drops { wrong_source, not_public } = drops;
        let clean = drops == Drops { wrong_source: 0, not_public: 0 };
        say(&format!(
            "\n   packets with a source that is not the ENI's: {wrong_source}; to the internet without NAT: {not_public}  {}",
            self.paint.mark(clean)
        ));
        let secondary = self.pods.iter().filter(|placed| placed.device > 0).count();
        // The primary ENI is filled first.
        let expected: usize = (0..self.nodes.len())
            .map(|node| {
                self.pods.iter().filter(|placed| placed.node == node).count().saturating_sub(ON_PRIMARY)
            })
            .sum();
        say(&format!("   pods on secondary ENIs: {secondary}  {}", self.paint.mark(secondary == expected)));
        Ok(clean && secondary == expected && kinds.values().all(|(_, bad)| bad.is_empty()))
    }

    /// Every kind of question, for pods on primary and on secondary ENIs.
    fn ask_all(&self) -> Result<Vec<Cell>, LabError> {
        let mut cells = Vec::new();
        for from in &self.pods {
            let who = if from.device == 0 { "pod on the primary ENI" } else { "pod on a secondary ENI" };
            let mut put = |to: &str,
                           netns: &Netns,
                           target: Ipv4Addr,
                           want: Ipv4Addr|
             -> Result<(), LabError> {
                cells.push(Cell { from: who.to_owned(), to: to.to_owned(), want, seen: ask(netns, target)? });
                Ok(())
            };
            for to in self.others(from) {
                let kind =
                    if to.node == from.node { "pod, same node (pod)" } else { "pod, other node (pod)" };
                put(kind, &from.pod.netns, to.address, from.address)?;
            }
            for (index, node) in self.nodes.iter().enumerate() {
                let kind = if index == from.node { "own node (pod)" } else { "other node (pod)" };
                put(kind, &from.pod.netns, node.instance().address, from.address)?;
            }
            put("second VPC CIDR (pod)", &from.pod.netns, SECOND_CIDR_HOST, from.address)?;
            let own = self.nodes[from.node].instance().address;
            put("internet (node, by NAT)", &from.pod.netns, INTERNET_HOST, own)?;
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for pod in &self.pods {
                let to = if pod.node == index { "own pod (node)" } else { "other node's pod (node)" };
                let (want, seen) = (node.instance().address, ask(node.netns(), pod.address)?);
                cells.push(Cell { from: "node".to_owned(), to: to.to_owned(), want, seen });
            }
        }
        Ok(cells)
    }

    /// For each pod, up to six others: enough to meet every ENI of every node without asking everyone everything.
    fn others<'a>(&'a self, from: &'a Placed) -> impl Iterator<Item = &'a Placed> {
        let step = (self.pods.len() / 6).max(1);
        self.pods.iter().step_by(step).filter(move |to| to.address != from.address).take(6)
    }

    /// What to type to look around while it stands.
    #[must_use]
    pub fn how_to_look(&self, entered: Entered) -> String {
        let (who, user) = match entered.user_namespace {
            true => ("as the same user", "-U --preserve-credentials "),
            false => ("as root", ""),
        };
        let mut text = format!("\n   {who}, in another terminal:\n");
        for (number, node) in self.nodes.iter().enumerate() {
            if let Some(pid) = node.daemon_pid() {
                text.push_str(&format!("     nsenter -t {pid} {user}-n -m sh   # node{}\n", number + 1));
            }
        }
        text.push_str("   there: ip rule; ip route show table 51200; nft list table ip aws-vpc-cni\n");
        let ipamd = binary("IPAMD_BIN", "ipamd");
        let ipamd = ipamd.map_or_else(|_| "ipamd".to_owned(), |path| path.display().to_string());
        for (number, node) in self.nodes.iter().enumerate() {
            let run_dir = node.run_dir().display();
            text.push_str(&format!("   node{}: export IPAMD_RUN_DIR={run_dir}\n", number + 1));
        }
        text.push_str(&format!("          {ipamd} status; {ipamd} doctor\n"));
        if let Some(Placed { pod, node, address, .. }) = self.pods.last() {
            text.push_str(&format!("   {}, on node{}, {address}:\n", pod.name, node + 1));
            text.push_str(&format!("          {ipamd} explain pod {address}\n"));
            text.push_str(&format!("          ip netns exec {} ip addr\n", pod.netns.name()));
        }
        text.push_str("   the status page, on each node: curl http://127.0.0.1:61679/status\n");
        text.push_str("   Enter ends it.");
        text
    }

    /// Deletes the pods, checks that every address is accounted for, and ends. True when the books are right.
    ///
    /// # Errors
    /// When something cannot be asked.
    pub fn tear_down(mut self, say: &mut dyn FnMut(&str)) -> Result<bool, LabError> {
        let mut slowest = Duration::ZERO;
        for placed in &mut self.pods {
            slowest = slowest.max(placed.pod.del(&self.nodes[placed.node])?);
        }
        let mut right = true;
        for (number, node) in self.nodes.iter().enumerate() {
            let report = node.report()?;
            right &=
                report.pods.is_empty() && report.addresses.assigned == 0 && report.addresses.reserved == 0;
            let count = report.addresses;
            say(&format!(
                "   node{}: pods deleted, {} left; addresses: {} kept from other pods for 30 s (they cool), {} free",
                number + 1,
                report.pods.len(),
                count.cooling,
                count.free
            ));
            node.stop_daemon()?;
        }
        self.fabric.troubles()?;
        say(&format!("── torn down; slowest DEL {:.1} ms", slowest.as_secs_f64() * 1000.0));
        Ok(right)
    }
}
