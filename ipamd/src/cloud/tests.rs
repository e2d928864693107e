//! Both services played by a small server on loopback: what is asked of it is compared, what it answers is canned.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};

use pool::{Given, Wanted};

use super::*;
use crate::config::Config;

/// An ENI as EC2 describes one.
const ENI: &str = "<networkInterfaceId>eni-1</networkInterfaceId><subnetId>subnet-1</subnetId>\
    <macAddress>02:00:00:00:00:01</macAddress><privateIpAddress>10.0.0.4</privateIpAddress>\
    <interfaceType>interface</interfaceType>\
    <groupSet><item><groupId>sg-1</groupId></item></groupSet>\
    <connectionTrackingConfiguration><tcpEstablishedTimeout>3600</tcpEstablishedTimeout></connectionTrackingConfiguration>\
    <tagSet><item><key>a</key><value>b</value></item></tagSet>\
    <attachment><attachmentId>eni-attach-1</attachmentId><deviceIndex>1</deviceIndex>\
    <networkCardIndex>0</networkCardIndex><status>attached</status>\
    <deleteOnTermination>false</deleteOnTermination></attachment>\
    <privateIpAddressesSet><item><privateIpAddress>10.0.0.4</privateIpAddress><primary>true</primary></item>\
    <item><privateIpAddress>10.0.0.5</privateIpAddress><primary>false</primary></item></privateIpAddressesSet>";

#[derive(Default)]
struct Played {
    /// Requests as `METHOD path body`.
    asked: Mutex<Vec<String>>,
    /// Answers to EC2 calls, in order.
    answers: Mutex<VecDeque<(u16, String)>>,
    /// What the metadata service holds.
    metadata: BTreeMap<&'static str, &'static str>,
}

struct Stage {
    played: Arc<Played>,
    config: Config,
}

impl Stage {
    async fn with(answers: &[(u16, String)], metadata: &[(&'static str, &'static str)]) -> Self {
        let played = Arc::new(Played {
            answers: Mutex::new(answers.iter().cloned().collect()),
            metadata: metadata.iter().copied().collect(),
            ..Played::default()
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&played));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut config = Config::parse(&BTreeMap::new()).unwrap();
        config.ec2_endpoint = Some(url.clone());
        config.imds_endpoint = Some(url);
        Self { played, config }
    }

    async fn answering(call: &str, body: &str) -> Self {
        Self::with(&[(200, format!("<{call}Response>{body}</{call}Response>"))], &[]).await
    }

    async fn refusing(code: &str) -> Self {
        let body = format!(
            "<Response><Errors><Error><Code>{code}</Code><Message>no</Message></Error></Errors></Response>"
        );
        Self::with(&[(400, body)], &[]).await
    }

    async fn ec2(&self) -> Ec2 {
        let credentials = aws_credential_types::Credentials::new("lab", "lab", None, None, "lab");
        Ec2::with_credentials(&self.config, "eu-lab-1", Some(credentials)).await
    }

    /// Whether the only request has all these parts.
    fn asked(&self, parts: &[&str]) {
        let asked = self.played.asked.lock().unwrap();
        assert_eq!(asked.len(), 1, "{asked:?}");
        for part in parts {
            assert!(asked[0].contains(part), "{part} is not in {}", asked[0]);
        }
    }
}

async fn answer(
    State(played): State<Arc<Played>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    let (status, body) = play(&played, &method, &uri, &headers, body);
    (status, [("x-aws-ec2-metadata-token-ttl-seconds", "21600")], body)
}

fn play(
    played: &Played,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: String,
) -> (StatusCode, String) {
    let path = uri.path();
    if path == "/latest/api/token" {
        return (StatusCode::OK, "token".to_owned());
    }
    if let Some(path) = path.strip_prefix("/latest/meta-data/") {
        assert!(headers.contains_key("x-aws-ec2-metadata-token"));
        let text = played.metadata.get(path.trim_end_matches('/'));
        return text
            .map_or((StatusCode::NOT_FOUND, String::new()), |text| (StatusCode::OK, (*text).to_owned()));
    }
    assert!(headers.contains_key("authorization"));
    played.asked.lock().unwrap().push(format!("{method} {path} {body}"));
    let (status, body) = played.answers.lock().unwrap().pop_front().unwrap_or((500, String::new()));
    (StatusCode::from_u16(status).unwrap(), body)
}

