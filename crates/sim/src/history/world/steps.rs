//! The steps of a script: what the runtime, the cloud and bad luck do.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use node::cluster::News;
use node::{CallId, Event};
use types::{Reason, SandboxKey, VethPrefix};
use wire::{Attachment, Detachment, Failure, Kept, PROTOCOL, Request, Verb};

use super::super::cluster::Turn;
use super::super::script::Step;
use super::{Due, Held, NETWORK, PATIENCE, Pending, Phase, World, name, sandbox};
use ec2_double::EniView;

/// Where there are several network cards, one pod of so many wants an interface of each.
const WIDE: u32 = 3;

/// Steps of the script.
impl World {
    pub(super) fn take(&mut self, step: Step) -> Held {
        match step {
            Step::Start(pod) => self.start(pod),
            Step::Stop(pod) => self.stop(pod),
            Step::Flood(pods) => (0..=pods).for_each(|pod| self.start(pod)),
            Step::Ebb(pods) => (0..=pods).for_each(|pod| self.stop(pod)),
            Step::HangUp(pod) => self.hang_up(pod)?,
            Step::Vanish(pod) => {
                if matches!(self.pods.entry(pod).or_default().phase, Phase::Running) {
                    let sandbox = self.sandbox(pod);
                    self.live.remove(&sandbox);
                    self.at(Duration::ZERO, Due::NetnsGone(sandbox));
                }
            }
            Step::Gc => self.gc(),
            Step::Crash { down, jump, amnesia } => self.doom(down, jump, amnesia),
            Step::ChangeMode(down) => self.change_mode(down),
            Step::Ec2(fault, times) => self.cloud.faults.extend((0..times).map(|_| fault)),
            Step::Dark(long) => self.cloud.dark_until = self.now.plus(long),
            Step::Deny(long) => self.cloud.denied_until = self.now.plus(long),
            Step::Blind(long) => self.cloud.blind_until = self.now.plus(long),
            Step::Fill(left) => {
                let subnet = self.cloud.subnet().clone();
                let taken = self.cloud.model.occupy_all_but(&subnet, left);
                self.cloud.taken.extend(taken.unwrap_or_default());
            }
            Step::Fragment => {
                let subnet = self.cloud.subnet().clone();
                for block in 0..16_u8 {
                    let address = Ipv4Addr::new(10, 0, 0, block * 16 + 7);
                    if self.cloud.model.occupy(&subnet, &[address]).is_ok() {
                        self.cloud.taken.push(address);
                    }
                }
            }
            Step::Vacate => self.cloud.vacate(),
            Step::Exclude(number) => {
                self.cloud.excluded.extend(self.cloud.subnets.get(usize::from(number)).cloned());
            }
            Step::Admit => self.cloud.excluded.clear(),
            Step::Regroup => self.hear(Event::Stale)?,
            Step::Pull(number) => self.pull(number),
            Step::Rob(number) => self.rob(number),
            // Not with what pods have lost while the daemon knows nothing of before: see `crash`.
            Step::Attach(kind, device, addresses) => {
                let tells_tags = !self.script.setup.metadata;
                if tells_tags || self.memory.is_some() || self.robbed.is_empty() {
                    self.cloud.attach_foreign(kind, device, addresses, self.now);
                }
            }
            Step::Detach(number) => self.robbed.extend(self.cloud.detach_foreign(number)),
            Step::Config(turn) => self.configure(turn),
            Step::Stray(claimed_after) => self.cloud.forsake(claimed_after, self.now),
            Step::DiskFails(times) => self.disk.fails = times,
            Step::WiringFails(times) => self.wiring_fails = times,
            Step::HostFails(times) => self.host_fails = times,
            Step::Hold(what) => self.put_on(what)?,
        }
        self.cloud.advance(self.now);
        Ok(())
    }

    /// The API server tells the node object and then its ENIConfig; now and then late, and always in order.
    pub(super) fn tell_cluster(&mut self) {
        // One that is down asks when it starts.
        if self.node.is_none() {
            return;
        }
        let news = self.cluster.news();
        self.tell_news(news);
    }

