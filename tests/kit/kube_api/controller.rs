//! A stand-in for the VPC resource controller: it makes the trunk of a node whose CNINode asks for one, and a branch ENI for each pod of such
//! a node that asks for one, tells it by the pod's annotation, and takes it away some time after the pod.
//!
//! It works as the real one does: by the objects, against EC2, again and again until it is done. While the API server is away it does nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnetwork::Ipv6Network;
use serde_json::{Value, json};
use types::{DeviceIndex, EniId, InstanceId, NetworkCard, VlanId};

use super::objects::{Kind, Place};
use super::{ApiWeather, Book, Desk, KubeApi};
use crate::ec2::{ApiError, AttachState, Ec2, EniKind, EniView, Model, NewEni};

/// The resource that a pod asks for and a node offers, and the annotation that tells of it.
pub const POD_ENI: &str = "vpc.amazonaws.com/pod-eni";
/// What a CNINode asks for a trunk by.
const FEATURE: &str = "SecurityGroupsForPods";
/// How often it looks.
const ROUND: Duration = Duration::from_millis(5);

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manners {
    /// How long a pod waits for its branch ENI from when it was first seen.
    pub delay: Duration,
    /// How long a branch ENI is kept after its pod.
    pub cooldown: Duration,
    /// It makes no trunk.
    pub no_trunk: bool,
    /// It makes no branch ENI.
    pub no_branch: bool,
    /// Branch ENIs have IPv6 addresses too.
    pub ipv6: bool,
}