fn eni() -> EniId {
    "eni-1".parse().unwrap()
}

fn instance() -> InstanceId {
    "i-1".parse().unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T, CloudError>) -> CloudErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn an_inventory_is_what_ec2_describes() {
    let efa = ENI.replace(">interface<", ">efa-only<").replace("eni-1<", "eni-2<");
    let efa = efa.replace("Index>1<", "Index>2<");
    let leaving = ENI.replace(">attached<", ">detaching<").replace("eni-1<", "eni-3<");
    let leaving = leaving.replace("deviceIndex>1<", "deviceIndex>3<");
    let only_ipv6 =
        ENI.replace("<privateIpAddress>10.0.0.4</privateIpAddress><interfaceType>", "<interfaceType>");
    let only_ipv6 = only_ipv6.replace("deviceIndex>1<", "deviceIndex>4<");
    let items: String = [ENI, &efa, &leaving, &only_ipv6].map(|eni| format!("<item>{eni}</item>")).concat();
    let items = format!("<networkInterfaceSet>{items}</networkInterfaceSet>");
    let stage = Stage::answering("DescribeNetworkInterfaces", &items).await;

    let found = stage.ec2().await.inventory(&instance()).await.unwrap();

    stage.asked(&[
        "Action=DescribeNetworkInterfaces",
        "Filter.1.Name=attachment.instance-id",
        "Filter.1.Value.1=i-1",
    ]);
    let expected = EniRecord {
        ipv6_prefixes: BTreeSet::new(),
        id: eni(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        card: NetworkCard(0),
        device: DeviceIndex(1),
        subnet: "subnet-1".parse().unwrap(),
        primary_address: Ipv4Addr::new(10, 0, 0, 4),
        addresses: [Ipv4Addr::new(10, 0, 0, 5)].into(),
        prefixes: BTreeSet::new(),
        interface_type: "interface".to_owned(),
        tags: Some([("a".to_owned(), "b".to_owned())].into()),
        attachment: Some("eni-attach-1".to_owned()),
        delete_on_termination: Some(false),
        tracking: ConnectionTracking { tcp_established: Some(3600), ..ConnectionTracking::default() },
        security_groups: vec!["sg-1".parse().unwrap()],
    };
    let occupied = [2, 3, 4].map(|device| (NetworkCard(0), DeviceIndex(device)));
    let efa_only = [NetworkCard(0)].into();
    assert_eq!(
        found,
        Inventory { enis: vec![expected], occupied: occupied.into(), efa_only, in_motion: true }
    );
}

#[tokio::test]
async fn enis_attached_to_nothing_are_found_by_their_tag() {
    let items = format!("<networkInterfaceSet><item>{ENI}</item></networkInterfaceSet>");
    let stage = Stage::answering("DescribeNetworkInterfaces", &items).await;

    let found = stage.ec2().await.loose("vpc-1", "node.k8s.amazonaws.com/instance_id").await.unwrap();

    stage.asked(&[
        "Filter.1.Name=tag-key",
        "Filter.1.Value.1=node.k8s.amazonaws.com%2Finstance_id",
        "Filter.2.Name=status",
        "Filter.2.Value.1=available",
        "Filter.3.Name=vpc-id",
        "Filter.3.Value.1=vpc-1",
    ]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, eni());
}

#[tokio::test]
async fn subnets_are_told_with_what_is_free_in_them() {
    let good = "<subnetSet><item><subnetId>subnet-1</subnetId><cidrBlock>10.0.0.0/24</cidrBlock>\
        <availableIpAddressCount>7</availableIpAddressCount>\
        <tagSet><item><key>kubernetes.io/role/cni</key><value>1</value></item></tagSet></item></subnetSet>";
    let stage = Stage::answering("DescribeSubnets", good).await;

    let found = stage.ec2().await.subnets("vpc-1", "eu-lab-1a").await.unwrap();

    stage.asked(&["Filter.1.Name=vpc-id", "Filter.2.Name=availability-zone", "Filter.2.Value.1=eu-lab-1a"]);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].cidr, found[0].available), ("10.0.0.0/24".parse().unwrap(), 7));
    assert_eq!(found[0].tags["kubernetes.io/role/cni"], "1");

    let stage = Stage::answering("DescribeSubnets", &good.replace(">7<", ">-7<")).await;
    let error = stage.ec2().await.subnets("vpc-1", "eu-lab-1a").await.unwrap_err();
    assert_eq!(error.kind(), CloudErrorKind::Garbage);
}