    fn tell_news(&mut self, news: impl IntoIterator<Item = News>) {
        let pause = if self.rng.percent(20) { self.rng.millis(0, 60_000) } else { self.rng.millis(0, 500) };
        self.telling = self.telling.max(self.now.plus(pause));
        for news in news {
            self.telling = self.telling.plus(Duration::from_millis(5));
            self.hear_later(self.telling.since(self.now), Event::Cluster(news));
        }
    }

    /// A pod is bound to the node, or deleted; the API server may tell.
    fn bind(&mut self, pod: u32, bound: bool) {
        let news = self.cluster.pod(name(pod), bound);
        if let (Some(news), Some(_)) = (news, &self.node) {
            self.tell_news([news]);
        }
    }

    /// Something happens to the ENIConfig; without custom networking nobody asks for it.
    fn configure(&mut self, turn: Turn) {
        if self.script.setup.in_cluster {
            self.cluster.take(turn, &self.cloud.subnets, &mut self.cloud.met);
            self.tell_cluster();
        }
    }

    pub(super) fn sandbox(&self, pod: u32) -> SandboxKey {
        let incarnation = self.pods.get(&pod).map_or(0, |pod| pod.incarnation);
        sandbox(pod, incarnation)
    }

    /// Whether a pod wants an interface of each network card.
    pub(super) fn is_wide(&self, pod: u32) -> bool {
        self.script.setup.cards && pod.is_multiple_of(WIDE)
    }

    pub(super) fn start(&mut self, number: u32) {
        self.bind(number, true);
        let pod = self.pods.entry(number).or_default();
        pod.wanted = true;
        if !matches!(pod.phase, Phase::Absent) {
            return;
        }
        pod.incarnation += 1;
        let sandbox = self.sandbox(number);
        let verb = Verb::Add(Attachment {
            sandbox: sandbox.clone(),
            netns: String::new(),
            pod: name(number),
            pod_uid: String::new(),
            veth_prefix: VethPrefix::default(),
            mtu: 9001,
            multi_nic: self.is_wide(number),
        });
        // The plugin may be slow to start: that is how a DEL overtakes it.
        let slow = if self.rng.percent(5) { self.rng.millis(0, 4_000) } else { self.rng.millis(0, 5) };
        let call = self.send(verb, Some(sandbox), Some(number), slow);
        self.pods.entry(number).or_default().phase = Phase::Adding(call);
        self.at(slow + PATIENCE, Due::GiveUp(call));
    }

    pub(super) fn stop(&mut self, number: u32) {
        self.bind(number, false);
        let pod = self.pods.entry(number).or_default();
        pod.wanted = false;
        if matches!(pod.phase, Phase::Adding(_) | Phase::Running) {
            self.delete(number);
        }
    }

    pub(super) fn delete(&mut self, number: u32) {
        let sandbox = self.sandbox(number);
        // The runtime keeps the result of an ADD that has succeeded.
        let ends = self.live.remove(&sandbox).into_iter().flatten();
        let addresses = ends.map(|end| end.address.into()).collect();
        let (pod, veth_prefix) = (name(number), VethPrefix::default());
        let detachment = Detachment { sandbox: sandbox.clone(), pod, veth_prefix, addresses };
        let pause = self.rng.millis(0, 5);
        let call = self.send(Verb::Del(detachment), Some(sandbox), Some(number), pause);
        self.pods.entry(number).or_default().phase = Phase::Deleting(call);
    }

