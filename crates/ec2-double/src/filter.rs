//! `Filter.N`: what a describing call is narrowed to.

use std::collections::BTreeMap;

use super::error::ApiError;
use super::query::Params;

/// One filter: any of the values must match.
#[derive(Debug)]
pub(crate) struct Filter {
    name: String,
    values: Vec<String>,
}

/// The filters of a call; refuses names that are neither in `known` nor about a tag.
pub(crate) fn filters(params: &Params, known: &[&str]) -> Result<Vec<Filter>, ApiError> {
    let filter = |group: &Params| {
        let name = group.need("Name")?.to_owned();
        if !known.contains(&name.as_str()) && !name.starts_with("tag:") {
            return Err(ApiError::value(format!("The filter '{name}' is invalid")));
        }
        let values = group.list("Value").into_iter().map(str::to_owned).collect();
        Ok(Filter { name, values })
    };
    params.groups("Filter").iter().map(filter).collect()
}

/// Whether an object passes all filters; `fields` gives its values for a filter's name.
pub(crate) fn passes(
    filters: &[Filter],
    tags: &BTreeMap<String, String>,
    fields: impl Fn(&str) -> Vec<String>,
) -> bool {
    filters.iter().all(|filter| {
        let found = match filter.name.strip_prefix("tag:") {
            Some(key) => tags.get(key).cloned().into_iter().collect(),
            None if filter.name == "tag-key" => tags.keys().cloned().collect(),
            None => fields(&filter.name),
        };
        found.iter().any(|text| filter.values.iter().any(|pattern| matches(pattern, text)))
    })
}

/// EC2's wildcards: `*` for any text, `?` for one character, a backslash before either for itself.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (tokens(pattern), text.chars().collect::<Vec<_>>());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match (pattern.get(p), star) {
            (Some(Token::Any), _) => {
                star = Some((p, t));
                p += 1;
            }
            (Some(token), _) if token.is(text.get(t)) => (p, t) = (p + 1, t + 1),
            (_, Some((at, from))) => {
                star = Some((at, from + 1));
                (p, t) = (at + 1, from + 1);
            }
            (_, None) => return false,
        }
    }
    pattern.iter().skip(p).all(|token| *token == Token::Any)
}

#[derive(Debug, PartialEq)]
enum Token {
    Any,
    One,
    Is(char),
}

impl Token {
    fn is(&self, c: Option<&char>) -> bool {
        match self {
            Self::Any => false,
            Self::One => c.is_some(),
            Self::Is(wanted) => c == Some(wanted),
        }
    }
}

fn tokens(pattern: &str) -> Vec<Token> {
    let mut chars = pattern.chars();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Any,
            '?' => Token::One,
            '\\' => Token::Is(chars.next().unwrap_or('\\')),
            plain => Token::Is(plain),
        });
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_ec2_says() {
        for (pattern, text) in
            [("*", ""), ("a*c", "abbc"), ("a?c", "abc"), ("*b*", "abc"), ("a\\*", "a*"), ("", "")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a*c", "abd"), ("a?c", "ac"), ("a\\*", "ab"), ("", "a"), ("a", "")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        assert!(!matches(&"*a".repeat(50), &"a".repeat(49)));
    }
}