#[tokio::test]
async fn an_eni_that_cannot_be_is_garbage_to_a_reader_and_unclear_after_a_change() {
    for (good, bad) in [
        ("eni-1<", "../../etc<"),
        ("02:00:00:00:00:01", "02"),
        ("<privateIpAddress>10.0.0.5", "<privateIpAddress>10.0.0.555"),
        ("<deviceIndex>1", "<deviceIndex>-7"),
        ("<subnetId>subnet-1</subnetId>", ""),
    ] {
        let body =
            format!("<networkInterfaceSet><item>{}</item></networkInterfaceSet>", ENI.replace(good, bad));
        let stage = Stage::answering("DescribeNetworkInterfaces", &body).await;

        assert_eq!(kind(stage.ec2().await.inventory(&instance()).await), CloudErrorKind::Garbage, "{bad}");
    }
    let stage = Stage::answering("AttachNetworkInterface", "").await;
    let attached = stage.ec2().await.attach(&eni(), &instance(), DeviceIndex(1), NetworkCard(0)).await;
    assert_eq!(kind(attached), CloudErrorKind::Unclear);
}

#[tokio::test]
async fn an_eni_is_made_with_its_addresses_and_tags_in_one_call() {
    let stage =
        Stage::answering("CreateNetworkInterface", &format!("<networkInterface>{ENI}</networkInterface>"))
            .await;
    let want = NewEni {
        subnet: "subnet-1".parse().unwrap(),
        security_groups: vec!["sg-1".parse().unwrap()],
        tracking: ConnectionTracking { udp: Some(40), ..ConnectionTracking::default() },
        description: "d".to_owned(),
        tags: [("a".to_owned(), "b".to_owned())].into(),
        wanted: Wanted::Addresses(9),
        token: "t".to_owned(),
    };

    let made = stage.ec2().await.create_eni(&want).await.unwrap();

    assert_eq!(made.id, eni());
    stage.asked(&[
        "Action=CreateNetworkInterface",
        "SubnetId=subnet-1",
        "ConnectionTrackingSpecification.UdpTimeout=40",
        "SecurityGroupId.1=sg-1",
        "SecondaryPrivateIpAddressCount=9",
        "ClientToken=t",
        "TagSpecification.1.ResourceType=network-interface",
        "TagSpecification.1.Tag.1.Key=a",
        "TagSpecification.1.Tag.1.Value=b",
    ]);
}

