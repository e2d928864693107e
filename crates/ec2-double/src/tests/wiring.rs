//! What the fabric hears.

use super::*;

/// Writes down what it hears, and asks back while it is told.
struct Ear {
    ec2: Mutex<Option<Ec2>>,
    heard: Mutex<Vec<String>>,
}

impl Ear {
    fn hear(&self, what: &str, eni: &EniView) {
        let known = lock(&self.ec2).as_ref().is_some_and(|ec2| !ec2.allowed_sources(&eni.id).is_empty());
        lock(&self.heard).push(format!("{what} {} {known}", eni.sources().len()));
    }
}

impl Wiring for Ear {
    fn attached(&self, _: &InstanceId, eni: &EniView) {
        self.hear("attached", eni);
    }
    fn detached(&self, _: &InstanceId, eni: &EniView) {
        self.hear("detached", eni);
    }
    fn addresses_changed(&self, eni: &EniView) {
        self.hear("addresses", eni);
    }
    fn associated(&self, _: &InstanceId, trunk: &EniView, branch: &EniView) {
        let is_of = matches!(&branch.kind, EniKind::Branch { trunk: of, .. } if *of == trunk.id);
        self.hear(&format!("associated {is_of}"), branch);
    }
    fn disassociated(&self, _: &InstanceId, branch: &EniView) {
        self.hear(&format!("disassociated {}", branch.kind.word()), branch);
    }
}

fn listening(config: Config) -> (Place, Arc<Ear>) {
    let place = place(config);
    let ear = Arc::new(Ear { ec2: Mutex::new(Some(place.ec2.clone())), heard: Mutex::new(Vec::new()) });
    place.ec2.set_wiring(Some(ear.clone()));
    (place, ear)
}

#[test]
fn changes_are_delivered_in_order_before_the_call_returns() {
    let (place, ear) = listening(Config::default());
    let eni = place.eni();
    place.ec2.assign(&eni.id, &AddressWish::count(1)).unwrap();

    place.attach(&eni, 1).unwrap();
    place.ec2.assign(&eni.id, &AddressWish::count(2)).unwrap();
    place.ec2.operator_detach(&eni.id).unwrap();
    place.ec2.launch("t3.medium", &place.subnet).unwrap();

    let heard = lock(&ear.heard).clone();
    assert_eq!(heard, ["attached 2 true", "addresses 4 true", "detached 4 true", "attached 1 true"]);
}

#[test]
fn a_branch_is_told_with_its_trunk_and_goes_before_it() {
    let (place, ear) = listening(Config::default());
    let trunk = NewEni { trunk: true, ..NewEni::plain(place.subnet.clone()) };
    let (trunk, branch) = (place.ec2.create_eni(&trunk).unwrap(), place.eni());

    place.attach(&trunk, 1).unwrap();
    place.ec2.associate(&trunk.id, &branch.id, VlanId::new(7).unwrap()).unwrap();
    place.ec2.operator_detach(&trunk.id).unwrap();

    let heard = lock(&ear.heard).clone();
    let wanted =
        ["attached 1 true", "associated true 1 true", "disassociated branch 1 true", "detached 1 true"];
    assert_eq!(heard, wanted);
}

#[test]
fn a_delayed_attachment_is_delivered_without_any_further_call() {
    let (place, ear) = listening(Config { attach_delay: Duration::from_millis(20), ..Config::default() });

    place.attach(&place.eni(), 1).unwrap();

    while lock(&ear.heard).is_empty() {
        thread::yield_now();
    }
    assert_eq!(*lock(&ear.heard), ["attached 1 true"]);
}
