//! The instance metadata service, version 2: a token first, then a tree of small texts.
//!
//! What it tells of ENIs can lag behind the truth, see [`Config::imds_lag`](crate::ec2::Config::imds_lag). Paths and
//! listings are as in the EC2 user guide, "Instance metadata categories": a directory's name ends in `/` in the
//! listing of its parent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::extract::connect_info::ConnectInfo;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::Response;
use ipnetwork::Ipv4Network;
use types::{InstanceId, Moment};

use crate::ec2::{Clock, Ec2, EniView, Instance, Line, Model, OWNER, Server, VpcId, iso8601, spawn};

const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// The longest life of a token, in seconds.
const TTL_MAX: u64 = 21_600;
/// How many tokens are kept before the oldest are forgotten.
const TOKENS_MAX: usize = 1024;
/// The name of the role whose (worthless) credentials are told.
const ROLE: &str = "lab-node";

/// How the service behaves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ImdsWeather {
    /// As it should.
    #[default]
    Fair,
    /// Connections close without an answer.
    Down,
    /// Answers come after this time.
    Slow(Duration),
    /// Answers to reads are this text with status 200.
    Garbage(String),
    /// Answers to reads have status 503.
    Unavailable,
}

/// What a metadata service tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The region's name.
    pub region: String,
    /// The instance.
    pub instance: Instance,
    /// How many network cards its type has.
    pub cards: usize,
    /// The ENIs whose devices are in it.
    pub enis: Vec<EniView>,
    /// The ranges of their VPCs.
    pub ranges: BTreeMap<VpcId, Vec<Ipv4Network>>,
}

/// A running metadata service of one instance; it ends when this is dropped.
#[derive(Debug)]
pub struct Imds {
    server: Server,
    desk: Arc<Desk>,
}

impl Imds {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What requests meet from now on.
    pub fn set_weather(&self, weather: ImdsWeather) {
        self.desk.book().weather = weather;
    }

    /// Makes all tokens invalid, as when the instance's metadata options change.
    pub fn forget_tokens(&self) {
        self.desk.book().tokens.clear();
    }
}

/// Serves the metadata of an instance.
///
/// # Errors
/// If the server's runtime or thread cannot be made.
pub fn serve(listener: TcpListener, ec2: Ec2, instance: InstanceId) -> io::Result<Imds> {
    serve_from(listener, Source::Emulator(ec2, instance))
}

/// Serves metadata that never change, as that of an instance which another cloud than ours runs.
///
/// # Errors
/// As [`serve`].
pub fn serve_facts(listener: TcpListener, facts: Facts) -> io::Result<Imds> {
    serve_from(listener, Source::Still(Box::new(facts)))
}

fn serve_from(listener: TcpListener, source: Source) -> io::Result<Imds> {
    let desk = Arc::new(Desk { clock: Clock::start(), source, book: Mutex::new(Book::default()) });
    let router = Router::new().fallback(answer).with_state(Arc::clone(&desk));
    Ok(Imds { server: spawn(listener, router)?, desk })
}

#[derive(Debug)]
struct Desk {
    clock: Clock,
    source: Source,
    book: Mutex<Book>,
}

/// Where the facts come from.
#[derive(Debug)]
enum Source {
    Emulator(Ec2, InstanceId),
    Still(Box<Facts>),
}

impl Source {
    /// The facts of now; `None` if the instance is gone.
    fn facts(&self) -> Option<Facts> {
        match self {
            Self::Emulator(ec2, instance) => {
                let now = ec2.now();
                ec2.look(|model| facts(model, instance, now))
            }
            Self::Still(facts) => Some(Facts::clone(facts)),
        }
    }
}

#[derive(Debug, Default)]
struct Book {
    weather: ImdsWeather,
    /// Tokens with the moment of their end.
    tokens: BTreeMap<String, Moment>,
    made: u64,
}

async fn answer(
    State(desk): State<Arc<Desk>>,
    ConnectInfo(line): ConnectInfo<Line>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let weather = desk.book().weather.clone();
    match weather {
        ImdsWeather::Fair => {}
        ImdsWeather::Down => return line.cut(),
        ImdsWeather::Slow(delay) => tokio::time::sleep(delay).await,
        ImdsWeather::Garbage(text) if method == Method::GET => return text_response(StatusCode::OK, text),
        ImdsWeather::Unavailable if method == Method::GET => {
            return text_response(StatusCode::SERVICE_UNAVAILABLE, String::new());
        }
        ImdsWeather::Garbage(_) | ImdsWeather::Unavailable => {}
    }
    if method == Method::PUT && uri.path() == "/latest/api/token" {
        return desk.make_token(&headers);
    }
    if method != Method::GET {
        return text_response(StatusCode::METHOD_NOT_ALLOWED, String::new());
    }
    if !desk.knows_token(&headers) {
        return text_response(StatusCode::UNAUTHORIZED, String::new());
    }
    desk.read(uri.path())
}