#[tokio::test]
async fn changes_ask_for_what_they_say() {
    let stage = Stage::answering("AttachNetworkInterface", "<attachmentId>eni-attach-1</attachmentId>").await;
    let attached =
        stage.ec2().await.attach(&eni(), &instance(), DeviceIndex(2), NetworkCard(1)).await.unwrap();
    assert_eq!(attached, "eni-attach-1");
    stage.asked(&["NetworkInterfaceId=eni-1", "InstanceId=i-1", "DeviceIndex=2", "NetworkCardIndex=1"]);

    let stage = Stage::answering("ModifyNetworkInterfaceAttribute", "").await;
    stage.ec2().await.set_delete_on_termination(&eni(), "eni-attach-1").await.unwrap();
    stage.asked(&["Attachment.AttachmentId=eni-attach-1", "Attachment.DeleteOnTermination=true"]);

    let given = "<assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.0.6</privateIpAddress></item>\
        </assignedPrivateIpAddressesSet>";
    let stage = Stage::answering("AssignPrivateIpAddresses", given).await;
    let given = stage.ec2().await.assign(&eni(), Wanted::Addresses(1)).await.unwrap();
    assert_eq!(given, Given::addresses([Ipv4Addr::new(10, 0, 0, 6)].into()));
    stage.asked(&["Action=AssignPrivateIpAddresses", "SecondaryPrivateIpAddressCount=1"]);

    let stage = Stage::answering("UnassignPrivateIpAddresses", "").await;
    stage.ec2().await.release(&eni(), &given).await.unwrap();
    stage.asked(&["NetworkInterfaceId=eni-1", "PrivateIpAddress.1=10.0.0.6"]);

    let given =
        "<assignedIpv4PrefixSet><item><ipv4Prefix>10.0.0.16/28</ipv4Prefix></item></assignedIpv4PrefixSet>";
    let stage = Stage::answering("AssignPrivateIpAddresses", given).await;
    let given = stage.ec2().await.assign(&eni(), Wanted::Prefixes(1)).await.unwrap();
    assert_eq!(given, Given::prefixes(["10.0.0.16/28".parse().unwrap()].into()));
    stage.asked(&["Action=AssignPrivateIpAddresses", "Ipv4PrefixCount=1"]);

    let stage = Stage::answering("UnassignPrivateIpAddresses", "").await;
    stage.ec2().await.release(&eni(), &given).await.unwrap();
    stage.asked(&["NetworkInterfaceId=eni-1", "Ipv4Prefix.1=10.0.0.16%2F28"]);

    let given = "<assignedIpv6PrefixSet><item>2001:db8:0:1:4a2f::/80</item></assignedIpv6PrefixSet>";
    let stage = Stage::answering("AssignIpv6Addresses", given).await;
    let given = stage.ec2().await.assign_ipv6_prefix(&eni()).await.unwrap();
    assert_eq!(given, "2001:db8:0:1:4a2f::/80".parse().unwrap());
    stage.asked(&["Action=AssignIpv6Addresses", "NetworkInterfaceId=eni-1", "Ipv6PrefixCount=1"]);
    let stage = Stage::answering("AssignIpv6Addresses", "<assignedIpv6PrefixSet/>").await;
    assert_eq!(kind(stage.ec2().await.assign_ipv6_prefix(&eni()).await), CloudErrorKind::Unclear);

    let stage = Stage::answering("UnassignIpv6Addresses", "").await;
    stage.ec2().await.release_ipv6_prefix(&eni(), given).await.unwrap();
    stage.asked(&["NetworkInterfaceId=eni-1", "Ipv6Prefix.1=2001%3Adb8%3A0%3A1%3A4a2f%3A%3A%2F80"]);

    let stage = Stage::answering("DetachNetworkInterface", "").await;
    stage.ec2().await.detach("eni-attach-1").await.unwrap();
    stage.asked(&["AttachmentId=eni-attach-1"]);

    let stage = Stage::answering("DeleteNetworkInterface", "").await;
    stage.ec2().await.delete(&eni()).await.unwrap();
    stage.asked(&["NetworkInterfaceId=eni-1"]);

    let stage = Stage::answering("CreateTags", "").await;
    stage.ec2().await.tag(&eni(), &[("k".to_owned(), "v".to_owned())].into()).await.unwrap();
    stage.asked(&["ResourceId.1=eni-1", "Tag.1.Key=k", "Tag.1.Value=v"]);
}

#[tokio::test]
async fn a_refusal_keeps_its_code_and_a_change_is_asked_for_once() {
    let stage = Stage::refusing("InsufficientFreeAddressesInSubnet").await;
    let error = stage.ec2().await.assign(&eni(), Wanted::Addresses(1)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (CloudErrorKind::SubnetFull, "InsufficientFreeAddressesInSubnet")
    );
    assert_eq!(error.to_string(), "AssignPrivateIpAddresses: no (InsufficientFreeAddressesInSubnet)");

    let stage = Stage::refusing("RequestLimitExceeded").await;
    assert_eq!(kind(stage.ec2().await.assign(&eni(), Wanted::Addresses(1)).await), CloudErrorKind::Throttled);
    stage.asked(&[]);

    let stage = Stage::with(&[], &[]).await;
    assert_eq!(kind(stage.ec2().await.assign(&eni(), Wanted::Addresses(1)).await), CloudErrorKind::Unclear);
    stage.asked(&[]);
}

