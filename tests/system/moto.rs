//! The daemon against an EC2 that is not of our making, so that our reading of its API is not only our own.
//!
//! moto judges what is on the wire: signatures, names and forms of parameters, what the answers mean to us, and, by IAM's
//! rules, that the policy in `manifests` allows the calls we make. boto3 reads back what came of it. Links and packets are
//! the fabric's, wired as moto says. Not judged here: what moto is too simple for (see [`lab::moto`]), and
//! `DetachNetworkInterface`, which the daemon calls for an ENI of a minute's age at the earliest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::LabError;
use lab::ec2::{Config, EniView};
use lab::fabric::{Fabric, INTERNET_HOST, SECOND_CIDR_HOST};
use lab::moto::{Asked, Key, Moto};
use lab::netns::Netns;
use lab::node::Node;
use lab::probe::{Echo, ask};
use lab::runtime::Pod;
use serde_json::{Value, json};
use wire::Report;

use crate::support::{Outcome, Setting, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("moto_has_the_eni_and_the_addresses_that_pods_use", agreed),
    ("moto_takes_back_addresses_that_nobody_needs", given_back),
    ("moto_is_rid_of_an_eni_that_a_daemon_left_behind", left_behind),
    ("a_call_that_moto_does_not_allow_is_denied_and_later_made", not_allowed),
    ("an_error_of_moto_is_a_reason_and_the_daemon_lives", refused),
];

/// A type with 3 ENIs of 4 addresses each.
const TYPE: &str = "t3.small";
/// The same for a type that moto knows and our table of limits does not, so that EC2 is asked.
const UNKNOWN_TYPE: &str = "t8i.small";
/// What a daemon may do in a cluster.
const POLICY: &str = include_str!("../../manifests/iam-policy.json");
/// How long something may take to come true, and the pause between looks.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// A node whose instance runs in moto.
pub(crate) struct Stage {
    /// Its EC2 has nothing to do.
    pub(crate) setting: Setting,
    pub(crate) moto: Moto,
    pub(crate) key: Key,
}

impl Stage {
    /// An instance with its primary ENI; no daemon yet.
    fn set(instance_type: &str, policy: &str) -> Result<Self, LabError> {
        let fabric = Fabric::create(Config::default())?;
        // A state of before belongs to another test.
        let _gone = std::fs::remove_dir_all("/run/lab/node1");
        let netns = Arc::new(Netns::create("node1")?);
        let mut moto = Moto::start(&netns)?;
        let key = moto.key("node", policy)?;
        let facts = moto.launch(instance_type)?;
        let node = Node::adopt(&fabric, netns, facts)?;
        Ok(Self { setting: Setting { node, fabric }, moto, key })
    }

