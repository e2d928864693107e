//! What a node's metrics page says, read strictly: a page with one line that is none is not a page at all.
//!
//! Both text formats of Prometheus ("Exposition formats", and `OpenMetrics` 1.0): a sample is a name, labels, a value, and what may come after it.

use std::collections::BTreeMap;

use super::sum;

/// Samples by name and labels, of those metrics alone that are summed.
pub(crate) type Scrape = BTreeMap<(String, String), f64>;

/// Why a page is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPage {
    /// A line that is no sample.
    #[error("line {number} is no sample: {line:?}")]
    Line {
        /// Its number, from 1.
        number: usize,
        /// Its begin.
        line: String,
    },
    /// The same sample twice.
    #[error("{0} is told twice")]
    Twice(String),
    /// A value of ours that no count can be.
    #[error("{name} is {value}")]
    Value {
        /// The metric.
        name: String,
        /// What it is said to be.
        value: String,
    },
    /// None of the metrics that are summed.
    #[error("it has no metric of the CNI")]
    Other,
}

/// Reads a page.
pub(crate) fn scrape(page: &str) -> Result<Scrape, BadPage> {
    let mut samples = Scrape::new();
    for (index, line) in page.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let cut = || BadPage::Line { number: index + 1, line: line.chars().take(80).collect() };
        let (name, labels, value) = sample(line).ok_or_else(cut)?;
        if !sum::is_summed(name) {
            continue;
        }
        if !value.is_finite() || value < 0.0 {
            return Err(BadPage::Value { name: name.to_owned(), value: value.to_string() });
        }
        if samples.insert((name.to_owned(), labels), value).is_some() {
            return Err(BadPage::Twice(name.to_owned()));
        }
    }
    if samples.is_empty() { Err(BadPage::Other) } else { Ok(samples) }
}

/// Name, labels in one form, and value.
fn sample(line: &str) -> Option<(&str, String, f64)> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (String::new(), rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let value = number(words.next()?)?;
    // A timestamp may follow; an exemplar is a comment of its own.
    let after = words.next().is_none_or(|word| word == "#" || number(word).is_some());
    (is_name(name) && after).then_some((name, labels, value))
}

/// Labels up to the closing brace, in the order of their names; and what comes after it.
fn labels(mut text: &str) -> Option<(String, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix('}') {
            let all = labels.into_iter().map(|(name, value)| format!("{name}=\"{value}\""));
            return Some((all.collect::<Vec<_>>().join(","), rest));
        }
        let (name, rest) = text.split_once('=')?;
        let name = name.trim();
        let (value, rest) = quoted(rest.trim_start())?;
        if !is_name(name) || labels.insert(name, value).is_some() {
            return None;
        }
        text = rest.trim_start();
        text = match text.strip_prefix(',') {
            Some(rest) => rest,
            None if text.starts_with('}') => text,
            None => return None,
        };
    }
}

/// What stands between quotes, as it is written; and what comes after them.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('"')?;
    let mut escaped = false;
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some((inside.get(..at)?, inside.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

fn is_name(text: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b':';
    !text.is_empty() && !text.starts_with(|first: char| first.is_ascii_digit()) && text.bytes().all(known)
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)).then(|| text.parse().ok())?,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = "# HELP awscni_eni_max ENIs.\n# TYPE awscni_eni_max gauge\nawscni_eni_max 3\n\
        awscni_ec2api_req_count{fn=\"CreateNetworkInterface\"} 4 1700000000000\n\
        awscni_aws_api_error_count{error=\"a \\\"b\\\" }, c\",api=\"X\",} 2.0 # {trace_id=\"x\"} 1\n\
        something_else_bucket{le=\"+Inf\"} 7\nnan NaN\ninf +Inf\n# EOF\n";

    #[test]
    fn what_is_summed_is_taken_with_its_labels_in_one_order() {
        let samples = scrape(PAGE).unwrap();

        let all: Vec<_> =
            samples.iter().map(|((name, labels), value)| (name.as_str(), labels.as_str(), *value)).collect();
        assert_eq!(
            all,
            [
                ("awscni_aws_api_error_count", "api=\"X\",error=\"a \\\"b\\\" }, c\"", 2.0),
                ("awscni_ec2api_req_count", "fn=\"CreateNetworkInterface\"", 4.0),
                ("awscni_eni_max", "", 3.0),
            ]
        );
    }

    #[test]
    fn a_page_with_one_line_that_is_none_is_refused() {
        for line in [
            "<html>502</html>",
            "awscni_eni_max",
            "awscni_eni_max three",
            "awscni_eni_max 3 soon",
            "awscni_eni_max{fn=\"a\" 3",
            "awscni_eni_max{fn=\"a\"b=\"c\"} 3",
            "awscni_eni_max{fn=\"a\",fn=\"b\"} 3",
            "awscni_eni_max{fn=a} 3",
            "awscni_eni_max{fn=\"a} 3",
            "3awscni 3",
            "awscni_eni_max infinity",
        ] {
            let page = format!("{PAGE}{line}\n");
            let refused = scrape(&page);
            assert!(matches!(refused, Err(BadPage::Line { .. })), "{line}: {refused:?}");
        }
    }

    #[test]
    fn values_that_no_count_can_be_and_pages_of_others_are_refused() {
        for (page, error) in [
            (
                "awscni_eni_max -1\n",
                BadPage::Value { name: "awscni_eni_max".to_owned(), value: "-1".to_owned() },
            ),
            (
                "awscni_eni_max NaN\n",
                BadPage::Value { name: "awscni_eni_max".to_owned(), value: "NaN".to_owned() },
            ),
            ("awscni_eni_max 1\nawscni_eni_max 2\n", BadPage::Twice("awscni_eni_max".to_owned())),
            ("up 1\n", BadPage::Other),
            ("", BadPage::Other),
        ] {
            assert_eq!(scrape(page), Err(error), "{page}");
        }
    }

    proptest! {
        #[test]
        fn no_page_makes_the_reader_fall_over(page in "[ -~\\n\"{}=,#\u{e9}]{0,200}") {
            let _read = scrape(&page);
            let _read = scrape(&format!("{PAGE}{page}"));
        }
    }
}
