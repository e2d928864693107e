//! An EC2 that is not of our making: moto, a mock of AWS from PyPI, in a node's namespace, with boto3 as the witness of what
//! it holds.
//!
//! The emulator of this kit and the daemon could share one mistake about EC2's API; moto and boto3 could not. It checks
//! every request's signature, and by IAM's rules whether the key may make that call. What it is too simple to judge:
//! limits, lag, attach delay, throttling, free addresses, `DeleteOnTermination`, client tokens, prefixes, conditions and
//! resources in policies. For these, see what was asked of it ([`Moto::requests`]), and test with the emulator. It answers
//! `AssignPrivateIpAddresses` with all addresses of the ENI, where EC2 tells the new ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use types::{DeviceIndex, EniId, Moment, NetworkCard};

use crate::LabError;
use crate::ec2::{AttachState, Attachment, EniKind, EniView, Instance, Tracking, VpcId};
use crate::fabric::Fabric;
use crate::imds::Facts;
use crate::netns::Netns;

/// Runs moto and makes the calls of boto3.
const SCRIPT: &str = include_str!("moto.py");
/// The virtual environment's interpreter, beside the directory of the build's programs.
const BESIDE: &str = "moto/bin/python";
/// How long it may take to come up, and to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The VPC's ranges and the subnet's, which are the fabric's.
const VPC_RANGES: [&str; 2] = ["10.0.0.0/16", "100.64.0.0/16"];
const SUBNET_RANGE: &str = "10.0.0.0/20";
/// An image that moto knows without being told.
const IMAGE: &str = "ami-12c6146b";

/// A running moto; ended when dropped.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    calls: ChildStdin,
    answers: Receiver<String>,
    log: PathBuf,
    endpoint: String,
    region: String,
    /// The ENIs whose links are in the instance.
    wired: BTreeMap<EniId, EniView>,
}

/// An access key.
#[derive(Debug, Clone)]
pub struct Key {
    /// The user who has it.
    pub user: String,
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

/// A request that moto got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The call.
    pub action: String,
    /// Its parameters as they were sent.
    pub form: BTreeMap<String, String>,
}

/// Why it cannot run here.
#[must_use]
pub fn missing() -> Option<String> {
    match python() {
        Some(_) => None,
        None => {
            Some(std::env::var("LAB_WITHOUT_MOTO").unwrap_or_else(|_unset| "moto is not set up".to_owned()))
        }
    }
}

/// The interpreter that has moto: named by `LAB_MOTO_PYTHON`, or in the build's directory.
fn python() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LAB_MOTO_PYTHON") {
        return Some(path.into());
    }
    let own = std::env::current_exe().ok()?;
    own.ancestors().skip(1).take(4).map(|directory| directory.join(BESIDE)).find(|path| path.exists())
}