    /// The same with a daemon that is ready.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Result<Self, LabError> {
        let stage = Self::set(TYPE, POLICY)?;
        stage.start_daemon(&stage.key.secret, settings)?;
        Ok(stage)
    }

    pub(crate) fn node(&self) -> &Node {
        &self.setting.node
    }

    fn start_daemon(&self, secret: &str, settings: &[(&str, &str)]) -> Outcome {
        let mut all = vec![
            ("AWS_EC2_ENDPOINT", self.moto.endpoint()),
            ("AWS_ACCESS_KEY_ID", self.key.id.as_str()),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("IPAMD_ADD_TIMEOUT_SECONDS", "5"),
        ];
        all.extend(settings);
        self.node().start_daemon(&all)?;
        self.node().wait_ready()
    }

    /// Waits until daemon and moto are as wanted, while links follow what moto has.
    fn wait_for(
        &mut self,
        what: &str,
        is: impl Fn(&Report, &[EniView]) -> bool,
    ) -> Result<(Report, Vec<EniView>), LabError> {
        let until = Instant::now() + PATIENCE;
        let Setting { node, fabric } = &self.setting;
        loop {
            let enis = self.moto.wire(fabric, node.instance())?;
            let report = node.report()?;
            if is(&report, &enis) {
                return Ok((report, enis));
            }
            let log = node.log_tail();
            ensure!(Instant::now() < until, "{what} did not come true: {report:#?}\n{enis:#?}\n{log}");
            std::thread::sleep(PAUSE);
        }
    }

    /// Adds pods one after the other; each finds a free address.
    pub(crate) fn pods(&mut self, names: std::ops::Range<u32>) -> Result<Vec<Pod>, LabError> {
        let mut pods = Vec::new();
        for name in names {
            self.wait_for("a free address", |report, _| report.addresses.free > 0)?;
            pods.extend(self.setting.pods(name..name + 1)?);
        }
        Ok(pods)
    }

    /// What an ADD that must fail says.
    fn failing_add(&self, name: &str) -> Result<String, LabError> {
        let mut pod = Pod::create(name, name)?;
        let error = pod.add(self.node()).err().map(|error| error.to_string());
        error.ok_or_else(|| LabError::Otherwise(format!("{name} has an address")))
    }

    /// The daemon's requests for one action.
    fn asked(&mut self, action: &str) -> Result<Vec<BTreeMap<String, String>>, LabError> {
        let all = self.moto.requests(&self.key)?.into_iter();
        Ok(all.filter(|asked| asked.action == action).map(|asked| asked.form).collect())
    }

    /// An ENI with the tag and the description by which daemons know their own, attached to nothing.
    fn make_eni(&mut self, of: &str) -> Result<String, LabError> {
        let subnet = self.node().instance().subnet.clone();
        let tag = json!({"Key": "node.k8s.amazonaws.com/instance_id", "Value": of});
        let tags = json!([{"ResourceType": "network-interface", "Tags": [tag]}]);
        let description = format!("aws-K8S-{of}");
        let made = json!({"SubnetId": subnet, "Description": description, "TagSpecifications": tags});
        let made = self.moto.ec2("create_network_interface", made)?;
        Ok(made["NetworkInterface"]["NetworkInterfaceId"].as_str().unwrap_or_default().to_owned())
    }
}

/// Free addresses in the books, and all of them in EC2, are so many; nothing is under way.
fn settled(free: u32, enis: usize) -> impl Fn(&Report, &[EniView]) -> bool {
    move |report, seen| {
        let in_books = (report.addresses.free, report.addresses.total(), report.enis.len());
        in_books == (free, free, enis) && seen.len() == enis && secondary(seen) == to_usize(free)
    }
}

