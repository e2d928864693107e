//! Delays and lags, with time in hand.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A model with an instance and an ENI, at time 0.
fn model(config: Config) -> (Model, Instance, EniId) {
    let mut model = Model::new(config);
    let vpc = model.add_vpc(&[net("10.0.0.0/16")]);
    let subnet = model.add_subnet(&vpc, net("10.0.1.0/24"), "z").unwrap();
    let node = model.launch("m5.large", &subnet, Moment(0)).unwrap();
    let eni = model.create_eni(&NewEni::plain(subnet)).unwrap().id.clone();
    while model.next_event().is_some() {}
    (model, node, eni)
}

#[test]
fn an_attachment_takes_its_time_and_then_is_told() {
    let (mut model, node, eni) = model(Config { attach_delay: 3 * SECOND, ..Config::default() });
    model.attach(&eni, &node.id, NetworkCard(0), DeviceIndex(1), Moment(1000)).unwrap();

    model.advance(Moment(3999));

    assert!(model.next_event().is_none());
    assert_eq!(model.eni(&eni).unwrap().inside(), None);
    assert_eq!(model.take_deadlines(), [Moment(4000)]);

    model.advance(Moment(4000));

    assert!(matches!(model.next_event(), Some(Event::Attached(id, _)) if id == node.id));
    assert_eq!(model.eni(&eni).unwrap().inside(), Some(&node.id));
}

#[test]
fn an_attachment_under_way_can_be_neither_detached_nor_deleted() {
    let (mut model, node, eni) =
        model(Config { attach_delay: SECOND, detach_delay: SECOND, ..Config::default() });
    let tie = model.attach(&eni, &node.id, NetworkCard(0), DeviceIndex(1), Moment(0)).unwrap();

    assert_eq!(code(model.detach(&tie, Moment(500))), "IncorrectState");
    assert_eq!(code(model.delete_eni(&eni)), "InvalidParameterValue");
    model.advance(Moment(1000));
    model.detach(&tie, Moment(1000)).unwrap();
    assert_eq!(code(model.detach(&tie, Moment(1001))), "IncorrectState");
    assert_eq!(code(model.delete_eni(&eni)), "InvalidParameterValue");
    model.advance(Moment(2000));
    assert_eq!(code(model.detach(&tie, Moment(2000))), "InvalidAttachmentID.NotFound");
    assert!(model.delete_eni(&eni).is_ok());
}

#[test]
fn an_eni_pulled_while_attaching_never_arrives() {
    let (mut model, node, eni) = model(Config { attach_delay: SECOND, ..Config::default() });
    model.attach(&eni, &node.id, NetworkCard(0), DeviceIndex(1), Moment(0)).unwrap();

    model.pull(&eni).unwrap();
    model.advance(Moment(5000));

    assert!(model.next_event().is_none());
    assert_eq!(model.eni(&eni).unwrap().attachment, None);
}

#[test]
fn the_past_is_told_for_as_long_as_the_lag() {
    let (mut model, node, _) = model(Config::default());
    model.remember(Moment(0));
    model.assign(&node.primary_eni, &AddressWish::count(2)).unwrap();
    model.remember(Moment(1000));
    model.assign(&node.primary_eni, &AddressWish::count(3)).unwrap();
    model.remember(Moment(2000));
    let count = |now, lag| model.as_of(Moment(now), lag)[&node.primary_eni].secondary.len();

    assert_eq!(count(2000, Duration::ZERO), 5);
    assert_eq!([count(2999, SECOND), count(3000, SECOND)], [2, 5]);
    assert_eq!([count(1999, SECOND), count(2000, SECOND)], [0, 2]);
    assert_eq!(count(2000, 1000 * SECOND), 0);
}

#[test]
fn no_two_enis_share_a_mac_or_an_id() {
    let (mut model, ..) = model(Config::default());

    let macs: BTreeSet<Mac> = (0..1000).map(|_| model.new_mac()).collect();
    let ids: BTreeSet<SecurityGroupId> = (0..1000).map(|_| model.new_id("sg")).collect();

    assert_eq!((macs.len(), ids.len()), (1000, 1000));
}
