//! Frames: a length and that many bytes of JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before the JSON.
pub const HEADER_BYTES: usize = 4;

/// The longest frame either side sends or accepts, header excluded.
///
/// A request is under 2 KiB; a report of a node with 737 pods, the largest there is, about 400 KiB.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_BYTES_MAX`], or empty.
    #[error("a frame of {0} bytes; 1 to {FRAME_BYTES_MAX} are accepted")]
    Length(usize),
    /// Not the JSON that was expected.
    #[error("not a message of this protocol")]
    Json(#[source] serde_json::Error),
}

/// The whole frame for a message, header included.
///
/// # Errors
/// When the message is too long.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Json)?;
    let len = frame.len() - HEADER_BYTES;
    let header = u32::try_from(len).ok().filter(|_| len <= FRAME_BYTES_MAX).ok_or(FrameError::Length(len))?;
    frame[..HEADER_BYTES].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

/// How many bytes follow this header.
///
/// # Errors
/// When that is none, or more than is accepted.
pub fn frame_len(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let len = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if len == 0 || len > FRAME_BYTES_MAX {
        return Err(FrameError::Length(len));
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