#[tokio::test]
async fn a_fault_of_ec2_says_as_little_as_silence_whatever_its_code() {
    let body =
        "<Response><Errors><Error><Code>NewFault</Code><Message>no</Message></Error></Errors></Response>";
    let stage = Stage::with(&[(500, body.to_owned())], &[]).await;
    assert_eq!(kind(stage.ec2().await.assign(&eni(), Wanted::Addresses(1)).await), CloudErrorKind::Unclear);
    stage.asked(&[]);

    let stage = Stage::with(&vec![(500, body.to_owned()); 3], &[]).await;
    assert_eq!(kind(stage.ec2().await.inventory(&instance()).await), CloudErrorKind::Unreachable);
}

#[tokio::test]
async fn a_closed_port_is_unreachable_even_to_a_change() {
    let mut stage = Stage::with(&[], &[]).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    stage.config.ec2_endpoint = Some(format!("http://{closed}"));
    stage.config.imds_endpoint = stage.config.ec2_endpoint.clone();

    assert_eq!(
        kind(stage.ec2().await.assign(&eni(), Wanted::Addresses(1)).await),
        CloudErrorKind::Unreachable
    );
    assert_eq!(kind(Imds::connect(&stage.config).identity().await), CloudErrorKind::Unreachable);
}

#[tokio::test]
async fn silence_after_a_change_is_unclear() {
    let mut stage = Stage::with(&[], &[]).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    stage.config.ec2_endpoint = Some(format!("http://{}", silent.local_addr().unwrap()));
    stage.config.http_timeout = Duration::from_millis(50);

    assert_eq!(kind(stage.ec2().await.assign(&eni(), Wanted::Addresses(1)).await), CloudErrorKind::Unclear);
}

#[tokio::test]
async fn limits_of_a_type_are_those_of_its_default_card() {
    let info = "<instanceTypeSet><item><instanceType>m5.large</instanceType><hypervisor>nitro</hypervisor><networkInfo>\
        <maximumNetworkInterfaces>6</maximumNetworkInterfaces><defaultNetworkCardIndex>0</defaultNetworkCardIndex>\
        <ipv4AddressesPerInterface>10</ipv4AddressesPerInterface><networkCards>\
        <item><networkCardIndex>1</networkCardIndex><maximumNetworkInterfaces>3</maximumNetworkInterfaces></item>\
        <item><networkCardIndex>0</networkCardIndex><maximumNetworkInterfaces>2</maximumNetworkInterfaces></item>\
        </networkCards></networkInfo></item></instanceTypeSet>";
    let stage = Stage::answering("DescribeInstanceTypes", info).await;

    let limits = stage.ec2().await.instance_limits("m5.large").await.unwrap();

    assert_eq!((limits.max_enis, limits.ipv4_per_eni, limits.prefix_delegation), (2, 10, true));
    assert_eq!(limits.cards.iter().map(|c| (c.card.0, c.max_enis)).collect::<Vec<_>>(), [(0, 2), (1, 3)]);
    let stage = Stage::answering("DescribeInstanceTypes", "<instanceTypeSet/>").await;
    assert_eq!(kind(stage.ec2().await.instance_limits("x9.huge").await), CloudErrorKind::Gone);
    let stage = Stage::refusing("InvalidInstanceType").await;
    assert_eq!(kind(stage.ec2().await.instance_limits("x9.huge").await), CloudErrorKind::Gone);
}

