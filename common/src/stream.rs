//! Reads a byte stream that arrives in any cut.
//!
//! A [`Reader`] is a small state machine that is fed one byte after the other and says which bytes
//! it does not need. [`step`] drives it over a segment of the stream: repeated bytes are passed over, a
//! gap ends the work, and the answer never depends on where the cuts are.

/// A state machine over a byte stream.
pub trait Reader {
    /// Offset in the stream of the next byte that is wanted, in bytes.
    fn position(&self) -> u32;
    /// Whether nothing more is wanted.
    fn is_done(&self) -> bool;
    /// Takes the byte at [`Reader::position`] and moves on, past the bytes that are not needed.
    fn take(&mut self, byte: u8);
}

/// Feeds `reader` with one byte of the segment `start..end` (offsets in the stream), if the byte it wants
/// is in there. `load` gives the byte at an offset inside the segment.
///
/// Returns whether there may be more to do.
#[inline(always)]
pub fn step<R: Reader>(
    reader: &mut R,
    start: u32,
    end: u32,
    load: impl FnOnce(u32) -> Option<u8>,
) -> bool {
    let at = reader.position();
    if reader.is_done() || at < start || at >= end {
        return false;
    }
    let Some(byte) = load(at) else { return false };
    reader.take(byte);
    true
}

/// Feeds `reader` with all of a segment, in at most `steps` bytes. Returns whether `steps` was enough.
pub fn advance<R: Reader>(
    reader: &mut R,
    start: u32,
    end: u32,
    steps: u32,
    mut load: impl FnMut(u32) -> Option<u8>,
) -> bool {
    (0..steps).any(|_| !step(reader, start, end, &mut load))
}
