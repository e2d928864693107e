//! The cloud from outside: its calls, its manners, its HTTP.

mod branches;
mod calls;
mod forms;
mod http;
mod manners;
mod wiring;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use types::{Mac, SecurityGroupId};

use super::api::{Request, Share, perform};
use super::query::Params;
use super::*;

/// A VPC with a /24 and a /28 in two zones, and an m5.large (3 ENIs of 10 addresses).
struct Place {
    ec2: Ec2,
    subnet: SubnetId,
    tiny: SubnetId,
    node: Instance,
}

fn place(config: Config) -> Place {
    let ec2 = Ec2::new(config);
    let vpc = ec2.add_vpc(&[net("10.0.0.0/16"), net("100.64.0.0/16")]);
    let subnet = ec2.add_subnet(&vpc, net("10.0.1.0/24"), "eu-lab-1a").unwrap();
    let tiny = ec2.add_subnet(&vpc, net("10.0.2.0/28"), "eu-lab-1b").unwrap();
    let node = ec2.launch("m5.large", &subnet).unwrap();
    Place { ec2, subnet, tiny, node }
}

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn code<T: fmt::Debug>(result: Result<T, ApiError>) -> String {
    result.unwrap_err().code
}

impl Place {
    fn eni(&self) -> EniView {
        self.ec2.create_eni(&NewEni::plain(self.subnet.clone())).unwrap()
    }

    fn attach(&self, eni: &EniView, device: u8) -> Result<String, ApiError> {
        self.ec2.attach(&eni.id, &self.node.id, NetworkCard(0), DeviceIndex(device))
    }

    fn call(&self, form: &str) -> Result<String, ApiError> {
        call(&self.ec2, form)
    }
}

/// A call as the server performs it.
fn call(ec2: &Ec2, form: &str) -> Result<String, ApiError> {
    let params = Params::parse(form.as_bytes())?;
    let action = Action::of(params.need("Action")?)?;
    ec2.change(|model, now| perform(model, action, &Request { params: &params, now, share: Share::Whole }))
        .map(|xml| xml.response(action.name(), "r"))
}
