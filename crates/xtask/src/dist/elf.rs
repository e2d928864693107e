//! What kind of program a file is: the image has no C library and no interpreter, so that only static programs start in it.

/// Bytes of the head of a 64-bit file, and of one of its program headers.
const HEAD_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
/// The segment that names the interpreter, by which dynamic programs are known.
const INTERPRETER: u64 = 3;

/// Whether these bytes are a static program for a machine (`e_machine` of `elf.h`); if not, why.
pub(super) fn check(program: &[u8], machine: u64) -> Result<(), String> {
    // 64 bits, little-endian.
    if program.len() < HEAD_BYTES || !program.starts_with(b"\x7fELF\x02\x01") {
        return Err("is no 64-bit program".to_owned());
    }
    let is_for = number(program, 18, 2)?;
    if is_for != machine {
        return Err(format!("is for machine {is_for}, not {machine}"));
    }
    let (start, size, count) = (number(program, 32, 8)?, number(program, 54, 2)?, number(program, 56, 2)?);
    if usize::try_from(size).ok() != Some(SEGMENT_BYTES) {
        return Err(format!("has program headers of {size} bytes"));
    }
    for segment in 0..count {
        let at = usize::try_from(start.saturating_add(segment * size)).unwrap_or(usize::MAX);
        if number(program, at, 4)? == INTERPRETER {
            return Err("needs shared libraries, which the image has not".to_owned());
        }
    }
    Ok(())
}

/// The little-endian number at a place.
fn number(bytes: &[u8], at: usize, size: usize) -> Result<u64, String> {
    let field = bytes.get(at..).and_then(|rest| rest.get(..size)).ok_or("ends too early")?;
    Ok(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A program for a machine with segments of these types.
    pub(in super::super) fn program(machine: u8, segments: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES + segments.len() * SEGMENT_BYTES];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = machine;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::try_from(segments.len()).unwrap();
        for (at, segment) in segments.iter().enumerate() {
            bytes[HEAD_BYTES + at * SEGMENT_BYTES] = *segment;
        }
        bytes
    }

    #[test]
    fn a_static_program_of_the_machine_is_right_and_every_other_says_why_not() {
        assert_eq!(check(&program(62, &[1, 2]), 62), Ok(()));
        assert!(check(&program(183, &[1]), 62).unwrap_err().contains("machine 183"));
        assert!(check(&program(62, &[1, 3]), 62).unwrap_err().contains("shared libraries"));
    }

    #[test]
    fn what_is_no_program_or_is_cut_short_is_told() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &program(62, &[1])[..63]] {
            assert!(check(bytes, 62).unwrap_err().contains("no 64-bit program"));
        }
        assert!(check(&program(62, &[1, 2])[..100], 62).unwrap_err().contains("ends too early"));
        let mut far = program(62, &[1]);
        far[32..40].fill(0xff);
        assert!(check(&far, 62).is_err());
    }

    #[test]
    fn this_very_test_is_a_dynamic_program_or_a_static_one() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let machine = number(&own, 18, 2).unwrap();

        assert_eq!(check(&own, machine).is_ok(), cfg!(target_feature = "crt-static"));
    }
}
