//! Source NAT, steering marks and connection marks: one nftables table of ours, changed in place.
//!
//! A [`NatSpec`] becomes a [`Ruleset`], which is data; what of it the kernel does not hold becomes one nf_tables
//! transaction over netlink. No program is executed. Only sets and maps grow, never lists of rules.
//!
//! ```text
//!   prerouting -150  (NAT) node port: to an address of the primary ENI              ct mark |= connmark
//!   prerouting  -95  a new connection to an address that means something on this node only: dropped
//!   prerouting  -95  packets from pods (after kube-proxy's DNAT at -100)
//!                      mark := the ENI of the source address, a map lookup
//!                      new and leaving the VPC:                                     ct mark |= connmark
//!                      ct mark has connmark:                                        mark |= connmark
//!   postrouting 110  leaving the VPC:                                               source := the node's address
//! ```
//!
//! Where pods with IPv4 addresses of the VPC reach IPv6 by the node's address, there is a second table, of family `ip6` (`egress`).
//!
//! `leftovers` knows what the Go version left, `legacy` where it is left alone. `ruleset` says what the table holds, `observe` and `decode` read what the kernel holds, `transaction`, `expression`
//! and `encode` make bytes of the difference, `socket` sends them.

mod constants;
mod decode;
mod egress;
mod encode;
mod expression;
mod intervals;
mod leftovers;
mod legacy;
mod notice;
mod observe;
mod ruleset;
mod socket;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

pub use egress::{EgressSpec, egress_ruleset};
pub(crate) use notice::touches_ours;
pub use ruleset::{Ruleset, ruleset};

use crate::model::Family;
use observe::{Expressions, Table, observe};
use socket::Socket;
use transaction::plan;

/// Name of our tables, in the families `ip` and `ip6`.
pub const TABLE: &str = "aws-vpc-cni";

/// How the source port of a translated connection is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnatPorts {
    /// At random (`--random-fully`).
    Prng,
    /// By a hash (`--random`).
    HashRandom,
    /// The pod's own, where it is free.
    Plain,
}

/// What the table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatSpec {
    /// First characters of host veths: those of live pods may have been named under another setting. None would make all packets those
    /// of others.
    pub pod_if_prefixes: BTreeSet<String>,
    /// The primary ENI's link.
    pub primary_if: String,
    /// The node's own address.
    pub primary_address: Ipv4Addr,
    /// Destinations that keep the pod's address: the VPC's CIDRs and exclusions.
    pub no_snat: BTreeSet<Ipv4Network>,
    /// Addresses that nobody but their pod may begin a connection with: they mean something on this node only.
    pub local: Option<Ipv4Network>,
    /// How ports are chosen; `None` when source NAT is done elsewhere.
    pub snat: Option<SnatPorts>,
    /// The connection mark, value and mask at once.
    pub connmark: u32,
    /// Whether connections to node ports are bound to the primary ENI.
    pub node_port: bool,
    /// Our bits of the packet mark that say by which ENI a packet leaves.
    pub steering_mask: u32,
    /// Which mark packets from an address (or prefix) get; of nested ones the most specific decides.
    pub sources: BTreeMap<Ipv4Network, u32>,
}

