//! What the calls give and refuse.

use super::*;

#[test]
fn a_launched_instance_has_its_primary_eni_with_the_first_free_address() {
    let place = place(Config::default());

    let enis = place.ec2.enis_of(&place.node.id);

    assert_eq!(enis.len(), 1);
    assert_eq!(enis[0].primary, Ipv4Addr::new(10, 0, 1, 4));
    assert_eq!(enis[0].gateway(), Ipv4Addr::new(10, 0, 1, 1));
    assert_eq!(enis[0].attachment.as_ref().unwrap().device, DeviceIndex(0));
}

#[test]
fn an_instance_takes_no_more_enis_than_its_type_allows() {
    let place = place(Config::default());
    let enis = [place.eni(), place.eni(), place.eni()];

    assert!(place.attach(&enis[0], 1).is_ok());
    assert_eq!(code(place.attach(&enis[1], 1)), "InvalidParameterValue");
    assert_eq!(code(place.attach(&enis[0], 2)), "InvalidNetworkInterface.InUse");
    assert!(place.attach(&enis[1], 7).is_ok());
    assert_eq!(code(place.attach(&enis[2], 2)), "AttachmentLimitExceeded");
}

#[test]
fn each_network_card_has_its_own_limit() {
    let place = place(Config::default());
    let node = place.ec2.launch("p4d.24xlarge", &place.subnet).unwrap();
    let attach =
        |card, device| place.ec2.attach(&place.eni().id, &node.id, NetworkCard(card), DeviceIndex(device));

    assert!(attach(1, 0).is_ok());
    assert!(attach(3, 1).is_ok());
    assert_eq!(code(attach(4, 1)), "InvalidParameterValue");
}

#[test]
fn an_eni_takes_no_more_addresses_than_the_type_allows() {
    let place = place(Config::default());
    let primary = &place.node.primary_eni;

    let eni = place.ec2.assign(primary, &AddressWish::count(9)).unwrap();

    assert_eq!(eni.slots(), 10);
    assert_eq!(code(place.ec2.assign(primary, &AddressWish::count(1))), "PrivateIpAddressLimitExceeded");
    assert_eq!(
        code(place.ec2.assign(primary, &AddressWish::count(u32::MAX))),
        "PrivateIpAddressLimitExceeded"
    );
}

#[test]
fn a_full_subnet_gives_nothing_rather_than_a_part() {
    let place = place(Config::default());
    let _taken = place.ec2.occupy_all_but(&place.subnet, 3).unwrap();
    let before = place.ec2.subnet(&place.subnet);

    let refused = place.ec2.assign(&place.node.primary_eni, &AddressWish::count(4));

    assert_eq!(code(refused), "InsufficientFreeAddressesInSubnet");
    assert_eq!(place.ec2.subnet(&place.subnet), before);
}

#[test]
fn a_failed_creation_gives_its_primary_address_back() {
    let place = place(Config::default());
    let before = place.ec2.subnet(&place.tiny);
    let want = NewEni { addresses: AddressWish::count(11), ..NewEni::plain(place.tiny.clone()) };

    assert_eq!(code(place.ec2.create_eni(&want)), "InsufficientFreeAddressesInSubnet");
    assert_eq!(place.ec2.subnet(&place.tiny), before);
}

#[test]
fn prefixes_run_out_before_addresses_do() {
    let place = place(Config::default());
    for block in 1..16 {
        place.ec2.occupy(&place.subnet, &[Ipv4Addr::new(10, 0, 1, block * 16 + 3)]).unwrap();
    }

    let refused = place.ec2.assign(&place.node.primary_eni, &AddressWish::prefix_count(1));

    assert_eq!(code(refused), "InsufficientCidrBlocks");
    assert!(place.ec2.assign(&place.node.primary_eni, &AddressWish::count(9)).is_ok());
}

#[test]
fn sources_are_all_addresses_and_all_of_each_prefix() {
    let place = place(Config::default());
    let primary = &place.node.primary_eni;
    place.ec2.assign(primary, &AddressWish::count(2)).unwrap();
    place.ec2.assign(primary, &AddressWish::prefix_count(1)).unwrap();

    let sources = place.ec2.allowed_sources(primary);

    assert_eq!(sources.len(), 3 + 16);
    assert!(sources.contains(&Ipv4Addr::new(10, 0, 1, 16)) && sources.contains(&place.node.address));
}