impl Desk {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_token(&self, headers: &HeaderMap) -> Response {
        if headers.contains_key("x-forwarded-for") {
            return text_response(StatusCode::FORBIDDEN, String::new());
        }
        let asked = headers.get(TTL_HEADER).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let Some(ttl) = asked.filter(|ttl| (1..=TTL_MAX).contains(ttl)) else {
            return text_response(StatusCode::BAD_REQUEST, String::new());
        };
        let now = self.clock.now();
        let mut book = self.book();
        book.tokens.retain(|_, end| *end > now);
        if book.tokens.len() >= TOKENS_MAX {
            book.tokens.pop_first();
        }
        book.made += 1;
        let token = format!("AQAE{:032x}==", book.made);
        book.tokens.insert(token.clone(), now.plus(Duration::from_secs(ttl)));
        let mut response = text_response(StatusCode::OK, token);
        response.headers_mut().insert(TTL_HEADER, HeaderValue::from(ttl));
        response
    }

    fn knows_token(&self, headers: &HeaderMap) -> bool {
        let token = headers.get(TOKEN_HEADER).and_then(|value| value.to_str().ok());
        let end = token.and_then(|token| self.book().tokens.get(token).copied());
        end.is_some_and(|end| end > self.clock.now())
    }

    fn read(&self, path: &str) -> Response {
        let tree = self.source.facts().map(|facts| tree(&facts, self.clock.now())).unwrap_or_default();
        match look_up(&tree, path) {
            Some(text) => text_response(StatusCode::OK, text),
            None => text_response(StatusCode::NOT_FOUND, String::new()),
        }
    }
}

fn text_response(status: StatusCode, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
    response
}

/// All texts by their paths, without a slash at either end.
type Tree = BTreeMap<String, String>;

/// A text, or the listing of a directory; `None` if there is neither.
fn look_up(tree: &Tree, path: &str) -> Option<String> {
    let path = path.trim_matches('/');
    if let Some(text) = tree.get(path) {
        return Some(text.clone());
    }
    let inside = format!("{path}/");
    let below = tree.range(inside.clone()..).map_while(|(key, _)| key.strip_prefix(&inside));
    let names: BTreeSet<String> = below
        .map(|rest| match rest.split_once('/') {
            Some((directory, _)) => format!("{directory}/"),
            None => rest.to_owned(),
        })
        .collect();
    if names.is_empty() { None } else { Some(Vec::from_iter(names).join("\n")) }
}

/// What the emulator knows of an instance that runs.
fn facts(model: &Model, id: &InstanceId, now: Moment) -> Option<Facts> {
    let instance = model.instance(id).ok().filter(|instance| instance.running)?;
    let enis = model.as_of(now, model.config().imds_lag);
    let enis: Vec<EniView> =
        enis.values().filter(|eni| eni.inside() == Some(id)).map(|eni| EniView::clone(eni)).collect();
    let range = |eni: &EniView| Some((eni.vpc.clone(), model.vpc(&eni.vpc)?.cidrs.clone()));
    Some(Facts {
        region: model.config().region.clone(),
        instance: instance.clone(),
        cards: model.limits_table().get(&instance.instance_type).map_or(1, |limits| limits.cards.len()),
        ranges: enis.iter().filter_map(range).collect(),
        enis,
    })
}

fn tree(facts: &Facts, now: Moment) -> Tree {
    let mut tree = Tree::new();
    let Facts { region, instance, cards, enis, ranges } = facts;
    put_instance(&mut tree, instance, region);
    put_credentials(&mut tree, now);
    let document = identity_document(instance, region);
    tree.insert("latest/dynamic/instance-identity/document".to_owned(), document);
    for eni in enis {
        let ranges = ranges.get(&eni.vpc).map(Vec::as_slice).unwrap_or_default();
        put_eni(&mut tree, eni);
        put_place(&mut tree, eni, *cards);
        put_ipv6(&mut tree, eni);
        put_eni_text(&mut tree, eni, "vpc-ipv4-cidr-block", lines(ranges.iter().take(1)));
        put_eni_text(&mut tree, eni, "vpc-ipv4-cidr-blocks", lines(ranges));
    }
    tree
}