impl Moto {
    /// Starts it on a free port of the namespace's loopback.
    ///
    /// # Errors
    /// When it is not there or does not come up.
    pub fn start(netns: &Netns) -> Result<Self, LabError> {
        let python = python().ok_or_else(|| LabError::Otherwise("moto is not set up".to_owned()))?;
        let home = PathBuf::from("/run/lab/moto");
        std::fs::create_dir_all(&home).map_err(LabError::doing("make a directory"))?;
        let log = home.join("log");
        let errors = File::create(&log).map_err(LabError::doing("make moto's log"))?;
        let mut command = Command::new(python);
        // Nothing of the caller's: a proxy, a profile or a region in the environment would change what boto3 does.
        command.args(["-c", SCRIPT]).env_clear().env("HOME", &home);
        command.env("INITIAL_NO_AUTH_ACTION_COUNT", "3").env("MOTO_RECORDER_FILEPATH", home.join("requests"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = netns.spawn(command).map_err(LabError::doing("start moto"))?;
        let (Some(calls), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(LabError::Otherwise("moto has no pipes".to_owned()));
        };
        let (lines, answers) = channel();
        // Ends with moto, whose output it reads.
        let _reader = std::thread::spawn(move || {
            let mut texts = BufReader::new(out).lines().map_while(Result::ok);
            texts.try_for_each(|line| lines.send(line))
        });
        let (endpoint, region, wired) = (String::new(), String::new(), BTreeMap::new());
        let mut this = Self { child, calls, answers, log, endpoint, region, wired };
        let up = this.answer("start")?;
        this.endpoint = text(&up["endpoint"])?;
        this.region = text(&up["region"])?;
        Ok(this)
    }

    /// The URL of its EC2, inside the namespace.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Makes a call to EC2 with boto3, by boto3's names.
    ///
    /// # Errors
    /// When moto refuses it.
    pub fn ec2(&mut self, operation: &str, arguments: Value) -> Result<Value, LabError> {
        self.call("ec2", operation, arguments)
    }

    /// Makes a call to CloudWatch with boto3, by boto3's names.
    ///
    /// # Errors
    /// When moto refuses it.
    pub fn cloudwatch(&mut self, operation: &str, arguments: Value) -> Result<Value, LabError> {
        self.call("cloudwatch", operation, arguments)
    }

    /// Makes a user who may do what the policy allows; gives the key.
    ///
    /// # Errors
    /// When moto refuses the policy.
    pub fn key(&mut self, user: &str, policy: &str) -> Result<Key, LabError> {
        self.call("iam", "create_user", json!({"UserName": user}))?;
        let made = self.call("iam", "create_access_key", json!({"UserName": user}))?;
        let made = &made["AccessKey"];
        let key = Key {
            user: user.to_owned(),
            id: text(&made["AccessKeyId"])?,
            secret: text(&made["SecretAccessKey"])?,
        };
        self.allow(&key, policy)?;
        Ok(key)
    }

    /// Replaces what the key's user may do.
    ///
    /// # Errors
    /// When moto refuses the policy.
    pub fn allow(&mut self, key: &Key, policy: &str) -> Result<(), LabError> {
        let arguments = json!({"UserName": key.user, "PolicyName": "node", "PolicyDocument": policy});
        self.call("iam", "put_user_policy", arguments).map(drop)
    }

    /// Makes a VPC with a subnet and a security group, and launches an instance there.
    ///
    /// # Errors
    /// When moto refuses.
    pub fn launch(&mut self, instance_type: &str) -> Result<Facts, LabError> {
        let [first, second] = VPC_RANGES;
        let vpc = text(&self.ec2("create_vpc", json!({"CidrBlock": first}))?["Vpc"]["VpcId"])?;
        self.ec2("associate_vpc_cidr_block", json!({"VpcId": vpc, "CidrBlock": second}))?;
        let subnet = self.ec2("create_subnet", json!({"VpcId": vpc, "CidrBlock": SUBNET_RANGE}))?;
        let group = json!({"GroupName": "nodes", "Description": "Nodes.", "VpcId": vpc});
        let group = self.ec2("create_security_group", group)?;
        let instances = json!({
            "ImageId": IMAGE, "MinCount": 1, "MaxCount": 1, "InstanceType": instance_type,
            "SubnetId": subnet["Subnet"]["SubnetId"], "SecurityGroupIds": [group["GroupId"]],
        });
        let told = self.ec2("run_instances", instances)?;
        let told = &told["Instances"][0];
        let id = parsed(&told["InstanceId"])?;
        let enis = self.enis_of(&text(&told["InstanceId"])?)?;
        let primary = enis.first().ok_or_else(|| LabError::Otherwise("no primary ENI".to_owned()))?;
        let instance = Instance {
            id,
            instance_type: instance_type.to_owned(),
            subnet: primary.subnet.clone(),
            vpc: primary.vpc.clone(),
            zone: primary.zone.clone(),
            primary_eni: primary.id.clone(),
            mac: primary.mac,
            address: primary.primary,
            launched: Moment(0),
            running: true,
            tags: BTreeMap::new(),
        };
        self.wired = enis.iter().map(|eni| (eni.id.clone(), eni.clone())).collect();
        let ranges = BTreeMap::from([(VpcId(vpc), vec![parse(first)?, parse(second)?])]);
        Ok(Facts { region: self.region.clone(), instance, cards: 1, enis, ranges })
    }

    /// The ENIs that are attached to an instance, by device.
    ///
    /// # Errors
    /// When moto does not tell, or tells what cannot be.
    pub fn enis_of(&mut self, instance: &str) -> Result<Vec<EniView>, LabError> {
        let filters = json!({"Filters": [{"Name": "attachment.instance-id", "Values": [instance]}]});
        let told = self.ec2("describe_network_interfaces", filters)?;
        let mut enis = items(&told["NetworkInterfaces"]).iter().map(view).collect::<Result<Vec<_>, _>>()?;
        enis.sort_by_key(|eni| eni.attachment.as_ref().map(|at| at.device));
        Ok(enis)
    }

    /// Brings links and addresses of the instance's ENIs in line with what moto has: a mock has none.
    ///
    /// # Errors
    /// When moto does not tell, or the kernel refuses.
    pub fn wire(&mut self, fabric: &Fabric, instance: &Instance) -> Result<Vec<EniView>, LabError> {
        let enis = self.enis_of(instance.id.as_str())?;
        let wiring = fabric.wiring();
        self.wired.retain(|id, old| {
            let stays = enis.iter().any(|eni| eni.id == *id);
            if !stays {
                wiring.detached(&instance.id, old);
            }
            stays
        });
        for eni in &enis {
            match self.wired.insert(eni.id.clone(), eni.clone()) {
                None => wiring.attached(&instance.id, eni),
                Some(old) if old.sources() != eni.sources() => wiring.addresses_changed(eni),
                Some(_) => {}
            }
        }
        fabric.troubles()?;
        Ok(enis)
    }

    /// The requests that were signed with a key, in their order.
    ///
    /// # Errors
    /// When moto does not tell.
    pub fn requests(&mut self, key: &Key) -> Result<Vec<Asked>, LabError> {
        let all = self.call("lab", "requests", Value::Null)?;
        let ours = items(&all).iter().filter(|request| request["key"] == key.id.as_str());
        ours.map(|request| {
            let form: BTreeMap<String, String> = serde_json::from_value(request["form"].clone())
                .map_err(|error| LabError::Otherwise(format!("{request}: {error}")))?;
            Ok(Asked { action: form.get("Action").cloned().unwrap_or_default(), form })
        })
        .collect()
    }

    fn call(&mut self, service: &str, operation: &str, arguments: Value) -> Result<Value, LabError> {
        let call = json!({"service": service, "operation": operation, "arguments": arguments});
        writeln!(self.calls, "{call}").map_err(LabError::doing("ask moto"))?;
        let answer = self.answer(operation)?;
        match answer.get("error") {
            Some(error) => Err(LabError::Otherwise(format!("moto, {operation}: {error}"))),
            None => Ok(answer),
        }
    }

    fn answer(&self, what: &str) -> Result<Value, LabError> {
        let line = self.answers.recv_timeout(PATIENCE).map_err(|error| {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(15)..].join("\n");
            LabError::Otherwise(format!("moto, {what}: {error}\n{end}"))
        })?;
        serde_json::from_str(&line).map_err(|error| LabError::Otherwise(format!("moto says {line}: {error}")))
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// An ENI as boto3 tells it.
fn view(told: &Value) -> Result<EniView, LabError> {
    let mut secondary = Vec::new();
    for address in items(&told["PrivateIpAddresses"]).iter().filter(|address| address["Primary"] == false) {
        secondary.push(parsed(&address["PrivateIpAddress"])?);
    }
    let groups = items(&told["Groups"]).iter().map(|group| parsed(&group["GroupId"]));
    let tags = items(&told["TagSet"]).iter().map(|tag| Ok((text(&tag["Key"])?, text(&tag["Value"])?)));
    Ok(EniView {
        kind: EniKind::Interface,
        ipv6: None,
        ipv6_prefixes: Vec::new(),
        id: parsed(&told["NetworkInterfaceId"])?,
        mac: parsed(&told["MacAddress"])?,
        subnet: parsed(&told["SubnetId"])?,
        subnet_cidr: parse(SUBNET_RANGE)?,
        vpc: VpcId(text(&told["VpcId"])?),
        zone: text(&told["AvailabilityZone"])?,
        primary: parsed(&told["PrivateIpAddress"])?,
        secondary,
        prefixes: Vec::new(),
        description: text(&told["Description"])?,
        groups: groups.collect::<Result<_, _>>()?,
        // moto knows nothing of them.
        tracking: Tracking::default(),
        tags: tags.collect::<Result<_, LabError>>()?,
        attachment: told.get("Attachment").map(attachment).transpose()?,
    })
}

fn attachment(told: &Value) -> Result<Attachment, LabError> {
    Ok(Attachment {
        id: text(&told["AttachmentId"])?,
        instance: parsed(&told["InstanceId"])?,
        device: DeviceIndex(small(&told["DeviceIndex"])?),
        card: NetworkCard(small(&told["NetworkCardIndex"])?),
        state: AttachState::Attached,
        delete_on_termination: told["DeleteOnTermination"] == true,
        since: Moment(0),
    })
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> Result<String, LabError> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| LabError::Otherwise(format!("moto: {value} is no text")))
}

fn small(value: &Value) -> Result<u8, LabError> {
    let small = value.as_u64().and_then(|number| u8::try_from(number).ok());
    small.ok_or_else(|| LabError::Otherwise(format!("moto: {value} is no small number")))
}

fn parsed<T: FromStr>(value: &Value) -> Result<T, LabError> {
    parse(&text(value)?)
}

fn parse<T: FromStr>(text: &str) -> Result<T, LabError> {
    text.parse().ok().ok_or_else(|| LabError::Otherwise(format!("moto: {text:?} cannot be")))
}
