//! Amounts of CPU, as Kubernetes writes them. Pure.

/// An amount in thousandths, rounded up (Kubernetes API, "Quantity": a decimal number with a suffix or an exponent). `None` for what is
/// no amount of CPU: it is negative, or no number.
///
/// Binary suffixes are for memory; nobody writes a CPU in them, and they are not read.
#[must_use]
pub fn thousandths(quantity: &str) -> Option<u64> {
    let quantity = quantity.trim();
    let exponent = |suffix: &str| {
        Some(match suffix {
            "n" => -9,
            "u" => -6,
            "m" => -3,
            "" => 0,
            "k" => 3,
            "M" => 6,
            "G" => 9,
            _ => suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok().filter(|n| (-12..=12).contains(n))?,
        })
    };
    let digits = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mantissa: u64 = format!("{whole}{fraction}").parse().ok()?;
    let shift = exponent(suffix)? + 3 - i32::try_from(fraction.len()).ok()?;
    let by = 10_u64.checked_pow(shift.unsigned_abs());
    match by {
        Some(by) if shift >= 0 => mantissa.checked_mul(by),
        Some(by) => Some(mantissa.div_ceil(by)),
        // So many decimals are next to nothing.
        None => (shift < 0).then_some(u64::from(mantissa > 0)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read_in_every_spelling() {
        for (text, thousand) in [
            ("1", 1_000),
            ("0.5", 500),
            (".25", 250),
            ("2.", 2_000),
            ("100m", 100),
            ("1500u", 2),
            ("1n", 1),
            ("0", 0),
            ("1e3", 1_000_000),
            ("2E-3", 2),
            ("3k", 3_000_000),
        ] {
            assert_eq!(thousandths(text), Some(thousand), "{text}");
        }
        for text in ["", "m", "-1", "+1", "one", "1.2.3", "1Ki", "1e99", "1e"] {
            assert_eq!(thousandths(text), None, "{text}");
        }
        for more_digits_than_there_can_be in ["99999999999999999999", "1.0000000000000000000000000001m"] {
            assert_eq!(thousandths(more_digits_than_there_can_be), None);
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(text in ".{0,24}") {
            let _read = thousandths(&text);
        }

        #[test]
        fn what_is_written_in_thousandths_is_that_many(n in 0_u64..1_000_000_000) {
            prop_assert_eq!(thousandths(&format!("{n}m")), Some(n));
            prop_assert_eq!(thousandths(&n.to_string()), Some(n * 1_000));
        }
    }
}
