//! Points in time as tags write them: RFC 3339.

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use types::Moment;

/// A moment in UTC, to the second.
pub(crate) fn written(at: Moment) -> String {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    // Only years beyond 9999 cannot be written.
    DateTime::from_secs(seconds).fmt(Format::DateTime).unwrap_or_default()
}

/// The moment that a text names, if it names one.
pub(crate) fn read(text: &str) -> Option<Moment> {
    let at = DateTime::from_str(text, Format::DateTimeWithOffset).ok()?;
    u64::try_from(at.to_millis().ok()?).ok().map(Moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_utc_and_read_with_any_offset() {
        let at = Moment(951_827_696_000);

        assert_eq!(written(at), "2000-02-29T12:34:56Z");
        assert_eq!(read("2000-02-29T12:34:56Z"), Some(at));
        assert_eq!(read("2000-02-29T14:34:56+02:00"), Some(at));
        for nonsense in ["", "yesterday", "2000-02-30T00:00:00Z", "1960-01-01T00:00:00Z"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