const METADATA: &[(&str, &str)] = &[
    ("mac", "02:00:00:00:00:01"),
    ("instance-id", "i-1"),
    ("instance-type", "m5.large"),
    ("local-ipv4", "10.0.0.4"),
    ("placement/region", "eu-lab-1"),
    ("placement/availability-zone", "eu-lab-1a"),
    ("network/interfaces/macs", "02:00:00:00:00:01/\n02:00:00:00:00:02/\n02:00:00:00:00:03/"),
    ("network/interfaces/macs/02:00:00:00:00:01/interface-id", "eni-1"),
    ("network/interfaces/macs/02:00:00:00:00:01/subnet-id", "subnet-1"),
    ("network/interfaces/macs/02:00:00:00:00:01/subnet-ipv4-cidr-block", "10.0.0.0/24"),
    ("network/interfaces/macs/02:00:00:00:00:01/vpc-id", "vpc-1"),
    ("network/interfaces/macs/02:00:00:00:00:01/vpc-ipv4-cidr-blocks", "10.0.0.0/16\n100.64.0.0/16"),
    ("network/interfaces/macs/02:00:00:00:00:01/security-group-ids", "sg-1\nsg-2"),
    ("network/interfaces/macs/02:00:00:00:00:01/local-ipv4s", "10.0.0.4\n10.0.0.5"),
    ("network/interfaces/macs/02:00:00:00:00:01/device-number", "3"),
    ("network/interfaces/macs/02:00:00:00:00:02/interface-id", "eni-2"),
    ("network/interfaces/macs/02:00:00:00:00:02/subnet-id", "subnet-2"),
    ("network/interfaces/macs/02:00:00:00:00:02/subnet-ipv4-cidr-block", "10.0.2.0/24"),
    ("network/interfaces/macs/02:00:00:00:00:02/local-ipv4s", "10.0.2.4"),
    ("network/interfaces/macs/02:00:00:00:00:02/device-number", "1"),
    ("network/interfaces/macs/02:00:00:00:00:02/network-card", "1"),
    ("network/interfaces/macs/02:00:00:00:00:02/ipv4-prefix", "10.0.2.16/28"),
    ("network/interfaces/macs/02:00:00:00:00:03/interface-id", "eni-3"),
    ("network/interfaces/macs/02:00:00:00:00:03/device-number", "2"),
];

#[tokio::test]
async fn the_metadata_service_says_where_we_are() {
    let imds = Imds::connect(&Stage::with(&[], METADATA).await.config);

    let identity = imds.identity().await.unwrap();
    let subnets = imds.subnets().await.unwrap();
    let interfaces = imds.interfaces().await.unwrap();

    assert_eq!(
        (identity.eni, identity.vpc_id, identity.region),
        (eni(), "vpc-1".to_owned(), "eu-lab-1".to_owned())
    );
    assert_eq!((identity.vpc_cidrs.len(), identity.security_groups.len()), (2, 2));
    let subnets: Vec<_> = subnets.iter().map(|(id, range)| format!("{id} {range}")).collect();
    assert_eq!(subnets, ["subnet-1 10.0.0.0/24", "subnet-2 10.0.2.0/24"]);
    let enis = &interfaces.enis;
    let places: Vec<_> = enis.iter().map(|eni| (eni.id.as_str(), eni.card.0, eni.device.0)).collect();
    assert_eq!(places, [("eni-1", 0, 0), ("eni-2", 1, 1)]);
    assert_eq!(enis[0].addresses, [Ipv4Addr::new(10, 0, 0, 5)].into());
    assert_eq!(enis[1].prefixes.len(), 1);
    assert_eq!(interfaces.occupied, [(NetworkCard(0), DeviceIndex(2))].into());
}

#[tokio::test]
async fn metadata_that_cannot_be_is_garbage() {
    for bad in [
        ("mac", "zz"),
        ("instance-id", "<html>"),
        ("local-ipv4", ""),
        ("placement/region", "a b"),
        ("placement/region", "evil.example/x?"),
    ] {
        let metadata: Vec<_> =
            METADATA.iter().copied().filter(|(path, _)| *path != bad.0).chain([bad]).collect();
        let imds = Imds::connect(&Stage::with(&[], &metadata).await.config);

        assert_eq!(kind(imds.identity().await), CloudErrorKind::Garbage, "{bad:?}");
    }
}

/// What a proxy is asked first, and what it hears of it; it serves nobody.
async fn proxy() -> (String, tokio::task::JoinHandle<String>) {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await.unwrap();
        line
    });
    (url, asked)
}