/// It runs until this is dropped.
#[derive(Debug)]
pub struct ResourceController {
    staff: Arc<Staff>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Staff {
    desk: Arc<Desk>,
    ec2: Ec2,
    /// Which instance a node is.
    instances: BTreeMap<String, InstanceId>,
    manners: Mutex<Manners>,
    ledger: Mutex<Ledger>,
}

/// What it remembers, by the UIDs of pods.
#[derive(Debug, Default)]
struct Ledger {
    /// When a pod was first seen.
    seen: BTreeMap<String, Instant>,
    /// Branch ENIs that were made.
    made: BTreeMap<String, EniId>,
    /// When a pod was first seen to be gone.
    gone: BTreeMap<String, Instant>,
    /// What EC2 refused, each once.
    refused: BTreeSet<String>,
}

impl KubeApi {
    /// Starts it for these nodes.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn resource_controller(
        &self,
        ec2: &Ec2,
        nodes: &[(&str, InstanceId)],
        manners: Manners,
    ) -> io::Result<ResourceController> {
        let instances = nodes.iter().map(|(name, instance)| ((*name).to_owned(), instance.clone())).collect();
        let staff = Arc::new(Staff {
            desk: Arc::clone(&self.desk),
            ec2: ec2.clone(),
            instances,
            manners: Mutex::new(manners),
            ledger: Mutex::default(),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (worker, told) = (Arc::clone(&staff), Arc::clone(&stop));
        let work = move || {
            while !told.load(Ordering::Relaxed) {
                worker.round(Instant::now());
                std::thread::sleep(ROUND);
            }
        };
        let thread = std::thread::Builder::new().name("controller".to_owned()).spawn(work)?;
        Ok(ResourceController { staff, stop, thread: Some(thread) })
    }

    /// Makes a pod of the namespace `default` that is to have a branch ENI, as the controller's webhook leaves it: its container asks for one.
    pub fn put_pod_with_branch(&self, name: &str, uid: &str, node: &str) {
        let metadata = json!({"namespace": "default", "name": name, "uid": uid});
        let one = json!({POD_ENI: "1"});
        let container = json!({"name": "main", "resources": {"limits": one, "requests": one}});
        let spec = json!({"nodeName": node, "containers": [container]});
        self.put(Place::of(Kind::Pod, "default", name), json!({"metadata": metadata, "spec": spec}));
    }

    /// Somebody annotates a pod of the namespace `default` that is there.
    pub fn annotate_pod(&self, name: &str, key: &str, text: &str) {
        let place = Place::of(Kind::Pod, "default", name);
        self.change(|book| {
            if let Some(mut pod) = book.objects.get(&place).cloned() {
                pod["metadata"]["annotations"][key] = text.into();
                drop(book.put(place, pod));
            }
        });
    }

    /// How many branch ENIs a node offers.
    #[must_use]
    pub fn offered_branches(&self, node: &str) -> Option<String> {
        let node = self.desk.book().objects.get(&Place::of(Kind::Node, "", node))?.clone();
        node["status"]["allocatable"][POD_ENI].as_str().map(str::to_owned)
    }
}

impl ResourceController {
    /// From now on it behaves so.
    pub fn set(&self, manners: Manners) {
        *locked(&self.staff.manners) = manners;
    }

    /// The branch ENI that was made for the pod with this UID.
    #[must_use]
    pub fn branch_of(&self, uid: &str) -> Option<EniView> {
        let id = locked(&self.staff.ledger).made.get(uid).cloned()?;
        self.staff.ec2.eni(&id)
    }

    /// The trunk of an instance, once it is attached.
    #[must_use]
    pub fn trunk_of(&self, instance: &InstanceId) -> Option<EniView> {
        self.staff.ec2.look(|model| attached_trunk(model, instance))
    }

    /// What EC2 refused it.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        locked(&self.staff.ledger).refused.iter().cloned().collect()
    }
}

impl Drop for ResourceController {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pod of one of its nodes.
#[derive(Debug)]
struct Seen {
    place: Place,
    uid: String,
    node: String,
    /// It asks for a branch ENI and has none.
    wants: bool,
}

impl Staff {
    fn round(&self, now: Instant) {
        let (nodes, pods) = {
            let book = self.desk.book();
            if book.weather == ApiWeather::Away {
                return;
            }
            (self.asking_nodes(&book), self.pods(&book))
        };
        let manners = *locked(&self.manners);
        let mut ledger = locked(&self.ledger);
        for node in nodes.iter().filter(|_| !manners.no_trunk) {
            let made = self.instances.get(node).map_or(Ok(()), |instance| self.see_to_trunk(node, instance));
            ledger.note("trunk", made);
        }
        for pod in &pods {
            let since = *ledger.seen.entry(pod.uid.clone()).or_insert(now);
            if pod.wants && !manners.no_branch && now.duration_since(since) >= manners.delay {
                let made = self.see_to_branch(pod, &mut ledger);
                ledger.note("branch", made);
            }
        }
        let there: BTreeSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
        self.clear(&there, manners.cooldown, now, &mut ledger);
    }

    /// Nodes whose CNINode asks for a trunk.
    fn asking_nodes(&self, book: &Book) -> Vec<String> {
        let asks = |name: &&String| {
            let node = book.objects.get(&Place::of(Kind::CniNode, "", name));
            let features = node.and_then(|node| node["spec"]["features"].as_array());
            features.is_some_and(|features| features.iter().any(|feature| feature["name"] == FEATURE))
        };
        self.instances.keys().filter(asks).cloned().collect()
    }

    fn pods(&self, book: &Book) -> Vec<Seen> {
        let pods = book.objects.iter().filter(|(place, _)| place.kind == Kind::Pod);
        let seen = pods.filter_map(|(place, pod)| {
            let node = pod["spec"]["nodeName"].as_str().filter(|node| self.instances.contains_key(*node))?;
            Some(Seen {
                place: place.clone(),
                uid: pod["metadata"]["uid"].as_str()?.to_owned(),
                node: node.to_owned(),
                wants: asks(pod) && pod["metadata"]["annotations"][POD_ENI].is_null(),
            })
        });
        seen.collect()
    }

