//! Terms of rules as the expressions that the kernel's nf_tables machine runs.
//!
//! Every match loads register 1 and compares it; the machine stops at the first that fails.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::SnatPorts;
use super::constants::{
    CT_STATE_NEW, IPV4_DESTINATION, IPV4_SOURCE, IPV6_DESTINATION, IPV6_SOURCE, NF_DROP,
    NF_NAT_RANGE_PROTO_RANDOM, NF_NAT_RANGE_PROTO_RANDOM_FULLY, NFT_BITWISE_MASK_XOR, NFT_CMP_EQ,
    NFT_CMP_NEQ, NFT_CT_MARK, NFT_CT_STATE, NFT_FIB_RESULT_ADDRTYPE, NFT_LOOKUP_F_INV, NFT_META_IIFNAME,
    NFT_META_MARK, NFT_META_OIFNAME, NFT_NAT_SNAT, NFT_PAYLOAD_NETWORK_HEADER, NFT_REG_1, NFT_REG_VERDICT,
    NFT_RETURN, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_OP, NFTA_BITWISE_SREG,
    NFTA_BITWISE_XOR, NFTA_CMP_DATA, NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_CT_DREG, NFTA_CT_KEY, NFTA_CT_SREG,
    NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_FIB_DREG, NFTA_FIB_F_DADDR,
    NFTA_FIB_F_IIF, NFTA_FIB_FLAGS, NFTA_FIB_RESULT, NFTA_IMMEDIATE_DATA, NFTA_IMMEDIATE_DREG,
    NFTA_LIST_ELEM, NFTA_LOOKUP_DREG, NFTA_LOOKUP_FLAGS, NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_META_DREG,
    NFTA_META_KEY, NFTA_META_SREG, NFTA_NAT_FAMILY, NFTA_NAT_FLAGS, NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_TYPE,
    NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NFTA_VERDICT_CODE,
    RTN_LOCAL,
};
use super::encode::{Attributes, number_of};
use super::ruleset::{Bits, Link, NO_SNAT, Term};
use crate::model::Family;

/// Length of an interface name in a register: `IFNAMSIZ`.
const NAME_BYTES: usize = 16;

/// The expressions of a rule.
pub(super) fn expressions(rule: &[Term]) -> Attributes {
    let mut list = Attributes::default();
    for expression in rule.iter().flat_map(of_term) {
        list = list.nest(NFTA_LIST_ELEM, &expression);
    }
    list
}

fn of_term(term: &Term) -> Vec<Attributes> {
    match term {
        Term::From(link) => vec![meta_load(NFT_META_IIFNAME), compare_name(NFT_CMP_EQ, link)],
        Term::NotFrom(link) => vec![meta_load(NFT_META_IIFNAME), compare_name(NFT_CMP_NEQ, link)],
        Term::NotTo(link) => vec![meta_load(NFT_META_OIFNAME), compare_name(NFT_CMP_NEQ, link)],
        Term::NewConnection => {
            let new = Bits { keep: CT_STATE_NEW, set: 0 };
            vec![ct_load(NFT_CT_STATE), bitwise(new), compare(NFT_CMP_NEQ, &0_u32.to_ne_bytes())]
        }
        Term::DestinationOutsideNoSnat => {
            vec![payload_load(IPV4_DESTINATION), outside(NO_SNAT)]
        }
        Term::SourceIn(range) => within(*range, IPV4_SOURCE, IPV6_SOURCE),
        Term::DestinationIn(range) => within(*range, IPV4_DESTINATION, IPV6_DESTINATION),
        Term::DestinationOfArrivalLink => {
            vec![
                address_type(NFTA_FIB_F_DADDR | NFTA_FIB_F_IIF),
                compare(NFT_CMP_EQ, &RTN_LOCAL.to_ne_bytes()),
            ]
        }
        Term::DestinationNotLocal => {
            vec![address_type(NFTA_FIB_F_DADDR), compare(NFT_CMP_NEQ, &RTN_LOCAL.to_ne_bytes())]
        }
        Term::ConnectionHas(mark) => {
            let only = Bits { keep: *mark, set: 0 };
            vec![ct_load(NFT_CT_MARK), bitwise(only), compare(NFT_CMP_EQ, &mark.to_ne_bytes())]
        }
        Term::MarkConnection(bits) => vec![ct_load(NFT_CT_MARK), bitwise(*bits), ct_store_mark()],
        Term::MarkPacket(bits) => vec![meta_load(NFT_META_MARK), bitwise(*bits), meta_store_mark()],
        Term::JumpBySource(map) => vec![payload_load(IPV4_SOURCE), jump_by(map)],
        Term::Return => vec![verdict(NFT_RETURN)],
        Term::Drop => vec![verdict(NF_DROP)],
        Term::Snat { to, ports } => vec![immediate(*to), source_nat(Family::of(*to), *ports)],
    }
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::default().text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data)
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(NFTA_DATA_VALUE, bytes)
}

