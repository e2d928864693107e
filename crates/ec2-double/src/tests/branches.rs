//! A trunk and what its VLANs lead to.

use super::*;

fn vlan(number: u64) -> VlanId {
    VlanId::new(number).unwrap()
}

impl Place {
    fn trunk(&self, device: u8) -> EniView {
        let trunk = NewEni { trunk: true, ..NewEni::plain(self.subnet.clone()) };
        let trunk = self.ec2.create_eni(&trunk).unwrap();
        self.attach(&trunk, device).unwrap();
        trunk
    }

    fn kind(&self, eni: &EniView) -> String {
        let told =
            self.call(&format!("Action=DescribeNetworkInterfaces&NetworkInterfaceId.1={}", eni.id)).unwrap();
        let after = told.split_once("<interfaceType>").unwrap().1;
        after.split_once('<').unwrap().0.to_owned()
    }
}

#[test]
fn a_trunk_and_its_branch_are_told_by_their_type_and_the_branch_is_in_no_instance() {
    let place = place(Config::default());
    let (trunk, branch) = (place.trunk(1), place.eni());
    assert_eq!((place.kind(&trunk), place.kind(&branch)), ("trunk".to_owned(), "interface".to_owned()));

    let id = place.ec2.associate(&trunk.id, &branch.id, vlan(7)).unwrap();

    assert!(id.starts_with("trunk-assoc-"), "{id}");
    assert_eq!(place.kind(&branch), "branch");
    let filter = format!("Filter.1.Name=attachment.instance-id&Filter.1.Value.1={}", place.node.id);
    let told = place.call(&format!("Action=DescribeNetworkInterfaces&{filter}")).unwrap();
    assert!(told.contains(trunk.id.as_str()) && !told.contains(branch.id.as_str()), "{told}");
    place.ec2.disassociate(&branch.id).unwrap();
    assert_eq!(place.kind(&branch), "interface");
}

#[test]
fn a_vlan_leads_to_one_branch_and_a_branch_is_tied_to_one_thing() {
    let place = place(Config::default());
    let (trunk, branch, other) = (place.trunk(1), place.eni(), place.eni());
    place.ec2.associate(&trunk.id, &branch.id, vlan(7)).unwrap();

    assert_eq!(code(place.ec2.associate(&trunk.id, &other.id, vlan(7))), "InvalidParameterValue");
    assert_eq!(code(place.ec2.associate(&trunk.id, &branch.id, vlan(8))), "InvalidNetworkInterface.InUse");
    assert_eq!(code(place.attach(&branch, 2)), "InvalidNetworkInterface.InUse");
    assert_eq!(code(place.ec2.associate(&other.id, &place.eni().id, vlan(1))), "InvalidParameterValue");
    assert_eq!(code(place.ec2.disassociate(&other.id)), "InvalidParameterValue");
}

#[test]
fn a_trunk_needs_a_type_that_has_one_and_has_as_many_branches_as_the_type_allows() {
    let place = place(Config::default());
    let old = place.ec2.launch("t3.small", &place.subnet).unwrap();
    let trunk = NewEni { trunk: true, ..NewEni::plain(place.subnet.clone()) };
    let trunk = place.ec2.create_eni(&trunk).unwrap();
    let refused = place.ec2.attach(&trunk.id, &old.id, NetworkCard(0), DeviceIndex(1));
    assert_eq!(code(refused), "UnsupportedOperation");

    place.attach(&trunk, 1).unwrap();
    for number in 1..=9 {
        place.ec2.associate(&trunk.id, &place.eni().id, vlan(number)).unwrap();
    }
    assert_eq!(code(place.ec2.associate(&trunk.id, &place.eni().id, vlan(10))), "AttachmentLimitExceeded");
}

#[test]
fn branches_lose_their_way_when_the_trunk_leaves_and_end_when_they_are_deleted() {
    let place = place(Config::default());
    let (trunk, lost, deleted) = (place.trunk(1), place.eni(), place.eni());
    place.ec2.associate(&trunk.id, &lost.id, vlan(7)).unwrap();
    place.ec2.associate(&trunk.id, &deleted.id, vlan(8)).unwrap();

    place.ec2.operator_delete(&deleted.id).unwrap();
    place.ec2.operator_detach(&trunk.id).unwrap();

    assert_eq!(place.ec2.eni(&deleted.id), None);
    assert_eq!(place.kind(&lost), "interface");
    assert!(place.ec2.look(|model| model.branches_of(&trunk.id)).is_empty());
}
