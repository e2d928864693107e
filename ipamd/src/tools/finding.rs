//! What the doctor says.

use std::fmt;

use serde::Serialize;

use super::words::plain;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets or pods suffer from it.
    Broken,
    /// It will, or it hides something.
    Warning,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal, $severity:ident;)*) => {
        /// The closed list of what the doctor finds, in the order in which it is mended: links before what leads to them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum Code {
            $($(#[doc = $doc])* #[serde(rename = $word)] $name,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its word.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// How bad it is.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }
        }
    };
}

codes! {
    /// The daemon does not answer.
    DaemonDown = "daemon-down", Broken;
    /// The daemon answers and cannot serve pods.
    DaemonNotReady = "daemon-not-ready", Broken;
    /// The daemon says that something is wrong with EC2, the kernel or itself.
    DaemonTrouble = "daemon-trouble", Warning;
    /// A pod waits for an address.
    PodWaits = "pod-waits", Warning;
    /// The node's clock and the daemon's or the state's are apart.
    ClockJumped = "clock-jumped", Warning;
    /// Lines of the state file do not check.
    StateDamaged = "state-damaged", Broken;
    /// A damaged state file was set aside.
    StateSetAside = "state-set-aside", Warning;
    /// There is no state file.
    StateMissing = "state-missing", Warning;
    /// The daemon serves, and has not written down what the host should hold.
    RecordMissing = "record-missing", Warning;
    /// Others than root may read or change files of the daemon.
    OpenPermissions = "open-permissions", Warning;
    /// DELs wait in the queue.
    DelsQueued = "dels-queued", Warning;
    /// Files in the delete queue are no DELs.
    QueueForeign = "queue-foreign", Warning;
    /// The conflist that the daemon has written is not there.
    ConflistMissing = "conflist-missing", Broken;
    /// The conflist is not what the daemon has written.
    ConflistDiffers = "conflist-differs", Broken;
    /// The runtime takes another network than ours.
    ConflistShadowed = "conflist-shadowed", Broken;
    /// The plugin on the node is not the image's, or is missing.
    PluginDiffers = "plugin-differs", Broken;
    /// A pod that holds an address has no host link.
    PodLinkMissing = "pod-link-missing", Broken;
    /// A pod's host link is down.
    PodLinkDown = "pod-link-down", Broken;
    /// A pod's host link has another MAC address or MTU than it was made with.
    PodLinkOff = "pod-link-off", Broken;
    /// The trunk ENI by which pods with a branch ENI are reached is not there.
    TrunkMissing = "trunk-missing", Broken;
    /// A pod's branch ENI has no link.
    BranchLinkMissing = "branch-link-missing", Broken;
    /// The link of a pod's branch ENI is down, or another's.
    BranchLinkOff = "branch-link-off", Broken;
    /// An ENI has no link.
    EniLinkMissing = "eni-link-missing", Broken;
    /// An ENI's link is down or has another MTU.
    EniLinkOff = "eni-link-off", Broken;
    /// A secondary ENI's own address is not on its link.
    EniAddressMissing = "eni-address-missing", Broken;
    /// A secondary ENI's link has an address that is not its own.
    EniAddressExtra = "eni-address-extra", Warning;
    /// A route of an ENI's table is missing.
    RouteMissing = "route-missing", Broken;
    /// A route that draws packets to a wrong ENI.
    RouteExtra = "route-extra", Broken;
    /// A pod's route is missing.
    PodRouteMissing = "pod-route-missing", Broken;
    /// An address is routed to a link of which nobody holds it.
    PodRouteExtra = "pod-route-extra", Warning;
    /// Somebody else has put a route into the pods' table.
    PodRouteForeign = "pod-route-foreign", Warning;
    /// A policy rule is missing.
    RuleMissing = "rule-missing", Broken;
    /// A policy rule of ours that should not be there, or twice.
    RuleExtra = "rule-extra", Warning;
    /// Somebody else's rule stands among ours.
    RuleForeign = "rule-foreign", Warning;
    /// A host link of a pod that holds no address.
    LinkWithoutOwner = "link-without-owner", Warning;
    /// The nftables table is not there.
    NftablesMissing = "nftables-missing", Broken;
    /// The nftables table is not as it should be.
    NftablesDiffers = "nftables-differs", Broken;
    /// The kernel does not forward.
    IpForwardOff = "ip-forward-off", Broken;
    /// The strict reverse path check drops replies to pods of that ENI.
    RpFilterStrict = "rp-filter-strict", Broken;
    /// Another kernel setting is not what it should be.
    SysctlDiffers = "sysctl-differs", Warning;
    /// Something of the Go version is left in the kernel.
    GoLeftover = "go-leftover", Warning;
    /// A pod holds an address that is of no ENI of ours.
    AddressUnplaced = "address-unplaced", Broken;
    /// An address is held for a pod that only the kernel knows.
    Placeholder = "placeholder", Warning;
    /// The state has a sandbox that the runtime does not know.
    SandboxUnknownToRuntime = "sandbox-unknown-to-runtime", Warning;
    /// The runtime has a sandbox that the state does not know.
    SandboxUnknownToState = "sandbox-unknown-to-state", Broken;
    /// The runtime was told another address than the state has.
    RuntimeDiffers = "runtime-differs", Broken;
    /// A pod's address is not on its ENI in EC2.
    AddressNotInEc2 = "address-not-in-ec2", Broken;
    /// EC2 lacks free addresses that the daemon believes to have.
    FreeNotInEc2 = "free-not-in-ec2", Warning;
    /// An ENI that the daemon uses is not attached to this instance.
    EniNotInEc2 = "eni-not-in-ec2", Broken;
    /// EC2 has an ENI of ours that the daemon does not know.
    EniUnknown = "eni-unknown", Warning;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind.
    pub code: Code,
    /// How bad.
    pub severity: Severity,
    /// What is wrong, in a sentence.
    pub what: String,
    /// What was seen where, a line each.
    pub evidence: Vec<String>,
    /// The command that mends it, where there is one.
    pub repair: Option<String>,
    /// What to do, where no command does it all.
    pub advice: Option<String>,
}