fn meta_load(key: u32) -> Attributes {
    let data = Attributes::default().number(NFTA_META_KEY, key).number(NFTA_META_DREG, NFT_REG_1);
    expression("meta", &data)
}

fn meta_store_mark() -> Attributes {
    let data = Attributes::default().number(NFTA_META_KEY, NFT_META_MARK).number(NFTA_META_SREG, NFT_REG_1);
    expression("meta", &data)
}

fn ct_load(key: u32) -> Attributes {
    let data = Attributes::default().number(NFTA_CT_KEY, key).number(NFTA_CT_DREG, NFT_REG_1);
    expression("ct", &data)
}

fn ct_store_mark() -> Attributes {
    let data = Attributes::default().number(NFTA_CT_KEY, NFT_CT_MARK).number(NFTA_CT_SREG, NFT_REG_1);
    expression("ct", &data)
}

fn compare(operator: u32, bytes: &[u8]) -> Attributes {
    let data = Attributes::default()
        .number(NFTA_CMP_SREG, NFT_REG_1)
        .number(NFTA_CMP_OP, operator)
        .nest(NFTA_CMP_DATA, &value(bytes));
    expression("cmp", &data)
}

/// A whole name is compared with the NULs that follow it, a prefix without.
fn compare_name(operator: u32, link: &Link) -> Attributes {
    match link {
        Link::Named(name) => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(NAME_BYTES, 0);
            compare(operator, &bytes)
        }
        Link::Prefixed(prefix) => compare(operator, prefix.as_bytes()),
    }
}

/// register = register & keep & ~set ^ set, which is register & keep | set.
fn bitwise(bits: Bits) -> Attributes {
    let Bits { keep, set } = bits;
    mask_and_xor(&(keep & !set).to_ne_bytes(), &set.to_ne_bytes())
}

/// register = register & mask ^ xor, as long as the two.
fn mask_and_xor(mask: &[u8], xor: &[u8]) -> Attributes {
    let data = Attributes::default()
        .number(NFTA_BITWISE_SREG, NFT_REG_1)
        .number(NFTA_BITWISE_DREG, NFT_REG_1)
        .number(NFTA_BITWISE_OP, NFT_BITWISE_MASK_XOR)
        .number(NFTA_BITWISE_LEN, bytes_of(mask))
        .nest(NFTA_BITWISE_MASK, &value(mask))
        .nest(NFTA_BITWISE_XOR, &value(xor));
    expression("bitwise", &data)
}