fn secondary(enis: &[EniView]) -> usize {
    enis.iter().map(|eni| eni.secondary.len()).sum()
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn agreed() -> Outcome {
    let mut stage = Stage::set(UNKNOWN_TYPE, POLICY)?;
    let secret = stage.key.secret.clone();
    let settings =
        [("MAX_ENI", "2"), ("WARM_ENI_TARGET", "2"), ("ADDITIONAL_ENI_TAGS", r#"{"team":"a+b&c=%/:ü"}"#)];
    stage.start_daemon(&secret, &settings)?;
    let (_, enis) = stage.wait_for("two full ENIs", settled(6, 2))?;
    is_as_wanted(stage.node(), &enis)?;
    is_asked_for(&mut stage, &enis[1])?;

    let pods = stage.pods(0..6)?;

    let report = stage.setting.accounts_for(&pods)?;
    let held: BTreeSet<_> = report.pods.iter().map(|pod| (pod.eni.clone(), pod.address)).collect();
    let of_eni = |eni: &EniView| {
        let id = eni.id.clone();
        eni.secondary.clone().into_iter().map(move |address| (Some(id.clone()), IpAddr::from(address)))
    };
    let given: BTreeSet<_> = enis.iter().flat_map(of_eni).collect();
    ensure!(held == given, "pods have {held:?}, moto has given {given:?}");
    let _echoes =
        [Echo::start(stage.setting.fabric.internet())?, Echo::start(stage.setting.fabric.second())?];
    for pod in &pods {
        let (vpc, internet) = (ask(&pod.netns, SECOND_CIDR_HOST)?, ask(&pod.netns, INTERNET_HOST)?);
        let node: Ipv4Addr = stage.node().instance().address;
        ensure!(internet == Some(node), "{}: the internet saw {internet:?}", pod.name);
        ensure!(vpc == pod.address, "{}: the VPC saw {vpc:?}", pod.name);
    }
    Ok(())
}

/// The second ENI, as boto3 reads it.
fn is_as_wanted(node: &Node, enis: &[EniView]) -> Outcome {
    let (instance, eni) = (node.instance(), &enis[1]);
    let place = eni.attachment.as_ref().map(|at| (at.instance.clone(), at.card.0, at.device.0));
    ensure!(place == Some((instance.id.clone(), 0, 1)), "it is at {place:?}");
    ensure!(eni.description == format!("aws-K8S-{}", instance.id), "its description is {}", eni.description);
    ensure!(eni.subnet == instance.subnet, "its subnet is {}", eni.subnet);
    ensure!(eni.groups == enis[0].groups, "its groups are {:?}", eni.groups);
    let mut tags = eni.tags.clone();
    let created = tags.remove("node.k8s.amazonaws.com/createdAt").unwrap_or_default();
    ensure!(created.starts_with("20") && created.ends_with('Z'), "it was created at {created}");
    let want = [
        ("cluster.k8s.amazonaws.com/name", "lab"),
        ("eks:eni:owner", "amazon-vpc-cni"),
        ("node.k8s.amazonaws.com/instance_id", instance.id.as_str()),
        // No space: moto checks the signature over a form that it encodes again, in which a space is a `+`.
        ("team", "a+b&c=%/:ü"),
    ];
    let want = want.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ensure!(tags == BTreeMap::from(want), "its tags are {tags:?}");
    let report = node.report()?;
    let macs: Vec<_> = report.enis.iter().map(|eni| (&eni.id, eni.mac, eni.primary_address)).collect();
    let seen: Vec<_> = enis.iter().map(|eni| (&eni.id, eni.mac, eni.primary)).collect();
    ensure!(macs == seen, "ipamd has {macs:?}, moto {seen:?}");
    Ok(())
}

/// What moto takes in without keeping it, judged by what it was sent; and which calls the way here took.
fn is_asked_for(stage: &mut Stage, eni: &EniView) -> Outcome {
    let ties = stage.asked("ModifyNetworkInterfaceAttribute")?;
    let attachment = eni.attachment.as_ref().map(|at| at.id.as_str()).unwrap_or_default();
    let want = [
        ("Action", "ModifyNetworkInterfaceAttribute"),
        ("Version", "2016-11-15"),
        ("NetworkInterfaceId", eni.id.as_str()),
        ("Attachment.AttachmentId", attachment),
        ("Attachment.DeleteOnTermination", "true"),
    ];
    let want = BTreeMap::from(want.map(|(key, value)| (key.to_owned(), value.to_owned())));
    // Once more at every look, as moto forgets it.
    ensure!(!ties.is_empty() && ties.iter().all(|tie| *tie == want), "it was tied by {ties:?}");
    let made = stage.asked("CreateNetworkInterface")?;
    let token = made.first().and_then(|form| form.get("ClientToken")).map(String::as_str).unwrap_or_default();
    ensure!(made.len() == 1 && !token.is_empty(), "it was made by {made:?}");
    let asked: Vec<Asked> = stage.moto.requests(&stage.key)?;
    let asked: BTreeSet<&str> = asked.iter().map(|asked| asked.action.as_str()).collect();
    let want = BTreeSet::from([
        "AssignPrivateIpAddresses",
        "AttachNetworkInterface",
        "CreateNetworkInterface",
        "DescribeInstanceTypes",
        "DescribeSubnets",
        "ModifyNetworkInterfaceAttribute",
    ]);
    ensure!(asked == want, "asked for: {asked:?}; does our table of limits have {UNKNOWN_TYPE} now?");
    Ok(())
}

fn given_back() -> Outcome {
    // One that does not learn how full its subnet is does not keep anything for hours.
    let mut stage = Stage::set(TYPE, &POLICY.replace("ec2:DescribeSubnets", "ec2:DescribeVpcs"))?;
    stage.start_daemon(&stage.key.secret, &[("WARM_IP_TARGET", "1"), ("IP_COOLDOWN_PERIOD", "1")])?;
    let mut pods = stage.pods(0..3)?;
    let (_, full) = stage
        .wait_for("a warm address", |report, enis| report.addresses.free == 1 && secondary(enis) == 4)?;
    ensure!(full.len() == 2, "four addresses took {} ENIs", full.len());
    for mut pod in pods.split_off(1) {
        pod.del(stage.node())?;
    }

    let (report, enis) = stage.wait_for("addresses given back", |report, enis| {
        secondary(enis) < 4 && secondary(enis) == to_usize(report.addresses.total())
    })?;

    let mine: BTreeSet<Ipv4Addr> = pods.iter().filter_map(|pod| pod.address).collect();
    let left: BTreeSet<Ipv4Addr> = enis.iter().flat_map(|eni| eni.secondary.clone()).collect();
    ensure!(mine.is_subset(&left), "the pod's {mine:?} is not among {left:?}");
    for (books, moto) in report.enis.iter().zip(&enis) {
        let counted = to_usize(books.addresses.total());
        ensure!(counted == moto.secondary.len(), "{}: {counted} counted, {:?}", books.id, moto.secondary);
    }
    let asked = stage.asked("UnassignPrivateIpAddresses")?;
    let address = |form: &BTreeMap<String, String>| form.contains_key("PrivateIpAddress.1");
    ensure!(!asked.is_empty() && asked.iter().all(address), "given back by {asked:?}");
    stage.setting.accounts_for(&pods)?;
    Ok(())
}

fn left_behind() -> Outcome {
    let mut stage = Stage::set(TYPE, POLICY)?;
    let instance = stage.node().instance().id.to_string();
    let (ours, other) = (stage.make_eni(&instance)?, stage.make_eni("i-0123456789abcdef0")?);
    let key = stage.key.secret.clone();
    // The one before left them; on a node that has just started there is nobody who could have.
    stage.start_daemon(&key, &[("MAX_ENI", "1")])?;
    stage.node().stop_daemon()?;
    stage.start_daemon(&key, &[("MAX_ENI", "1")])?;
    let until = Instant::now() + PATIENCE;
    loop {
        let told = stage.moto.ec2("describe_network_interfaces", json!({}))?;
        let told: Vec<&Value> = told["NetworkInterfaces"].as_array().into_iter().flatten().collect();
        let has = |id: &str| told.iter().any(|eni| eni["NetworkInterfaceId"] == id);
        ensure!(has(&other), "an ENI of another instance is gone");
        if !has(&ours) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{ours} is still there:\n{}", stage.node().log_tail());
        std::thread::sleep(PAUSE);
    }
}

fn not_allowed() -> Outcome {
    let settings = [("MAX_ENI", "1"), ("IPAMD_ADD_TIMEOUT_SECONDS", "2")];
    let less = POLICY.replace("ec2:AssignPrivateIpAddresses", "ec2:DescribeTags");
    let mut stage = Stage::set(TYPE, &less)?;
    stage.start_daemon("not-the-secret", &settings)?;
    let error = stage.failing_add("wrong-secret")?;
    ensure!(error.contains("denied"), "with a wrong secret, ADD says {error}");
    let failed: Vec<String> = stage.node().report()?.cloud;
    ensure!(failed.iter().any(|text| text.contains("AuthFailure")), "with a wrong secret: {failed:?}");
    stage.node().stop_daemon()?;

    let secret = stage.key.secret.clone();
    stage.start_daemon(&secret, &settings)?;
    let error = stage.failing_add("less-allowed")?;
    ensure!(error.contains("denied"), "without the permission, ADD says {error}");

    stage.moto.allow(&stage.key, POLICY)?;
    let pods = stage.pods(0..1)?;
    stage.setting.accounts_for(&pods)?;
    Ok(())
}

fn refused() -> Outcome {
    let mut stage = Stage::start(&[("MAX_ENI", "1")])?;
    stage.wait_for("a full ENI", settled(3, 1))?;
    let pods = stage.pods(0..3)?;
    stage.node().stop_daemon()?;
    let subnet = stage.node().instance().subnet.clone();
    stage.moto.ec2("delete_subnet", json!({"SubnetId": subnet}))?;
    let secret = stage.key.secret.clone();
    stage.start_daemon(&secret, &[("MAX_ENI", "2"), ("IPAMD_ADD_TIMEOUT_SECONDS", "2")])?;

    let error = stage.failing_add("without-subnet")?;

    ensure!(error.contains("no-subnet"), "without a subnet, ADD says {error}");
    let failed: Vec<String> = stage.node().report()?.cloud;
    ensure!(failed.iter().any(|text| text.contains("InvalidSubnetID.NotFound")), "{failed:?}");
    stage.setting.accounts_for(&pods)?;
    Ok(())
}
