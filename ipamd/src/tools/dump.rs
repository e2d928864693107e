//! What the kernel told, as people read it: the words of `ip`. Pure.

use datapath::{HostSeen, LinkSeen, Maker, RouteSeen};

/// Links, addresses, rules and routes.
#[must_use]
pub(super) fn text(host: &HostSeen) -> String {
    let names = host.names();
    let name = |index| names.get(&index).map_or("?", String::as_str);
    let mut out = String::from("# links\n");
    for link in &host.links {
        let LinkSeen { index, name, mac, mtu, up, group, peer } = link;
        let mac = mac.map(|mac| mac.to_string()).unwrap_or_default();
        let peer = peer.map(|peer| format!(" peer if{}", peer.0)).unwrap_or_default();
        let aside = if link.is_set_aside() { " set aside" } else { "" };
        let state = if *up { "up" } else { "down" };
        say(&mut out, &format!("{}: {name} {state} mtu {mtu} {mac} group {group:#x}{peer}{aside}", index.0));
    }
    out.push_str("\n# addresses\n");
    for address in &host.addresses {
        say(&mut out, &format!("{} dev {}", address.address, name(address.link)));
    }
    out.push_str("\n# rules\n");
    for rule in &host.rules {
        let ours = if rule.ours.is_some() { "  (ours)" } else { "" };
        say(&mut out, &format!("ip{} rule {rule}{ours}", rule.family.option()));
    }
    out.push_str("\n# routes\n");
    for RouteSeen { maker, route } in &host.routes {
        let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
        let maker = match maker {
            Maker::We => "  (ours)",
            Maker::Kernel => "  (the kernel's)",
            Maker::Other => "",
        };
        say(
            &mut out,
            &format!("{}{via} dev {} table {}{maker}", route.destination, name(route.link), route.table),
        );
    }
    for (family, table) in host.refusals.iter().flatten() {
        say(&mut out, &format!("ip{} unreachable default table {table}", family.option()));
    }
    out
}

fn say(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}