/// Why the table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetfilterError {
    /// The netlink socket could not be opened.
    #[error("cannot open a netfilter netlink socket")]
    Open(#[source] io::Error),
    /// The netlink socket failed.
    #[error("the netfilter netlink socket fails")]
    Socket(#[source] io::Error),
    /// The kernel refused one step, and with it the whole transaction.
    #[error("the kernel refuses to {step}")]
    Refused {
        /// Which step, and the kernel's own words about it if it has any.
        step: String,
        /// Its errno.
        #[source]
        errno: io::Error,
    },
    /// The kernel neither acknowledged nor refused, or did not tell all that was asked for.
    #[error("the kernel does not answer an nf_tables request")]
    Silent,
    /// An answer was longer than any is.
    #[error("the kernel's answer to an nf_tables request is cut")]
    Cut,
    /// The nftables of this host changed during every attempt to read them.
    #[error("nftables change faster than they can be read")]
    Restless,
}

/// Our tables in the kernel, in the network namespace of the thread that first uses this.
#[derive(Debug, Default)]
pub struct Netfilter {
    socket: Option<Socket>,
    /// What the rules that we have written say, as the kernel told it right after.
    written: BTreeMap<Family, Expressions>,
}

impl Netfilter {
    /// Brings the table of the ruleset's family in line: changes what differs and nothing else, so that packets never meet a table without
    /// what stays. Returns the steps that were made, in words; none when it was in line.
    ///
    /// Rules that we have not written ourselves are written anew, once: their comments say what they were meant to be, and nobody knows
    /// what happened to them since.
    ///
    /// # Errors
    /// When the socket fails or the kernel refuses; a table that was there is then as it was, or as wanted under another name, one
    /// that was not may lack its chains until the next call.
    pub fn put(&mut self, ruleset: Ruleset) -> Result<Vec<String>, NetfilterError> {
        let (family, wanted) = (ruleset.family, Table::from(&ruleset));
        let seen = self.seen(family, true)?;
        let transactions = plan(seen.as_ref(), &wanted, &ruleset);
        if transactions.is_empty() {
            return Ok(Vec::new());
        }
        let mut steps = Vec::new();
        for transaction in transactions {
            steps.extend(self.socket()?.commit(transaction)?);
        }
        let told = observe(self.socket()?, family)?.map(|(_, expressions)| expressions);
        let stays = |chain: &String| seen.as_ref().is_some_and(|seen| seen.keeps(chain, &wanted));
        let written = self.written.entry(family).or_default();
        written.retain(|chain, _| stays(chain));
        for (chain, rules) in told.unwrap_or_default() {
            written.entry(chain).or_insert(rules);
        }
        Ok(condensed(&steps))
    }

    /// The table of a family in the kernel; `strangers` as in [`Table::doubt`].
    fn seen(&mut self, family: Family, strangers: bool) -> Result<Option<Table>, NetfilterError> {
        let Some((mut table, told)) = observe(self.socket()?, family)? else { return Ok(None) };
        let nothing = Expressions::new();
        table.doubt(&told, self.written.get(&family).unwrap_or(&nothing), strangers);
        Ok(Some(table))
    }

    /// What it would take to make the table what was written, each step in words; none when it is, by its chains, its
    /// elements, and its rules' comments, and what those rules say that this process has written. Changes nothing.
    ///
    /// # Errors
    /// When the socket fails or the kernel refuses to tell.
    pub fn differences(&mut self, ruleset: &Ruleset) -> Result<Vec<String>, NetfilterError> {
        let transactions = plan(self.seen(ruleset.family, false)?.as_ref(), &Table::from(ruleset), ruleset);
        Ok(transactions.into_iter().flat_map(|transaction| transaction.finish().1).collect())
    }

    /// The IPv4 table in words; `None` when there is none.
    ///
    /// # Errors
    /// When the socket fails or the kernel refuses to tell.
    pub fn told(&mut self) -> Result<Option<String>, NetfilterError> {
        Ok(observe(self.socket()?, Family::V4)?.map(|(table, _)| table.to_string()))
    }

    /// Whether there is a table of a family.
    ///
    /// # Errors
    /// When the socket fails or the kernel refuses to tell.
    pub fn is_there(&mut self, family: Family) -> Result<bool, NetfilterError> {
        Ok(observe(self.socket()?, family)?.is_some())
    }

    /// The chains of all IPv4 tables, others' too: table and name.
    ///
    /// # Errors
    /// When the socket fails or the kernel refuses to tell.
    pub fn chains(&mut self) -> Result<BTreeSet<(String, String)>, NetfilterError> {
        observe::all_chains(self.socket()?)
    }

    /// Whether the table is there as it was written, by what [`Netfilter::differences`] looks at.
    ///
    /// # Errors
    /// When the socket fails or the kernel refuses to tell.
    pub fn matches(&mut self, ruleset: &Ruleset) -> Result<bool, NetfilterError> {
        Ok(self.differences(ruleset)?.is_empty())
    }

    /// Removes the table of a family. Returns whether there was one.
    ///
    /// # Errors
    /// As for [`Netfilter::put`].
    pub fn remove(&mut self, family: Family) -> Result<bool, NetfilterError> {
        let socket = self.socket()?;
        let there = observe(socket, family)?.is_some();
        if there {
            socket.commit(transaction::removal(family, TABLE))?;
        }
        Ok(there)
    }

    /// Removes what the Go version has left in nftables, one transaction for each family. Call it once all of ours is in place. For
    /// families in `guarded` its rule stays that keeps others from pods' local addresses. Returns what was removed, in words.
    ///
    /// # Errors
    /// As for [`Netfilter::put`]; nothing of that family is removed then.
    pub fn take_over(&mut self, guarded: &BTreeSet<Family>) -> Result<Vec<String>, NetfilterError> {
        let mut removed = Vec::new();
        for family in Family::ALL {
            removed.extend(leftovers::remove(self.socket()?, family, guarded.contains(&family))?);
        }
        Ok(removed)
    }

    /// The tables of `iptables-legacy` in this thread's network namespace in which something of the Go version's is: what
    /// [`Netfilter::take_over`] leaves.
    ///
    /// # Errors
    /// When the kernel does not tell: it asks for `CAP_NET_ADMIN` where there are such tables.
    pub fn legacy_leftovers() -> io::Result<BTreeSet<String>> {
        legacy::its_tables()
    }

    /// The port of its socket, which is opened for that: notices of our own changes carry it.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn port(&mut self) -> Result<u32, NetfilterError> {
        self.socket()?.port().map_err(NetfilterError::Socket)
    }

    fn socket(&mut self) -> Result<&mut Socket, NetfilterError> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            none => Ok(none.insert(Socket::open().map_err(NetfilterError::Open)?)),
        }
    }
}

/// Steps of which several alike that follow each other are told as one.
fn condensed(steps: &[String]) -> Vec<String> {
    let runs = steps.chunk_by(|one, next| one == next);
    let told = |run: &[String]| match run {
        [] => None,
        [step] => Some(step.clone()),
        [step, ..] => Some(format!("{step} ({} times)", run.len())),
    };
    runs.filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_alike_are_told_once_with_their_number() {
        let steps = ["add chain a", "add a rule", "add a rule", "add chain b", "add a rule"];

        let told = condensed(&steps.map(str::to_owned));

        assert_eq!(told, ["add chain a", "add a rule (2 times)", "add chain b", "add a rule"]);
    }

    pub(super) fn spec() -> NatSpec {
        NatSpec {
            pod_if_prefixes: ["eni".to_owned()].into(),
            primary_if: "ens5".to_owned(),
            primary_address: Ipv4Addr::new(10, 0, 0, 10),
            no_snat: BTreeSet::from(["10.0.0.0/16".parse().unwrap()]),
            local: None,
            snat: Some(SnatPorts::Prng),
            connmark: 0x80,
            node_port: true,
            steering_mask: 0x3f00,
            sources: BTreeMap::from([
                ("10.0.0.20".parse().unwrap(), 0x100),
                ("10.0.1.0/28".parse().unwrap(), 0x200),
            ]),
        }
    }
}