impl Finding {
    /// Without evidence, repair and advice.
    #[must_use]
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        let (what, severity) = (what.into(), code.severity());
        Self { code, severity, what, evidence: Vec::new(), repair: None, advice: None }
    }

    /// With one more line of evidence.
    #[must_use]
    pub fn seen(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }

    /// With the command that mends it.
    #[must_use]
    pub fn repair(mut self, command: impl Into<String>) -> Self {
        self.repair = Some(command.into());
        self
    }

    /// With what to do.
    #[must_use]
    pub fn advice(mut self, what: impl Into<String>) -> Self {
        self.advice = Some(what.into());
        self
    }
}

/// What came of a look at a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Verdict {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// What could not be looked at and should have been.
    pub failed: Vec<String>,
    /// What was not looked at.
    pub skipped: Vec<String>,
    /// What was compared, for the one who reads that nothing is wrong.
    pub compared: Vec<String>,
}

impl Verdict {
    /// 0 when all is well, 1 when something is wrong, 2 when that could not be told.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match (self.findings.is_empty(), self.failed.is_empty()) {
            (false, _) => 1,
            (true, false) => 2,
            (true, true) => 0,
        }
    }

    /// What both looks have: what comes and goes with pods that start and end is no finding.
    #[must_use]
    pub fn and_still(mut self, before: &Self) -> Self {
        let same = |a: &Finding, b: &Finding| a.code == b.code && a.what == b.what;
        self.findings.retain(|finding| before.findings.iter().any(|old| same(old, finding)));
        self
    }

    /// As text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        for Finding { code, severity, what, evidence, repair, advice } in &self.findings {
            let mark = if *severity == Severity::Broken { "BROKEN " } else { "warning" };
            say(&mut out, &format!("{mark}  {code}: {what}"));
            evidence.iter().for_each(|line| say(&mut out, &format!("           {line}")));
            repair.iter().for_each(|command| say(&mut out, &format!("         $ {command}")));
            advice.iter().for_each(|what| say(&mut out, &format!("         > {what}")));
        }
        if !self.findings.is_empty() {
            out.push('\n');
        }
        for line in &self.compared {
            say(&mut out, &format!("compared: {line}"));
        }
        for line in &self.skipped {
            say(&mut out, &format!("not looked at: {line}"));
        }
        for line in &self.failed {
            say(&mut out, &format!("COULD NOT LOOK: {line}"));
        }
        let broken = self.findings.iter().filter(|finding| finding.severity == Severity::Broken).count();
        let warnings = self.findings.len() - broken;
        let sum = match (self.findings.is_empty(), self.failed.is_empty()) {
            (true, true) => "nothing is wrong".to_owned(),
            (true, false) if self.compared.is_empty() => "nothing could be compared".to_owned(),
            (true, false) => "nothing that could be looked at is wrong".to_owned(),
            (false, _) => format!("{broken} broken, {warnings} warnings"),
        };
        say(&mut out, &sum);
        out
    }
}

fn say(out: &mut String, line: &str) {
    out.push_str(&plain(line).replace('\n', " "));
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_has_a_word_of_its_own() {
        let words: BTreeSet<&str> = Code::ALL.iter().map(|code| code.word()).collect();

        assert_eq!(words.len(), Code::ALL.len());
    }

    #[test]
    fn the_exit_code_tells_sound_from_ill_from_unknown() {
        let ill = Verdict { findings: vec![Finding::new(Code::DaemonDown, "x")], ..Verdict::default() };
        let unknown = Verdict { failed: vec!["x".to_owned()], ..Verdict::default() };

        assert_eq!(Verdict::default().exit_code(), 0);
        assert_eq!(ill.exit_code(), 1);
        assert_eq!(unknown.exit_code(), 2);
    }

    #[test]
    fn only_what_is_there_twice_is_told() {
        let of = |what: &str| Finding::new(Code::PodLinkMissing, what);
        let first = Verdict { findings: vec![of("a"), of("b")], ..Verdict::default() };
        let second = Verdict { findings: vec![of("b").seen("later"), of("c")], ..Verdict::default() };

        let told = second.and_still(&first);

        assert_eq!(told.findings.iter().map(|f| f.what.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn words_of_others_do_not_move_the_cursor() {
        let finding = Finding::new(Code::PodWaits, "pod \u{1b}[2J").seen("line\nline").advice("do\nit");
        let text = Verdict { findings: vec![finding], ..Verdict::default() }.render();

        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.contains("line line") && text.contains("> do it"), "{text}");
    }
}
