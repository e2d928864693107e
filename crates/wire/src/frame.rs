//! Frames: a length and that many bytes of JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before the JSON.
pub const HEADER_BYTES: usize = 4;

/// The longest frame either side sends or accepts, header excluded, unless it is a report.
///
/// A request is under 2 KiB but for the list of a GC, a reply under 16 KiB with an interface on each of 32 network cards.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The longest report that the daemon sends and whoever asks for one accepts, header excluded.
///
/// One interface of a pod takes some 400 bytes, 800 with the longest names there are. The largest node has 32 network cards and 250 pods
/// with an interface on each: 6.4 million bytes.
pub const REPORT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than is accepted, or empty.
    #[error("a frame of {len} bytes; 1 to {most} are accepted")]
    Length {
        /// What it is.
        len: usize,
        /// What it may be.
        most: usize,
    },
    /// Not the JSON that was expected.
    #[error("not a message of this protocol")]
    Json(#[source] serde_json::Error),
}

/// The whole frame for a message that is no report, header included.
///
/// # Errors
/// When the message is too long.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    encode_within(message, FRAME_BYTES_MAX)
}

/// The whole frame for a message of so many bytes at most, header included.
///
/// # Errors
/// As for [`encode`].
pub fn encode_within(message: &impl Serialize, most: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Json)?;
    let len = frame.len() - HEADER_BYTES;
    let header = u32::try_from(len).ok().filter(|_| len <= most).ok_or(FrameError::Length { len, most })?;
    frame[..HEADER_BYTES].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

/// How many bytes follow this header of a message that is no report.
///
/// # Errors
/// When that is none, or more than is accepted.
pub fn frame_len(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    frame_len_within(header, FRAME_BYTES_MAX)
}

/// How many bytes follow this header, if these are so many at most.
///
/// # Errors
/// As for [`frame_len`].
pub fn frame_len_within(header: [u8; HEADER_BYTES], most: usize) -> Result<usize, FrameError> {
    let len = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if len == 0 || len > most {
        return Err(FrameError::Length { len, most });
    }
    Ok(len)
}

/// The message in a frame's body.
///
/// # Errors
/// When the body is something else.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Json)
}