    /// Makes the trunk where there is none, and says on the node how many branch ENIs it may have.
    fn see_to_trunk(&self, node: &str, instance: &InstanceId) -> Result<(), ApiError> {
        let enis = self.ec2.enis_of(instance);
        if !enis.iter().any(|eni| eni.kind == EniKind::Trunk) {
            let taken = |device: &u8| {
                enis.iter().any(|eni| eni.attachment.as_ref().is_some_and(|tie| tie.device.0 == *device))
            };
            let device = (1..=u8::MAX).find(|device| !taken(device)).unwrap_or(1);
            let subnet = self.ec2.instance(instance).map(|instance| instance.subnet);
            let Some(subnet) = subnet else { return Ok(()) };
            let description = "aws-k8s-trunk-eni".to_owned();
            let trunk = NewEni { trunk: true, description, ..NewEni::plain(subnet) };
            let trunk = self.ec2.create_eni(&trunk)?;
            let attached = self.ec2.attach(&trunk.id, instance, NetworkCard(0), DeviceIndex(device));
            // It leaves nothing behind, and tries again.
            return attached
                .map(drop)
                .or_else(|refused| self.ec2.operator_delete(&trunk.id).and(Err(refused)));
        }
        if self.ec2.look(|model| attached_trunk(model, instance)).is_some() {
            self.offer(node, instance);
        }
        Ok(())
    }

    fn offer(&self, node: &str, instance: &InstanceId) {
        let room = self.ec2.look(|model| {
            let instance_type = model.instance(instance).ok().map(|instance| instance.instance_type.clone());
            instance_type.and_then(|name| model.limits_table().get(&name).map(|limits| limits.branch_enis))
        });
        let (place, room) = (Place::of(Kind::Node, "", node), room.unwrap_or(0).to_string());
        self.desk.change(|book| {
            let known = book
                .objects
                .get(&place)
                .filter(|node| node["status"]["allocatable"][POD_ENI] != room.as_str());
            if let Some(mut node) = known.cloned() {
                node["status"]["allocatable"][POD_ENI] = room.into();
                drop(book.put(place, node));
            }
        });
    }

    /// Makes a pod's branch ENI on the lowest VLAN that is free, and tells the pod.
    fn see_to_branch(&self, pod: &Seen, ledger: &mut Ledger) -> Result<(), ApiError> {
        let Some(instance) = self.instances.get(&pod.node) else { return Ok(()) };
        let Some(trunk) = self.ec2.look(|model| attached_trunk(model, instance)) else { return Ok(()) };
        if !ledger.made.contains_key(&pod.uid) {
            let taken = self.ec2.look(|model| model.branches_of(&trunk.id));
            let mut vlans = (1..=120).filter_map(|number| VlanId::new(number).ok());
            let Some(vlan) = vlans.find(|vlan| taken.iter().all(|(other, _)| other != vlan)) else {
                return Ok(());
            };
            let description = "aws-k8s-branch-eni".to_owned();
            let ipv6 = locked(&self.manners).ipv6;
            let wanted = NewEni { description, ipv6, ..NewEni::plain(trunk.subnet.clone()) };
            let eni = self.ec2.create_eni(&wanted)?;
            let associated = self.ec2.associate(&trunk.id, &eni.id, vlan);
            associated.or_else(|refused| self.ec2.operator_delete(&eni.id).and(Err(refused)))?;
            ledger.made.insert(pod.uid.clone(), eni.id);
        }
        let Some(eni) = ledger.made.get(&pod.uid).and_then(|id| self.ec2.eni(id)) else { return Ok(()) };
        self.desk.change(|book| {
            // The pod may be another one by now.
            let known =
                book.objects.get(&pod.place).filter(|known| known["metadata"]["uid"] == pod.uid.as_str());
            if let Some(mut known) = known.cloned() {
                known["metadata"]["annotations"][POD_ENI] = annotation(&eni).into();
                drop(book.put(pod.place.clone(), known));
            }
        });
        Ok(())
    }

