//! The forms in which metrics are served, and which of them somebody asks for. Pure.
//!
//! Prometheus asks for OpenMetrics and gets it. Whoever does not ask (the Go version's helper for CloudWatch, Telegraf) reads the text format
//! 0.0.4 and nothing else: one text that its parser does not take costs such a reader the whole cluster's.
//! Sources: the OpenMetrics specification 1.0, Prometheus' "Exposition formats", and RFC 9110, 12.5.1, for `Accept`.

use std::fmt::Write as _;

/// A form of the metrics' text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Classic,
}

impl Format {
    /// What an `Accept` asks for; text where it asks for nothing that is served, as the Go version does.
    pub(crate) fn wanted(accept: &str) -> Self {
        let (mut open, mut classic) = (None, None);
        for range in accept.split(',').filter_map(Range::of) {
            let best = match (range.media, range.version) {
                ("application/openmetrics-text", "" | "1.0.0") => &mut open,
                ("text/plain", "" | "0.0.4") | ("text/*" | "*/*", _) => &mut classic,
                _ => continue,
            };
            *best = Some(best.map_or(range.quality, |best: f32| best.max(range.quality)));
        }
        match open {
            Some(open) if open > 0.0 && open >= classic.unwrap_or_default() => Self::OpenMetrics,
            Some(_) | None => Self::Classic,
        }
    }

    /// Its media type.
    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// A text in OpenMetrics, in this form.
    pub(crate) fn of(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Classic => classic(&open_metrics),
        }
    }
}

/// One of the ranges of an `Accept`.
struct Range<'a> {
    media: &'a str,
    /// The parameter `version`; empty for none.
    version: &'a str,
    /// From 0 (not at all) to 1.
    quality: f32,
}

impl<'a> Range<'a> {
    /// `None` for what cannot be read: nobody is served what they may not have meant.
    fn of(text: &'a str) -> Option<Self> {
        let mut words = text.split(';').map(str::trim);
        let mut range = Self { media: words.next()?, version: "", quality: 1.0 };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            match name.trim() {
                "version" => range.version = value.trim().trim_matches('"'),
                "q" => range.quality = value.trim().parse().ok().filter(|q| (0.0..=1.0).contains(q))?,
                _ => {}
            }
        }
        Some(range)
    }
}

/// A metric's kind, and the name under which the text format 0.0.4 describes it.
enum Described<'a> {
    As(String, &'a str),
    /// It belongs to the metric before it.
    Before,
}

/// OpenMetrics as the text format 0.0.4, which has the suffix of counters in their description, no unknown kind, no units, and no end.
/// What is of unknown kind here are counts under names of the Go version, where they are counters; two of those that
/// follow each other and end in `_sum` and `_count` are a summary there.
fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let (mut help, mut summary) = ("", "");
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap_or((typed, "untyped"));
            let is_count = name.strip_suffix("_count").is_some_and(|base| base == summary);
            let described = match (kind, name.strip_suffix("_sum")) {
                ("unknown", Some(base)) => {
                    summary = base;
                    Described::As(base.to_owned(), "summary")
                }
                ("unknown", None) if is_count => Described::Before,
                ("unknown", None) => Described::As(name.to_owned(), "counter"),
                ("counter", _) => Described::As(format!("{name}_total"), kind),
                _ => Described::As(name.to_owned(), kind),
            };
            if let Described::As(name, kind) = described {
                // A String takes everything.
                let _taken = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            }
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it_and_prefer_nothing_else() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [
            prometheus_2,
            prometheus_3,
            "application/openmetrics-text",
            "text/plain;q=0.5, application/openmetrics-text; version=\"1.0.0\"; q=0.5",
        ] {
            assert_eq!(Format::wanted(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "application/json",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            // Telegraf's, and the one of `expfmt` without OpenMetrics.
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.3",
            "text/plain, application/openmetrics-text;q=0.9",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=high",
            ";;=,\u{fffd}",
        ] {
            assert_eq!(Format::wanted(accept), Format::Classic, "{accept}");
        }
    }

    #[test]
    fn the_classic_form_names_kinds_as_its_parsers_know_them() {
        let open = concat!(
            "# HELP a_calls Calls.\n# TYPE a_calls counter\na_calls_total{b=\"# TYPE\"} 1\n",
            "# HELP a_seconds Times.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\na_seconds_bucket{le=\"+Inf\"} 0\n",
            "# HELP old_ms_sum Together.\n# TYPE old_ms_sum unknown\nold_ms_sum 1.5\n",
            "# HELP old_ms_count How many.\n# TYPE old_ms_count unknown\nold_ms_count 2\n",
            "# HELP old_count Old.\n# TYPE old_count unknown\nold_count 3\n",
            "# HELP g A gauge.\n# TYPE g gauge\ng 7\n# EOF\n",
        );

        let classic = Format::Classic.of(open.to_owned());

        let expected = concat!(
            "# HELP a_calls_total Calls.\n# TYPE a_calls_total counter\na_calls_total{b=\"# TYPE\"} 1\n",
            "# HELP a_seconds Times.\n# TYPE a_seconds histogram\na_seconds_bucket{le=\"+Inf\"} 0\n",
            "# HELP old_ms Together.\n# TYPE old_ms summary\nold_ms_sum 1.5\nold_ms_count 2\n",
            "# HELP old_count Old.\n# TYPE old_count counter\nold_count 3\n",
            "# HELP g A gauge.\n# TYPE g gauge\ng 7\n",
        );
        assert_eq!(classic, expected);
        assert_eq!(Format::OpenMetrics.of(open.to_owned()), open);
    }
}