    pub(super) fn send(
        &mut self,
        verb: Verb,
        sandbox: Option<SandboxKey>,
        pod: Option<u32>,
        after: Duration,
    ) -> CallId {
        self.last_call += 1;
        let call = CallId(self.last_call);
        let patience_ms = u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX);
        let started_ns = self.now.0 * 1_000_000 + self.last_call % 1_000_000;
        let request = Request { version: PROTOCOL, patience_ms, started_ns, trace: None, verb };
        self.calls.insert(call, Pending { request, sandbox, pod, arrived: false });
        self.at(after, Due::Arrive(call));
        call
    }

    pub(super) fn hang_up(&mut self, number: u32) -> Held {
        let Some(Phase::Adding(call)) = self.pods.get(&number).map(|pod| &pod.phase) else { return Ok(()) };
        let call = *call;
        let arrived = self.calls.get(&call).is_some_and(|pending| pending.arrived);
        if arrived {
            self.hear(Event::Gone(call))?;
        }
        // The runtime cleans up after a plugin that it has killed.
        self.delete(number);
        Ok(())
    }

    pub(super) fn gc(&mut self) {
        let known = |pod: &&u32| {
            self.pods.get(pod).is_some_and(|pod| matches!(pod.phase, Phase::Running | Phase::Adding(_)))
        };
        let numbers: Vec<u32> = self.pods.keys().filter(known).copied().collect();
        let kept = numbers.into_iter().map(|number| self.sandbox(number));
        let valid = kept
            .map(|key| Kept {
                container_id: key.container_id().to_owned(),
                if_name: key.if_name().to_owned(),
            })
            .collect();
        self.send(Verb::Gc { network_name: NETWORK.to_owned(), valid }, None, None, Duration::ZERO);
    }

    pub(super) fn pull(&mut self, number: u32) {
        let enis: Vec<_> = self.cloud.model.enis_of(&self.cloud.instance.id).cloned().collect();
        let index = usize::try_from(number).unwrap_or(0);
        let ours = |eni: &&Arc<EniView>| {
            eni.id != self.cloud.instance.primary_eni && !self.cloud.is_foreign(&eni.id)
        };
        let Some(eni) = enis.get(index).filter(ours) else { return };
        self.robbed.extend(eni.sources());
        if self.cloud.model.pull(&eni.id).is_ok() {
            // It was attached a moment ago and is nobody's now.
            let _deleted = self.cloud.model.delete_eni(&eni.id);
        }
    }

    /// Now and then the IPv6 prefix goes.
    fn rob_ipv6(&mut self, number: u32) {
        let primary = self.cloud.instance.primary_eni.clone();
        let Ok(prefixes) = self.cloud.model.eni(&primary).map(|eni| eni.ipv6_prefixes.clone()) else {
            return;
        };
        if number.is_multiple_of(4) {
            // They are there.
            let _taken = self.cloud.model.unassign_ipv6(&primary, &prefixes);
            self.say(|| format!("{prefixes:?} are taken from {primary}"));
        }
    }

    pub(super) fn rob(&mut self, number: u32) {
        self.rob_ipv6(number);
        let enis = self.cloud.model.enis_of(&self.cloud.instance.id);
        let enis: Vec<_> = enis.filter(|eni| !self.cloud.is_closed(&eni.id)).cloned().collect();
        let mut index = usize::try_from(number).unwrap_or(0);
        for eni in enis {
            if let Some(address) = eni.secondary.get(index) {
                self.robbed.insert(*address);
                let _robbed = self.cloud.model.unassign(&eni.id, &[*address], &[]);
                return;
            }
            index = index.saturating_sub(eni.secondary.len());
            if let Some(prefix) = eni.prefixes.get(index) {
                self.robbed.extend(prefix.iter());
                let _robbed = self.cloud.model.unassign(&eni.id, &[], &[*prefix]);
                return;
            }
            index = index.saturating_sub(eni.prefixes.len());
        }
    }

    /// The network policy agent refuses some pods, and is late for others.
    pub(super) fn enforcing(&mut self, id: CallId, patience: Duration) {
        let refused = || Err(Failure::new(Reason::PolicyRefused, "the agent refuses"));
        let result = if self.rng.percent(10) { refused() } else { Ok(()) };
        let pause = if self.rng.percent(20) { patience } else { self.rng.millis(0, 200) };
        self.hear_later(pause, Event::Enforced { id, result });
    }
}
