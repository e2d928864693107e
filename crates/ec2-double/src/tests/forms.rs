//! Forms and answers as texts.

use super::*;

/// Whether every element is closed in order and no text has a bare `<` or `&`.
fn is_well_formed(xml: &str) -> bool {
    let mut open = Vec::new();
    let body = xml.split_once("?>").map_or(xml, |(_, body)| body);
    for piece in body.split('<').skip(1) {
        let Some((tag, text)) = piece.split_once('>') else { return false };
        let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&#13;"];
        let plain = entities.iter().fold(text.to_owned(), |text, entity| text.replace(entity, ""));
        let fine = match tag.strip_prefix('/') {
            Some(name) => open.pop() == Some(name),
            None => {
                open.push(tag.split(' ').next().unwrap());
                true
            }
        };
        if !fine || plain.contains(['&', '>']) {
            return false;
        }
    }
    open.is_empty()
}

#[test]
fn answers_are_well_formed_whatever_the_texts_in_them() {
    let place = place(Config::default());
    let created = place.call(&format!(
        "Action=CreateNetworkInterface&SubnetId={}&Description=%3C%26%22%01%3E&Ipv4PrefixCount=2\
         &TagSpecification.1.ResourceType=network-interface&TagSpecification.1.Tag.1.Key=%3Ck%3E\
         &TagSpecification.1.Tag.1.Value=%5D%5D%3E",
        place.subnet
    ));
    let eni = place.ec2.enis().into_iter().find(|eni| eni.attachment.is_none()).unwrap();
    place.attach(&eni, 1).unwrap();

    assert!(is_well_formed(&created.unwrap()));
    for action in Action::ALL.iter().filter(|action| action.name().starts_with("Describe")) {
        let answer = place.call(&format!("Action={}", action.name())).unwrap();
        assert!(is_well_formed(&answer), "{answer}");
    }
    assert!(is_well_formed(&xml::error(&ApiError::value("<&>"), "r")));
}

#[test]
fn hostile_forms_are_refused_or_answered_but_never_break_anything() {
    let place = place(Config::default());
    let eni = &place.node.primary_eni;
    let values = ["", "0", "-1", "4294967295", "18446744073709551616", "a", "%00", "10.0.1.4", "0.0.0.0/0"];
    let names = [
        "SecondaryPrivateIpAddressCount",
        "Ipv4PrefixCount",
        "PrivateIpAddress.1",
        "PrivateIpAddresses.1.PrivateIpAddress",
        "Ipv4Prefix.1",
        "Ipv4Prefix.1.Ipv4Prefix",
        "DeviceIndex",
        "NetworkCardIndex",
        "MaxResults",
        "NextToken",
        "Filter.1.Name",
        "Tag.1.Key",
        "ResourceId.1",
        "SecurityGroupId.1",
        "AttachmentId",
        "Attachment.DeleteOnTermination",
        "DryRun",
        "ClientToken",
        "InstanceType.1",
    ];
    for action in Action::ALL {
        for name in names {
            for value in values {
                let form = format!(
                    "Action={}&NetworkInterfaceId={eni}&InstanceId={}&SubnetId={}\
                     &InstanceType.2=m5.large&{name}={value}",
                    action.name(),
                    place.node.id,
                    place.subnet
                );
                if let Ok(answer) = place.call(&form) {
                    assert!(is_well_formed(&answer), "{form}");
                }
            }
        }
    }
    assert_eq!(place.ec2.eni(eni).map(|eni| eni.primary), Some(place.node.address));
}

#[test]
fn addresses_named_twice_are_refused() {
    let place = place(Config::default());
    let form = "Action=AssignPrivateIpAddresses&PrivateIpAddress.1=10.0.1.9&PrivateIpAddress.2=10.0.1.9";

    let refused = place.call(&format!("{form}&NetworkInterfaceId={}", place.node.primary_eni));

    assert_eq!(code(refused), "InvalidParameterValue");
}

#[test]
fn pages_hold_what_was_asked_for_and_the_last_has_no_token() {
    let place = place(Config::default());
    for _ in 0..6 {
        let _eni = place.eni();
    }

    let first = place.call("Action=DescribeNetworkInterfaces&MaxResults=5").unwrap();
    let token = first.split_once("<nextToken>").unwrap().1.split_once('<').unwrap().0;
    let second =
        place.call(&format!("Action=DescribeNetworkInterfaces&MaxResults=5&NextToken={token}")).unwrap();

    assert_eq!(first.matches("<macAddress>").count(), 5);
    assert_eq!(second.matches("<macAddress>").count(), 2);
    assert!(!second.contains("nextToken"));
}

#[test]
fn an_unknown_action_is_invalid() {
    assert_eq!(code(place(Config::default()).call("Action=RunInstances")), "InvalidAction");
}
