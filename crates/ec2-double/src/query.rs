//! EC2's Query protocol, the asking half: a form with flattened lists.
//!
//! `Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-1`: a list's members are numbered from 1, and gaps are allowed.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::error::ApiError;

/// How many parameters a form may have.
const PARAMETERS_MAX: usize = 10_000;

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The calls this emulator knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Action {
            $($(#[$doc])* $name),*
        }

        impl Action {
            /// Every action.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name in the API.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name)),*
                }
            }
        }
    };
}

actions! {
    /// Adds IPv6 prefixes to an ENI.
    AssignIpv6Addresses,
    /// Takes IPv6 prefixes away from an ENI.
    UnassignIpv6Addresses,
    /// Adds addresses or prefixes to an ENI.
    AssignPrivateIpAddresses,
    /// Puts an ENI into an instance.
    AttachNetworkInterface,
    /// Makes an ENI.
    CreateNetworkInterface,
    /// Sets tags.
    CreateTags,
    /// Deletes an ENI.
    DeleteNetworkInterface,
    /// Removes tags.
    DeleteTags,
    /// Tells limits of instance types.
    DescribeInstanceTypes,
    /// Tells instances with their ENIs.
    DescribeInstances,
    /// Tells ENIs.
    DescribeNetworkInterfaces,
    /// Tells subnets.
    DescribeSubnets,
    /// Tells tags.
    DescribeTags,
    /// Takes an ENI out of its instance.
    DetachNetworkInterface,
    /// Changes an ENI's security groups or its deletion at termination.
    ModifyNetworkInterfaceAttribute,
    /// Takes addresses or prefixes from an ENI.
    UnassignPrivateIpAddresses,
}

impl Action {
    /// The action of this name.
    pub(crate) fn of(name: &str) -> Result<Self, ApiError> {
        let known = Self::ALL.iter().copied().find(|action| action.name() == name);
        known.ok_or_else(|| {
            let name: String = name.chars().take(64).collect();
            ApiError::new("InvalidAction", format!("The action {name} is not valid for this web service."))
        })
    }
}

/// The parameters of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Params(BTreeMap<String, String>);

impl Params {
    pub(crate) fn parse(form: &[u8]) -> Result<Self, ApiError> {
        let mut params = BTreeMap::new();
        for pair in form.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
            let mut halves = pair.splitn(2, |b| *b == b'=');
            let mut half = || decode(halves.next().unwrap_or_default());
            let (name, value) = (half()?, half()?);
            if params.len() == PARAMETERS_MAX || params.insert(name, value).is_some() {
                return Err(malformed());
            }
        }
        Ok(Self(params))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn need(&self, name: &str) -> Result<&str, ApiError> {
        self.get(name).filter(|value| !value.is_empty()).ok_or_else(|| ApiError::missing(name))
    }

    /// A parameter as a value of its type, if it is there.
    pub(crate) fn value<T: FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.get(name).map(|text| parse(name, text)).transpose()
    }

    pub(crate) fn need_value<T: FromStr>(&self, name: &str) -> Result<T, ApiError> {
        parse(name, self.need(name)?)
    }

    /// `name.1`, `name.2`, … in the order of their numbers.
    pub(crate) fn list(&self, name: &str) -> Vec<&str> {
        let numbered = self.0.iter().filter_map(|(key, value)| {
            let number = key.strip_prefix(name)?.strip_prefix('.')?;
            Some((number.parse::<u32>().ok()?, value.as_str()))
        });
        BTreeMap::from_iter(numbered).into_values().collect()
    }

    pub(crate) fn values<T: FromStr>(&self, name: &str) -> Result<Vec<T>, ApiError> {
        self.list(name).into_iter().map(|text| parse(name, text)).collect()
    }

    /// `name.1.rest`, `name.2.rest`, … as one set of parameters for each number.
    pub(crate) fn groups(&self, name: &str) -> Vec<Self> {
        let mut groups: BTreeMap<u32, Self> = BTreeMap::new();
        for (key, value) in &self.0 {
            let member = key.strip_prefix(name).and_then(|k| k.strip_prefix('.')?.split_once('.'));
            if let Some((Ok(number), rest)) = member.map(|(number, rest)| (number.parse(), rest)) {
                groups.entry(number).or_default().0.insert(rest.to_owned(), value.clone());
            }
        }
        groups.into_values().collect()
    }
}