/// What is not there has no path.
fn put_ipv6(tree: &mut Tree, eni: &EniView) {
    if let Some(ipv6) = eni.ipv6 {
        put_eni_text(tree, eni, "ipv6s", ipv6.to_string());
    }
    if !eni.ipv6_prefixes.is_empty() {
        put_eni_text(tree, eni, "ipv6-prefix", lines(&eni.ipv6_prefixes));
    }
}

fn put_instance(tree: &mut Tree, instance: &Instance, region: &str) {
    let host = host_name(instance, region);
    let mut put = |name: &str, text: String| tree.insert(format!("latest/meta-data/{name}"), text);
    put("ami-id", "ami-0000000000000000".to_owned());
    put("hostname", host.clone());
    put("instance-id", instance.id.to_string());
    put("instance-type", instance.instance_type.clone());
    put("local-hostname", host);
    put("local-ipv4", instance.address.to_string());
    put("mac", instance.mac.to_string());
    put("placement/availability-zone", instance.zone.clone());
    put("placement/region", region.to_owned());
    put("services/domain", "amazonaws.com".to_owned());
    put("services/partition", "aws".to_owned());
}

/// Credentials that no one accepts but this lab, so that the ordinary credential chain finds some.
fn put_credentials(tree: &mut Tree, now: Moment) {
    let end = iso8601(now.plus(Duration::from_secs(6 * 3600)));
    let text = serde_json::json!({
        "Code": "Success",
        "LastUpdated": iso8601(now),
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIALAB",
        "SecretAccessKey": "lab",
        "Token": "lab",
        "Expiration": end,
    });
    tree.insert(format!("latest/meta-data/iam/security-credentials/{ROLE}"), text.to_string());
}

fn identity_document(instance: &Instance, region: &str) -> String {
    let document = serde_json::json!({
        "accountId": OWNER,
        "architecture": "x86_64",
        "availabilityZone": instance.zone,
        "imageId": "ami-0000000000000000",
        "instanceId": instance.id.as_str(),
        "instanceType": instance.instance_type,
        "pendingTime": iso8601(instance.launched),
        "privateIp": instance.address.to_string(),
        "region": region,
        "version": "2017-09-30",
    });
    document.to_string()
}

fn put_eni(tree: &mut Tree, eni: &EniView) {
    let mut put = |name: &str, text: String| put_eni_text(tree, eni, name, text);
    put("interface-id", eni.id.to_string());
    put("local-ipv4s", lines([eni.primary].iter().chain(&eni.secondary)));
    put("mac", eni.mac.to_string());
    put("owner-id", OWNER.to_owned());
    put("security-group-ids", lines(&eni.groups));
    put("security-groups", lines(&eni.groups));
    put("subnet-id", eni.subnet.to_string());
    put("subnet-ipv4-cidr-block", eni.subnet_cidr.to_string());
    put("vpc-id", eni.vpc.to_string());
    if !eni.prefixes.is_empty() {
        put("ipv4-prefix", lines(&eni.prefixes));
    }
}

/// `network-card` exists only on instances with several cards.
fn put_place(tree: &mut Tree, eni: &EniView, cards: usize) {
    let Some(attachment) = &eni.attachment else { return };
    put_eni_text(tree, eni, "device-number", attachment.device.to_string());
    if cards > 1 {
        put_eni_text(tree, eni, "network-card", attachment.card.to_string());
    }
}

fn put_eni_text(tree: &mut Tree, eni: &EniView, name: &str, text: String) {
    tree.insert(format!("latest/meta-data/network/interfaces/macs/{}/{name}", eni.mac), text);
}

fn lines<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join("\n")
}

