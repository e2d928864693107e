//! Notices of nftables: which of them are about our table.

use std::collections::BTreeSet;

use super::TABLE;
use super::constants::{NFNL_SUBSYS_NFTABLES, NFTA_TABLE_NAME};
use super::decode::{attribute, messages, text};

/// Whether a datagram tells a change of our table by a socket that is not ours.
pub(crate) fn touches_ours(datagram: &[u8], ours: &BTreeSet<u32>) -> bool {
    messages(datagram).any(|message| {
        let attributes = message.body.get(4..).unwrap_or_default();
        // `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE` and all the others are the same number.
        message.kind >> 8 == NFNL_SUBSYS_NFTABLES
            && !ours.contains(&message.port)
            && attribute(attributes, NFTA_TABLE_NAME).and_then(text) == Some(TABLE)
    })
}

#[cfg(test)]
mod tests {
    use super::super::constants::NFT_MSG_DELTABLE;
    use super::super::encode::{Attributes, request};
    use super::*;

    #[test]
    fn only_our_table_counts_and_only_when_others_change_it() {
        let notice = |table: &str| {
            request(
                crate::model::Family::V6,
                NFT_MSG_DELTABLE,
                0,
                1,
                &Attributes::default().text(NFTA_TABLE_NAME, table),
            )
        };

        assert!(touches_ours(&notice(TABLE), &[7].into()));
        assert!(!touches_ours(&notice("kube-proxy"), &[7].into()));
        assert!(!touches_ours(&notice(TABLE), &[0].into()));
        assert!(!touches_ours(b"no message", &[7].into()));
    }
}