/// The address at one of two places, by its family, is in a range.
fn within(range: IpNetwork, ipv4_at: u32, ipv6_at: u32) -> Vec<Attributes> {
    let (network, mask) = (octets(range.network()), octets(range.mask()));
    let offset = if range.is_ipv4() { ipv4_at } else { ipv6_at };
    let nothing = vec![0; mask.len()];
    let load = payload_load_of(offset, bytes_of(&mask));
    vec![load, mask_and_xor(&mask, &nothing), compare(NFT_CMP_EQ, &network)]
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The length of what fits a register.
fn bytes_of(value: &[u8]) -> u32 {
    u32::try_from(value.len()).unwrap_or(u32::MAX)
}

fn payload_load(offset: u32) -> Attributes {
    payload_load_of(offset, 4)
}

fn payload_load_of(offset: u32, bytes: u32) -> Attributes {
    let data = Attributes::default()
        .number(NFTA_PAYLOAD_DREG, NFT_REG_1)
        .number(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER)
        .number(NFTA_PAYLOAD_OFFSET, offset)
        .number(NFTA_PAYLOAD_LEN, bytes);
    expression("payload", &data)
}

fn outside(set: &str) -> Attributes {
    let data = Attributes::default()
        .number(NFTA_LOOKUP_SREG, NFT_REG_1)
        .text(NFTA_LOOKUP_SET, set)
        .number(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
    expression("lookup", &data)
}

fn jump_by(map: &str) -> Attributes {
    let data = Attributes::default()
        .number(NFTA_LOOKUP_SREG, NFT_REG_1)
        .number(NFTA_LOOKUP_DREG, NFT_REG_VERDICT)
        .text(NFTA_LOOKUP_SET, map);
    expression("lookup", &data)
}

fn address_type(flags: u32) -> Attributes {
    let data = Attributes::default()
        .number(NFTA_FIB_FLAGS, flags)
        .number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
        .number(NFTA_FIB_DREG, NFT_REG_1);
    expression("fib", &data)
}

fn verdict(code: u32) -> Attributes {
    let verdict = Attributes::default().number(NFTA_VERDICT_CODE, code);
    let data = Attributes::default()
        .number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
        .nest(NFTA_IMMEDIATE_DATA, &Attributes::default().nest(NFTA_DATA_VERDICT, &verdict));
    expression("immediate", &data)
}

fn immediate(address: IpAddr) -> Attributes {
    let data = Attributes::default()
        .number(NFTA_IMMEDIATE_DREG, NFT_REG_1)
        .nest(NFTA_IMMEDIATE_DATA, &value(&octets(address)));
    expression("immediate", &data)
}

fn source_nat(family: Family, ports: SnatPorts) -> Attributes {
    let data = Attributes::default()
        .number(NFTA_NAT_TYPE, NFT_NAT_SNAT)
        .number(NFTA_NAT_FAMILY, number_of(family).into())
        .number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
    let data = match ports {
        SnatPorts::Prng => data.number(NFTA_NAT_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY),
        SnatPorts::HashRandom => data.number(NFTA_NAT_FLAGS, NF_NAT_RANGE_PROTO_RANDOM),
        SnatPorts::Plain => data,
    };
    expression("nat", &data)
}

#[cfg(test)]
mod tests {
    use super::super::ruleset::ruleset;
    use super::super::tests::spec;
    use super::*;

    /// The expressions of a rule as `nft` 1.0.6 sends them for that rule's text, captured with
    /// `strace -e trace=sendmsg -e write=all nft -f …` on a little-endian machine: the value of
    /// `NFTA_RULE_EXPRESSIONS` in hexadecimal, one expression per line.
    fn captured(lines: &str) -> Vec<u8> {
        let digits: Vec<char> = lines.chars().filter(char::is_ascii_hexdigit).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn rule(chain: &str, index: usize) -> Vec<u8> {
        let ruleset = ruleset(&spec());
        let chain = ruleset.chains.iter().find(|c| c.name == chain).unwrap();
        expressions(&chain.rules[index]).as_slice().to_vec()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_steering_chain_has_the_bytes_of_meta_mark_set_meta_mark_and_0xffffc0ff_or_0x100() {
        let chain = ruleset(&spec()).steering_chain(0x100);
        let nft = "
            24000180090001006d657461000000001400028008000200000000030800010000000001
            4c0001800c00010062697477697365003c000280080001000000000108000200000000010800060000000000080003000000
            00040c00048008000100ffc0ffff0c0005800800010000010000
            24000180090001006d657461000000001400028008000200000000030800030000000001";

        assert_eq!(expressions(&chain.rules[0]).as_slice(), captured(nft));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn others_packets_have_the_bytes_of_iifname_not_eni_return() {
        let nft = "
            24000180090001006d657461000000001400028008000200000000060800010000000001
            2c00018008000100636d700020000280080001000000000108000200000000010c00038007000100656e6900
            300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c00028008000100fffffffb";

        assert_eq!(rule("from_pods", 0), captured(nft));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn steering_has_the_bytes_of_ip_saddr_vmap_eni_of() {
        // Without the set's number within the transaction, which nft adds (8 bytes): the name is enough.
        let nft = "
            340001800c0001007061796c6f6164002400028008000100000000010800020000000001080003000000000c
            0800040000000004
            300001800b0001006c6f6f6b7570000020000280080002000000000108000300000000000b000100656e695f6f660000";

        assert_eq!(rule("from_pods", 1), captured(nft));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn restoring_has_the_bytes_of_ct_mark_and_0x80_eq_0x80_meta_mark_set_meta_mark_or_0x80() {
        let nft = "
            20000180070001006374000014000280080002000000000308000100000000014c0001800c00010062697477697365003c00
            02800800010000000001080002000000000108000600000000000800030000000004
            0c00048008000100800000000c0005800800010000000000
            2c00018008000100636d700020000280080001000000000108000200000000000c0003800800010080000000
            24000180090001006d657461000000001400028008000200000000030800010000000001
            4c0001800c00010062697477697365003c000280080001000000000108000200000000010800060000000000080003000000
            00040c000480080001007fffffff0c0005800800010080000000
            24000180090001006d657461000000001400028008000200000000030800030000000001";

        assert_eq!(rule("from_pods", 4), captured(nft));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn translation_has_the_bytes_of_snat_to_fully_random() {
        let nft = "
            2c0001800e000100696d6d6564696174650000001800028008000100000000010c000280080001000a00000a
            30000180080001006e617400240002800800010000000000080002000000000208000300000000010800070000000010";

        assert!(rule("source_nat", 0).ends_with(&captured(nft)));
    }
}