#[test]
fn released_addresses_are_free_again_and_the_primary_one_is_not_released() {
    let place = place(Config::default());
    let primary = &place.node.primary_eni;
    let eni = place.ec2.assign(primary, &AddressWish::count(3)).unwrap();

    place.ec2.unassign(primary, &eni.secondary[..1], &[]).unwrap();

    assert_eq!(code(place.ec2.unassign(primary, &eni.secondary[..2], &[])), "InvalidParameterValue");
    assert_eq!(code(place.ec2.unassign(primary, &[eni.primary], &[])), "InvalidParameterValue");
    assert_eq!(place.ec2.eni(primary).unwrap().secondary, eni.secondary[1..]);
    assert_eq!(place.ec2.subnet(&place.subnet).unwrap().available, 256 - 5 - 3);
}

#[test]
fn a_client_token_makes_one_eni() {
    let place = place(Config::default());
    let want = NewEni { token: Some("t".to_owned()), ..NewEni::plain(place.subnet.clone()) };
    let other = NewEni { description: "other".to_owned(), ..want.clone() };

    let first = place.ec2.create_eni(&want).unwrap();

    assert_eq!(place.ec2.create_eni(&want).unwrap(), first);
    assert_eq!(code(place.ec2.create_eni(&other)), "IdempotentParameterMismatch");
}

#[test]
fn termination_deletes_what_is_marked_and_frees_the_rest() {
    let place = place(Config::default());
    let (kept, gone) = (place.eni(), place.eni());
    place.attach(&kept, 1).unwrap();
    let tie = place.attach(&gone, 2).unwrap();
    let form = format!(
        "Action=ModifyNetworkInterfaceAttribute&NetworkInterfaceId={}&Attachment.AttachmentId={tie}\
         &Attachment.DeleteOnTermination=true",
        gone.id
    );
    place.call(&form).unwrap();

    place.ec2.terminate(&place.node.id).unwrap();

    assert_eq!(place.ec2.eni(&kept.id).unwrap().attachment, None);
    assert_eq!(place.ec2.eni(&gone.id), None);
    assert_eq!(place.ec2.eni(&place.node.primary_eni), None);
    assert_eq!(code(place.attach(&kept, 1)), "IncorrectState");
}

#[test]
fn a_seed_changes_the_order_of_addresses_but_not_from_run_to_run() {
    let given = |seed| {
        let place = place(Config { seed, ..Config::default() });
        place.ec2.assign(&place.node.primary_eni, &AddressWish::count(5)).unwrap().sources()
    };

    assert_eq!(given(Some(7)), given(Some(7)));
    assert_ne!(given(Some(7)), given(None));
}

#[test]
fn ipv6_prefixes_are_of_the_subnets_range_and_never_the_same() {
    let place = place(Config::default());
    let form =
        format!("Action=AssignIpv6Addresses&NetworkInterfaceId={}&Ipv6PrefixCount=1", place.node.primary_eni);
    assert_eq!(code(place.call(&form)), "InvalidParameterValue");
    place.ec2.set_ipv6(&place.subnet, Some("2001:db8:0:1::/64".parse().unwrap())).unwrap();

    let first = place.call(&form).unwrap();
    let second = place.call(&form).unwrap();

    assert!(first.contains("<assignedIpv6PrefixSet><item>2001:db8:0:1:1::/80</item>"), "{first}");
    assert!(second.contains("<item>2001:db8:0:1:2::/80</item>"), "{second}");
    let told = place.call("Action=DescribeNetworkInterfaces").unwrap();
    assert!(told.contains("<ipv6Prefix>2001:db8:0:1:1::/80</ipv6Prefix>"), "{told}");
    let prefix = "2001:db8:0:1:1::/80".parse().unwrap();
    place.ec2.unassign_ipv6(&place.node.primary_eni, &[prefix]).unwrap();
    let eni = &place.node.primary_eni;
    let back =
        format!("Action=UnassignIpv6Addresses&NetworkInterfaceId={eni}&Ipv6Prefix.1=2001:db8:0:1:2::/80");
    let answer = place.call(&back).unwrap();
    assert!(answer.contains("<unassignedIpv6PrefixSet><item>2001:db8:0:1:2::/80</item>"), "{answer}");
    assert_eq!(code(place.call(&back)), "InvalidParameterValue");
    assert!(place.call(&form).unwrap().contains("<item>2001:db8:0:1:1::/80</item>"));
}