fn parse<T: FromStr>(name: &str, text: &str) -> Result<T, ApiError> {
    text.parse().ok().ok_or_else(|| {
        let text: String = text.chars().take(64).collect();
        let (code, what) = match name {
            "NetworkInterfaceId" => ("InvalidNetworkInterfaceID.Malformed", "id"),
            "InstanceId" => ("InvalidInstanceID.Malformed", "id"),
            "SubnetId" => ("InvalidSubnetID.Malformed", "id"),
            "SecurityGroupId" => ("InvalidGroupId.Malformed", "id"),
            _ => ("InvalidParameterValue", "value"),
        };
        ApiError::new(code, format!("Invalid {what}: \"{text}\" for parameter {name}"))
    })
}

/// `application/x-www-form-urlencoded`, one name or value.
fn decode(text: &[u8]) -> Result<String, ApiError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex(rest.next())? << 4 | hex(rest.next())?,
            plain => *plain,
        });
    }
    String::from_utf8(bytes).ok().ok_or_else(malformed)
}

fn hex(digit: Option<&u8>) -> Result<u8, ApiError> {
    let value = digit.and_then(|d| char::from(*d).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    value.ok_or_else(malformed)
}

fn malformed() -> ApiError {
    ApiError::new("MalformedQueryString", "The query string is malformed.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> Params {
        Params::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn plus_and_percent_are_decoded() {
        assert_eq!(params("Description=a+b%2Bc%3D%26%C3%A4").get("Description"), Some("a b+c=&ä"));
    }

    #[test]
    fn lists_are_ordered_by_number_and_may_have_gaps() {
        let params = params("Id.10=c&Id.2=b&Id.1=a&Id.x=d&Idle.1=e&Id=f&Id.99999999999=g");

        assert_eq!(params.list("Id"), ["a", "b", "c"]);
    }

    #[test]
    fn groups_keep_what_belongs_together() {
        let params = params("Tag.2.Key=k2&Tag.1.Key=k1&Tag.1.Value=v1&Tag.3=no&Tag.1.Deep.1=d");

        let tags = params.groups("Tag");

        assert_eq!(tags.len(), 2);
        assert_eq!((tags[0].get("Key"), tags[0].get("Value")), (Some("k1"), Some("v1")));
        assert_eq!(tags[0].list("Deep"), ["d"]);
        assert_eq!((tags[1].get("Key"), tags[1].get("Value")), (Some("k2"), None));
    }

    #[test]
    fn hostile_forms_are_refused() {
        for form in ["a=%", "a=%4", "a=%zz", "a=%ff", "a=1&a=2"] {
            assert!(Params::parse(form.as_bytes()).is_err(), "{form}");
        }
        let many: Vec<_> = (0..=PARAMETERS_MAX).map(|n| format!("a.{n}=")).collect();
        assert!(Params::parse(many.join("&").as_bytes()).is_err());
    }

    #[test]
    fn any_bytes_are_parsed_or_refused() {
        let alphabet = b"aF.12&=%+\xff\x00";
        let mut state = 1_u32;
        for _ in 0..20_000 {
            let form: Vec<u8> = (0..24)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    alphabet[usize::try_from(state >> 16).unwrap() % alphabet.len()]
                })
                .collect();
            if let Ok(params) = Params::parse(&form) {
                assert!(params.list("a").len() <= form.len());
                assert!(params.groups("a").len() <= form.len());
            }
        }
    }
}