fn host_name(instance: &Instance, region: &str) -> String {
    format!("ip-{}.{region}.compute.internal", instance.address.to_string().replace('.', "-"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use types::{DeviceIndex, NetworkCard};

    use super::*;
    use crate::ec2::{AddressWish, Config, NewEni};

    const MACS: &str = "/latest/meta-data/network/interfaces/macs";

    struct Place {
        ec2: Ec2,
        node: Instance,
        imds: Imds,
    }

    fn place(config: Config) -> Place {
        let ec2 = Ec2::new(config);
        let vpc = ec2.add_vpc(&["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()]);
        let subnet = ec2.add_subnet(&vpc, "10.0.1.0/24".parse().unwrap(), "eu-lab-1a").unwrap();
        let node = ec2.launch("m5.large", &subnet).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let imds = serve(listener, ec2.clone(), node.id.clone()).unwrap();
        Place { ec2, node, imds }
    }

    impl Place {
        fn ask(&self, method: &str, path: &str, header: &str) -> Option<(u16, String)> {
            let mut stream = TcpStream::connect(self.imds.address()).unwrap();
            let request =
                format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        }

        fn token(&self) -> String {
            self.ask("PUT", "/latest/api/token", "x-aws-ec2-metadata-token-ttl-seconds: 60").unwrap().1
        }

        fn get(&self, path: &str) -> (u16, String) {
            self.ask("GET", path, &format!("X-aws-ec2-metadata-token: {}", self.token())).unwrap()
        }

        fn text(&self, path: &str) -> String {
            let (status, text) = self.get(path);
            assert_eq!(status, 200, "{path}");
            text
        }
    }

    #[test]
    fn nothing_is_told_without_a_token() {
        let place = place(Config::default());
        let path = "/latest/meta-data/mac";

        assert_eq!(place.ask("GET", path, "x: y").unwrap().0, 401);
        assert_eq!(place.ask("GET", path, "X-aws-ec2-metadata-token: AQAE").unwrap().0, 401);
        assert_eq!(place.ask("PUT", "/latest/api/token", "x: y").unwrap().0, 400);
        assert_eq!(place.text(path), place.node.mac.to_string());
        let token = place.token();
        place.imds.forget_tokens();
        let old = format!("X-aws-ec2-metadata-token: {token}");
        assert_eq!(place.ask("GET", path, &old).unwrap().0, 401);
    }

    #[test]
    fn an_interface_is_told_as_ec2_does() {
        let place = place(Config::default());
        let base = format!("{MACS}/{}", place.node.mac);
        place.ec2.assign(&place.node.primary_eni, &AddressWish::count(1)).unwrap();

        assert_eq!(place.text(MACS), format!("{}/", place.node.mac));
        assert_eq!(place.text(&format!("{base}/interface-id")), place.node.primary_eni.to_string());
        assert_eq!(place.text(&format!("{base}/device-number")), "0");
        assert_eq!(place.text(&format!("{base}/local-ipv4s")), "10.0.1.4\n10.0.1.5");
        assert_eq!(place.text(&format!("{base}/subnet-ipv4-cidr-block")), "10.0.1.0/24");
        assert_eq!(place.text(&format!("{base}/vpc-ipv4-cidr-blocks")), "10.0.0.0/16\n100.64.0.0/16");
        assert_eq!(place.get(&format!("{base}/network-card")).0, 404);
        assert_eq!(place.get(&format!("{base}/ipv4-prefix")).0, 404);
        assert!(place.text(&format!("{base}/")).contains("local-ipv4s\n"));
        assert_eq!(place.get(&format!("{MACS}/02:00:00:00:00:00/")).0, 404);
        assert!(place.text("/latest/dynamic/instance-identity/document").contains(r#""region":"eu-lab-1""#));
    }

    #[test]
    fn an_eni_that_is_still_being_attached_or_within_the_lag_is_not_told() {
        let hour = Duration::from_secs(3600);
        let place = place(Config { imds_lag: hour, ..Config::default() });
        let eni = place.ec2.create_eni(&NewEni::plain(place.node.subnet.clone())).unwrap();
        place.ec2.attach(&eni.id, &place.node.id, NetworkCard(0), DeviceIndex(1)).unwrap();

        assert_eq!(place.text(MACS), format!("{}/", place.node.mac));
        place.ec2.tune(|config| config.imds_lag = Duration::ZERO);
        assert!(place.text(MACS).contains(&eni.mac.to_string()));
        place.ec2.operator_detach(&eni.id).unwrap();
        place.ec2.tune(|config| config.attach_delay = hour);
        place.ec2.attach(&eni.id, &place.node.id, NetworkCard(0), DeviceIndex(1)).unwrap();
        assert_eq!(place.text(MACS), format!("{}/", place.node.mac));
    }

    #[test]
    fn bad_weather_reaches_the_caller() {
        let place = place(Config::default());
        let header = format!("X-aws-ec2-metadata-token: {}", place.token());
        let ask = |weather| {
            place.imds.set_weather(weather);
            place.ask("GET", "/latest/meta-data/mac", &header)
        };

        assert_eq!(ask(ImdsWeather::Down), None);
        assert_eq!(ask(ImdsWeather::Unavailable).unwrap().0, 503);
        assert_eq!(ask(ImdsWeather::Garbage("?".to_owned())), Some((200, "?".to_owned())));
        assert_eq!(ask(ImdsWeather::Slow(Duration::from_millis(1))).unwrap().0, 200);
        assert_eq!(ask(ImdsWeather::Fair).unwrap().0, 200);
    }

    #[test]
    fn a_terminated_instance_has_no_metadata() {
        let place = place(Config::default());

        place.ec2.terminate(&place.node.id).unwrap();

        assert_eq!(place.get("/latest/meta-data/mac").0, 404);
    }
}
