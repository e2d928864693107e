//! The server over a socket.

use super::*;

/// One request on a connection of its own; the answer's status and body, or `None` if there was none.
fn ask(place: &Place, server: &Server, form: &str) -> Option<(u16, String)> {
    let head = "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: x";
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{form}", form.len());
    let answer = exchange(server, &request);
    assert!(place.ec2.calls().len() <= 100);
    answer
}

fn exchange(server: &Server, request: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

fn served() -> (Place, Server) {
    let place = place(Config::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = serve(listener, place.ec2.clone(), Some(place.node.id.clone())).unwrap();
    (place, server)
}

fn outcomes(place: &Place) -> Vec<Outcome> {
    place.ec2.calls().into_iter().map(|call| call.outcome).collect()
}

#[test]
fn calls_are_answered_and_recorded() {
    let (place, server) = served();

    let (status, body) = ask(&place, &server, "Action=DescribeSubnets").unwrap();
    let (refused, _) = ask(&place, &server, "Action=Nothing").unwrap();

    assert_eq!((status, refused), (200, 400));
    assert!(body.contains(place.subnet.as_str()));
    let calls = place.ec2.calls();
    assert_eq!((calls[0].action.as_str(), &calls[0].outcome), ("DescribeSubnets", &Outcome::Done));
    assert_eq!(calls[0].caller.as_ref(), Some(&place.node.id));
    assert_eq!(calls[1].outcome, Outcome::Refused("InvalidAction".to_owned()));
}

#[test]
fn a_lost_answer_has_its_effect() {
    let (place, server) = served();
    let form = format!(
        "Action=AssignPrivateIpAddresses&SecondaryPrivateIpAddressCount=4&NetworkInterfaceId={}",
        place.node.primary_eni
    );
    place.ec2.fault_next(Action::AssignPrivateIpAddresses, 1, Fault::LoseAnswer);
    place.ec2.fault_next(Action::AssignPrivateIpAddresses, 1, Fault::PartialSuccess);
    place.ec2.fault_next(Action::AssignPrivateIpAddresses, 1, Fault::error("InternalError", 500));

    assert_eq!(ask(&place, &server, &form), None);
    assert_eq!(place.ec2.eni(&place.node.primary_eni).unwrap().secondary.len(), 4);
    assert_eq!(ask(&place, &server, &form).unwrap().0, 200);
    assert_eq!(place.ec2.eni(&place.node.primary_eni).unwrap().secondary.len(), 6);
    assert_eq!(ask(&place, &server, &form).unwrap().0, 500);
    let refused = Outcome::Refused("InternalError".to_owned());
    assert_eq!(outcomes(&place), [Outcome::Lost, Outcome::Done, refused]);
}

#[test]
fn weather_and_garbage_reach_the_caller() {
    let (place, server) = served();
    let form = "Action=DescribeSubnets";
    let status = |weather| {
        place.ec2.set_weather(weather);
        ask(&place, &server, form).map(|(status, _)| status)
    };

    assert_eq!(status(Weather::Denied), Some(403));
    assert_eq!(status(Weather::Throttled), Some(503));
    assert_eq!(status(Weather::Unreachable), None);
    assert_eq!(status(Weather::Fair), Some(200));
    place.ec2.fault_next(Action::DescribeSubnets, 1, Fault::Garbage("<no".to_owned()));
    assert_eq!(ask(&place, &server, form), Some((200, "<no".to_owned())));
}

#[test]
fn a_request_without_signature_is_refused() {
    let (_place, server) = served();

    let answer = exchange(&server, "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");

    assert_eq!(answer.unwrap().0, 403);
}

#[test]
fn a_dropped_server_listens_no_more() {
    let (_place, server) = served();
    let address = server.address();
    let idle = TcpStream::connect(address).unwrap();

    drop(server);

    assert!(TcpStream::connect(address).is_err());
    drop(idle);
}
