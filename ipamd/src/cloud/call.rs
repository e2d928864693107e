//! Every call to EC2 that there is. The IAM policies in `manifests` allow these and no others: the daemon's its own, the metrics
//! helper's the one that it makes.

use super::Effect;

macro_rules! calls {
    ($($name:ident: $effect:ident;)*) => {
        /// A call, by EC2's name of it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Call {
            $($name,)*
        }

        impl Call {
            /// Every one.
            #[cfg(test)]
            pub(super) const ALL: &'static [Self] = &[$(Self::$name),*];

            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What it does to the world.
            pub(super) const fn effect(self) -> Effect {
                match self { $(Self::$name => Effect::$effect,)* }
            }
        }
    };
}

calls! {
    AssignIpv6Addresses: Changes;
    AssignPrivateIpAddresses: Changes;
    AttachNetworkInterface: Changes;
    CreateNetworkInterface: Changes;
    CreateTags: Changes;
    DeleteNetworkInterface: Changes;
    DescribeInstanceTypes: Reads;
    DescribeNetworkInterfaces: Reads;
    DescribeSubnets: Reads;
    DescribeTags: Reads;
    DetachNetworkInterface: Changes;
    ModifyNetworkInterfaceAttribute: Changes;
    UnassignIpv6Addresses: Changes;
    UnassignPrivateIpAddresses: Changes;
}