#[tokio::test]
async fn ec2_is_asked_by_the_proxy_that_the_settings_name() {
    let (url, asked) = proxy().await;
    let mut stage = Stage::with(&[], &[]).await;
    stage.config.https_proxy = Some(url);
    stage.config.ec2_endpoint = Some("https://ec2.lab.invalid".to_owned());

    let failed = stage.ec2().await.inventory(&"i-1".parse().unwrap()).await;

    assert!(failed.is_err());
    assert_eq!(asked.await.unwrap(), "CONNECT ec2.lab.invalid:443 HTTP/1.1\r\n");
}

#[tokio::test]
async fn plain_endpoints_metadata_and_excepted_hosts_are_asked_without_a_proxy() {
    let (url, asked) = proxy().await;
    let mut stage = Stage::with(&[], &[("instance-id", "i-1")]).await;
    stage.config.https_proxy = Some(url);
    stage.config.no_proxy = Some("127.0.0.0/8".to_owned());
    drop(Imds::connect(&stage.config).identity().await);
    drop(stage.ec2().await.inventory(&"i-1".parse().unwrap()).await);
    assert!(!stage.played.asked.lock().unwrap().is_empty(), "the plain endpoint is asked itself");
    // Nothing listens there.
    stage.config.ec2_endpoint = Some("https://127.0.0.1:1".to_owned());
    assert!(stage.ec2().await.inventory(&"i-1".parse().unwrap()).await.is_err());

    assert!(!asked.is_finished(), "the proxy was asked");
    asked.abort();
}

/// A client of CloudWatch at a URL.
async fn cloudwatch(config: &Config, url: &str) -> CloudWatch {
    let credentials = aws_credential_types::Credentials::new("lab", "lab", None, None, "lab");
    CloudWatch::with_credentials(config, "eu-lab-1", Some(url), Some(credentials)).await
}

const POINTS: [MetricPoint; 1] = [MetricPoint { name: "addReqCount", at: types::Moment(0), value: 7.0 }];

#[tokio::test]
async fn a_refusal_of_cloudwatch_has_taken_nothing_and_is_sorted_by_what_can_be_done() {
    let refusal = |code: &str| format!("<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>");
    let answers = [
        (200, "<PutMetricDataResponse/>".to_owned()),
        (400, refusal("Throttling")),
        (403, refusal("AccessDenied")),
        (500, refusal("InternalServiceError")),
        (503, String::new()),
        (400, refusal("InvalidParameterValue")),
    ];
    let stage = Stage::with(&answers, &[]).await;
    let url = stage.config.ec2_endpoint.clone().unwrap();
    let mut client = cloudwatch(&stage.config, &url).await;

    client.put("blue", &POINTS).await.unwrap();
    stage.asked(&["POST / Action=PutMetricData&", "MetricName=addReqCount&", "Value=blue&", "Value=7&"]);
    for sorted in [
        CloudErrorKind::Throttled,
        CloudErrorKind::Denied,
        CloudErrorKind::Unreachable,
        CloudErrorKind::Unreachable,
        CloudErrorKind::Other,
    ] {
        assert_eq!(kind(client.put("blue", &POINTS).await), sorted);
    }
}

#[tokio::test]
async fn figures_that_nobody_took_are_told_from_those_that_may_have_arrived() {
    let mut config = Config::parse(&BTreeMap::new()).unwrap();
    config.http_timeout = Duration::from_millis(200);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut client = cloudwatch(&config, &format!("http://{closed}")).await;
    assert_eq!(kind(client.put("blue", &POINTS).await), CloudErrorKind::Unreachable);

    // It accepts, and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut client = cloudwatch(&config, &url).await;
    assert_eq!(kind(client.put("blue", &POINTS).await), CloudErrorKind::Unclear);
}

#[tokio::test]
async fn the_tags_of_an_instance_are_told() {
    let items = "<tagSet><item><key>eks:cluster-name</key><value>blue</value></item></tagSet>";
    let stage = Stage::answering("DescribeTags", items).await;

    let tags = stage.ec2().await.tags_of(&instance()).await.unwrap();

    stage.asked(&["Filter.1.Name=resource-id", "Filter.1.Value.1=i-1"]);
    assert_eq!(tags, BTreeMap::from([("eks:cluster-name".to_owned(), "blue".to_owned())]));
}
