//! What queries of Prometheus ask for: names of metrics, and names of labels. Enough of the language to find them, no more.
//!
//! Whether a query is right is for Prometheus itself to say.

use std::collections::BTreeMap;

/// Words before a list of labels.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words between two operands.
const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

/// What one query asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Metrics, each with the labels by which it is selected and the texts that they are compared with.
    pub metrics: Vec<(String, Vec<(String, String)>)>,
    /// Labels by which is grouped or joined.
    pub labels: Vec<String>,
}

/// What a query asks for; `None` for one that ends in the middle of something.
#[must_use]
pub fn wanted(query: &str) -> Option<Wanted> {
    let mut wanted = Wanted::default();
    let mut rest = query.trim_start();
    while let Some(first) = rest.chars().next() {
        let word: String = rest.chars().take_while(|c| is_word(*c)).collect();
        if word.is_empty() {
            let end = if first == '[' { rest.find(']')? + 1 } else { first.len_utf8() };
            rest = rest.get(end..)?.trim_start();
            continue;
        }
        rest = rest.get(word.len()..)?.trim_start();
        if first.is_ascii_digit() || OPERATORS.contains(&word.as_str()) {
            continue;
        }
        if BEFORE_LABELS.contains(&word.as_str()) {
            let (labels, after) = rest.strip_prefix('(')?.split_once(')')?;
            wanted
                .labels
                .extend(labels.split(',').map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned));
            rest = after.trim_start();
        } else if !rest.starts_with('(') && !["by", "without"].contains(&first_word(rest)) {
            // Neither a function nor what sums up, so a metric.
            let mut matchers = Vec::new();
            if let Some(inside) = rest.strip_prefix('{') {
                (matchers, rest) = self::matchers(inside)?;
            }
            wanted.metrics.push((word, matchers));
        }
    }
    Some(wanted)
}

fn first_word(text: &str) -> &str {
    text.split(|c| !is_word(c)).next().unwrap_or_default()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.')
}

/// Labels and the texts that they are compared with, up to the brace that ends them; and what follows.
fn matchers(text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut matchers = Vec::new();
    let mut rest = text.trim_start();
    while !rest.starts_with('}') {
        let (label, after) = rest.split_once(['=', '!'])?;
        let (value, after) = after.split_once('"')?.1.split_once('"')?;
        matchers.push((label.trim().to_owned(), value.to_owned()));
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    Some((matchers, rest.get(1..)?.trim_start()))
}

/// What there is: of each metric in the text format the labels that it has, with their values.
#[must_use]
pub fn told(text: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let mut told: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name: String = line.chars().take_while(|c| is_word(*c)).collect();
        let labels = line.get(name.len()..).and_then(|rest| rest.strip_prefix('{')).and_then(matchers);
        told.entry(name).or_default().extend(labels.map(|(labels, _)| labels).unwrap_or_default());
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(query: &str) -> Vec<String> {
        wanted(query).unwrap().metrics.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn metrics_are_told_from_functions_numbers_and_words() {
        let query = "topk(10, sum by (a, b) (rate(x_total{l=~\"p|q\", m!=\"}\"}[5m])) / on (c) group_left () y) > 0.2e3 or vector(0) unless z offset 1h";

        let wanted = wanted(query).unwrap();

        assert_eq!(names(query), ["x_total", "y", "z"]);
        let matchers = [("l", "p|q"), ("m", "}")].map(|(l, v)| (l.to_owned(), v.to_owned()));
        assert_eq!(wanted.metrics[0].1, matchers);
        assert_eq!(wanted.labels, ["a", "b", "c"]);
    }

    #[test]
    fn a_query_that_ends_early_is_none() {
        for query in ["a{b=\"c\"", "a[5m", "sum by (a", "a{b}"] {
            assert_eq!(wanted(query), None, "{query}");
        }
    }

    #[test]
    fn labels_and_values_are_read_from_the_text_format() {
        let told = told("# TYPE a counter\na_total{b=\"c\",d=\"e f\"} 1\na_total{b=\"x\"} 2\ng 3\n# EOF\n");

        let of_a = [("b", "c"), ("d", "e f"), ("b", "x")].map(|(l, v)| (l.to_owned(), v.to_owned()));
        assert_eq!(told["a_total"], of_a);
        assert_eq!(told["g"], []);
    }
}
