//! EC2's Query protocol, the answering half: XML whose every element is closed and every text escaped.

use std::fmt::{Display, Write as _};

use types::Moment;

use super::error::ApiError;

/// The body of an answer while it is written.
#[derive(Debug, Default)]
pub(crate) struct Xml(String);

impl Xml {
    /// `<name>value</name>`.
    pub(crate) fn text(&mut self, name: &str, value: impl Display) {
        self.node(name, |xml| xml.escape(&value.to_string()));
    }

    /// `<name>…</name>`.
    pub(crate) fn node(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        self.raw(&["<", name, ">"]);
        inside(self);
        self.raw(&["</", name, ">"]);
    }

    /// `<name><item>…</item><item>…</item></name>`.
    pub(crate) fn list<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut inside: impl FnMut(&mut Self, T),
    ) {
        self.node(name, |xml| {
            for item in items {
                xml.node("item", |xml| inside(xml, item));
            }
        });
    }

    /// `<name><item>text</item><item>text</item></name>`.
    pub(crate) fn texts<T: Display>(&mut self, name: &str, items: impl IntoIterator<Item = T>) {
        self.node(name, |xml| items.into_iter().for_each(|item| xml.text("item", item)));
    }

    /// A whole answer.
    pub(crate) fn response(self, action: &str, request: &str) -> String {
        let mut xml = Self(r#"<?xml version="1.0" encoding="UTF-8"?>"#.to_owned());
        let name = format!("{action}Response");
        xml.raw(&["<", &name, r#" xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">"#]);
        xml.text("requestId", request);
        xml.raw(&[&self.0, "</", &name, ">"]);
        xml.0
    }

    fn raw(&mut self, parts: &[&str]) {
        self.0.extend(parts.iter().copied());
    }

    /// Characters that XML 1.0 cannot have at all are replaced.
    fn escape(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\t' | '\n' => self.0.push(c),
                '\r' => self.0.push_str("&#13;"),
                '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => self.0.push('\u{fffd}'),
                plain => self.0.push(plain),
            }
        }
    }
}

/// The answer that tells an error.
pub(crate) fn error(error: &ApiError, request: &str) -> String {
    let mut xml = Xml(r#"<?xml version="1.0" encoding="UTF-8"?>"#.to_owned());
    xml.node("Response", |xml| {
        xml.node("Errors", |xml| {
            xml.node("Error", |xml| {
                xml.text("Code", &error.code);
                xml.text("Message", &error.message);
            });
        });
        xml.text("RequestID", request);
    });
    xml.0
}

/// A moment as `2026-01-31T23:59:59.000Z`.
pub fn iso8601(moment: Moment) -> String {
    let (seconds, millis) = (moment.0 / 1000, moment.0 % 1000);
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _fine =
        write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z").is_ok();
    text
}

/// Year, month and day of a day counted from 1970-01-01; years are counted from March so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        let mut xml = Xml::default();

        xml.text("a", "<b>&\"\u{0}\r\n");

        assert_eq!(xml.0, "<a>&lt;b&gt;&amp;&quot;\u{fffd}&#13;\n</a>");
    }

    #[test]
    fn lists_have_items() {
        let mut xml = Xml::default();

        xml.list("set", [1, 2], |xml, n| xml.text("n", n));

        assert_eq!(
            xml.response("X", "r").split_once("</requestId>").unwrap().1,
            "<set><item><n>1</n></item><item><n>2</n></item></set></XResponse>"
        );
    }

    #[test]
    fn moments_are_dates() {
        assert_eq!(iso8601(Moment(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso8601(Moment(951_782_399_999)), "2000-02-28T23:59:59.999Z");
        assert_eq!(iso8601(Moment(951_782_400_000)), "2000-02-29T00:00:00.000Z");
        assert_eq!(iso8601(Moment(1_798_761_599_000)), "2026-12-31T23:59:59.000Z");
    }
}