    /// Takes away what pods had that are gone for long enough.
    fn clear(&self, there: &BTreeSet<&str>, cooldown: Duration, now: Instant, ledger: &mut Ledger) {
        let gone: Vec<String> =
            ledger.made.keys().filter(|uid| !there.contains(uid.as_str())).cloned().collect();
        for uid in gone {
            let since = *ledger.gone.entry(uid.clone()).or_insert(now);
            if now.duration_since(since) < cooldown {
                continue;
            }
            if let Some(eni) = ledger.made.remove(&uid) {
                // The trunk may have taken the association along.
                let _may_be_none = self.ec2.disassociate(&eni);
                let deleted = self.ec2.operator_delete(&eni);
                ledger.note("deletion", deleted);
            }
        }
    }
}

impl Ledger {
    fn note(&mut self, what: &str, done: Result<(), ApiError>) {
        if let Err(refused) = done {
            self.refused.insert(format!("{what}: {refused}"));
        }
    }
}

fn attached_trunk(model: &Model, instance: &InstanceId) -> Option<EniView> {
    let is = |eni: &&Arc<EniView>| {
        let attached = eni.attachment.as_ref().is_some_and(|tie| tie.state == AttachState::Attached);
        eni.kind == EniKind::Trunk && attached
    };
    model.enis_of(instance).find(is).map(|eni| EniView::clone(eni))
}

/// Whether a container of a pod asks for a branch ENI.
fn asks(pod: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut amounts = containers.map(|container| &container["resources"]["limits"][POD_ENI]);
    amounts.any(|amount| amount.as_str().is_some_and(|amount| amount != "0"))
}

/// What the controller tells, in its own spelling: `vlanId`, where the Go version's code says `vlanID`.
fn annotation(eni: &EniView) -> String {
    let EniKind::Branch { association, vlan, .. } = &eni.kind else { return "[]".to_owned() };
    let ipv6 = eni.ipv6.map(|ipv6| ipv6.to_string()).unwrap_or_default();
    // A subnet has a /64.
    let range = eni.ipv6.and_then(|ipv6| Ipv6Network::new(ipv6, 64).ok());
    let range = range.map(|range| format!("{}/64", range.network())).unwrap_or_default();
    json!([{
        "eniId": eni.id.as_str(), "ifAddress": eni.mac.to_string(), "privateIp": eni.primary.to_string(),
        "ipv6Addr": ipv6, "vlanId": vlan.number(), "subnetCidr": eni.subnet_cidr.to_string(),
        "subnetV6Cidr": range, "associationID": association,
    }])
    .to_string()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::ec2::{Config, Instance};

    struct Stage {
        // Before what it works with.
        controller: ResourceController,
        api: KubeApi,
        ec2: Ec2,
        node: Instance,
    }

    fn stage(manners: Manners) -> Stage {
        let ec2 = Ec2::new(Config::default());
        let vpc = ec2.add_vpc(&["10.0.0.0/16".parse().unwrap()]);
        let subnet = ec2.add_subnet(&vpc, "10.0.16.0/20".parse().unwrap(), "eu-lab-1a").unwrap();
        let node = ec2.launch("m5.large", &subnet).unwrap();
        let api = KubeApi::serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        api.put_node("node", &json!({}), &json!({}), &json!({"allocatable": {"pods": "29"}}));
        let controller = api.resource_controller(&ec2, &[("node", node.id.clone())], manners).unwrap();
        Stage { controller, api, ec2, node }
    }

    impl Stage {
        /// Waits until something is there.
        fn come<T>(&self, of: impl Fn(&Self) -> Option<T>) -> T {
            let until = Instant::now() + Duration::from_secs(20);
            loop {
                if let Some(there) = of(self) {
                    return there;
                }
                assert!(Instant::now() < until, "EC2 refused {:?}", self.controller.refused());
                std::thread::sleep(ROUND);
            }
        }

        fn asks_for_trunk(&self) {
            self.api.put_cni_node("node", &json!([{"name": FEATURE, "value": ""}]));
        }

        fn told(&self, pod: &str) -> Value {
            let told = self.come(|stage| stage.api.pod_annotation(pod, POD_ENI));
            serde_json::from_str(&told).unwrap()
        }
    }

    #[test]
    fn a_pod_that_asks_is_told_the_branch_eni_that_ec2_has_and_it_goes_with_the_pod() {
        let stage = stage(Manners::default());
        stage.api.put_pod("plain", "u0", "node", &json!({}));
        stage.api.put_pod_with_branch("elsewhere", "u9", "another");
        stage.api.put_pod_with_branch("a", "u1", "node");
        stage.api.put_pod_with_branch("b", "u2", "node");
        stage.asks_for_trunk();

        let (first, second) = (stage.told("a"), stage.told("b"));

        let eni = stage.controller.branch_of("u1").unwrap();
        let trunk = stage.controller.trunk_of(&stage.node.id).unwrap();
        assert!(matches!(&eni.kind, EniKind::Branch { trunk: of, .. } if *of == trunk.id));
        assert_eq!((&first[0]["eniId"], &first[0]["vlanId"]), (&json!(eni.id.as_str()), &json!(1)));
        assert_eq!(first[0]["subnetCidr"], "10.0.16.0/20");
        assert_eq!(second[0]["vlanId"], 2);
        stage.come(|stage| stage.api.offered_branches("node").filter(|offered| offered == "9"));
        stage.api.delete_pod("a");
        stage.come(|stage| stage.ec2.eni(&eni.id).is_none().then_some(()));
        assert!(stage.controller.branch_of("u2").is_some());
        for other in ["plain", "elsewhere"] {
            assert_eq!(stage.api.pod_annotation(other, POD_ENI), None, "{other}");
        }
    }

    #[test]
    fn nothing_is_made_before_somebody_asks_while_it_is_told_not_to_and_while_the_api_server_is_away() {
        let idle = Manners { no_branch: true, ..Manners::default() };
        let stage = stage(idle);
        stage.api.put_pod_with_branch("a", "u1", "node");
        stage.asks_for_trunk();
        stage.come(|stage| stage.controller.trunk_of(&stage.node.id));
        assert_eq!(stage.api.pod_annotation("a", POD_ENI), None);

        stage.api.set_weather(ApiWeather::Away);
        stage.controller.set(Manners::default());
        std::thread::sleep(4 * ROUND);
        assert_eq!(stage.controller.branch_of("u1"), None);

        stage.api.set_weather(ApiWeather::Fair);
        assert_eq!(stage.told("a")[0]["vlanId"], 1);
    }

    #[test]
    fn a_trunk_waits_for_a_place_and_leaves_nothing_behind_meanwhile() {
        let stage = stage(Manners { no_trunk: true, ..Manners::default() });
        let subnet = &stage.node.subnet;
        let fill = |device| {
            let eni = stage.ec2.create_eni(&NewEni::plain(subnet.clone())).unwrap();
            stage.ec2.attach(&eni.id, &stage.node.id, NetworkCard(0), DeviceIndex(device)).unwrap();
            eni
        };
        let enis = [fill(1), fill(2)];
        stage.asks_for_trunk();
        stage.controller.set(Manners::default());
        stage.come(|stage| stage.controller.refused().first().cloned());
        stage.ec2.operator_detach(&enis[0].id).unwrap();

        let trunk = stage.come(|stage| stage.controller.trunk_of(&stage.node.id));

        assert_eq!(trunk.attachment.unwrap().device, DeviceIndex(1));
        let trunks = stage.ec2.enis().into_iter().filter(|eni| eni.kind == EniKind::Trunk).count();
        assert_eq!(trunks, 1, "those that found no place are deleted");
    }
}
