//! What every [`Reader`] of a byte stream promises, however TCP cuts it.

use std::collections::BTreeSet;
use std::fmt::Debug;

use musttls_common::stream::{Reader, advance};

/// Cuts of a stream that are tried: more would take long and say the same.
const CUTS: usize = 48;

/// Feeds `reader`, whose bytes begin at `start` in its stream, and asserts:
///
/// - it wants bytes in rising order, one step is one byte, and it ends;
/// - every cut of the stream, repeated bytes included, and every byte alone gives the same answer;
/// - a gap ends the reading without an answer of its own;
/// - bytes that it did not ask for do not matter;
/// - an answer that `settled` calls final after a prefix is the answer to the whole.
///
/// Returns the reader behind the whole stream.
pub(crate) fn check<R>(reader: R, start: u32, stream: &[u8], settled: impl Fn(&R) -> bool) -> R
where
    R: Reader + Copy + Debug + PartialEq,
{
    let mut asked = Vec::new();
    let mut whole = reader;
    feed(&mut whole, start, stream, 0..stream.len(), |at| {
        asked.push(at);
    });
    assert!(
        asked.is_sorted_by(|before, behind| before < behind),
        "bytes are wanted in rising order: {asked:?}"
    );

    let cuts: BTreeSet<_> = (0..=CUTS)
        .map(|part| stream.len() * part / CUTS)
        .chain(0..stream.len().min(CUTS))
        .collect();
    let mut each = reader;
    let mut position = each.position();
    for (at, _) in stream.iter().enumerate() {
        feed(&mut each, start, stream, at..at + 1, drop);
        assert!(each.position() >= position, "it went backwards at {at}");
        position = each.position();
    }
    assert_eq!(each, whole, "one byte a segment");

    for &cut in &cuts {
        let mut cut_in_two = reader;
        feed(&mut cut_in_two, start, stream, 0..cut, drop);
        if settled(&cut_in_two) {
            assert!(settled(&whole), "settled at {cut} and then not");
            if cut_in_two.is_done() {
                assert_eq!(cut_in_two, whole, "done at {cut} and then something else");
            }
        }
        let again = cut.saturating_sub(3);
        feed(&mut cut_in_two, start, stream, again..stream.len(), drop);
        assert_eq!(cut_in_two, whole, "cut at {cut}");

        // The byte that is wanted next is left out.
        let mut gap = reader;
        feed(&mut gap, start, stream, 0..cut, drop);
        let before = gap;
        let behind = usize::try_from(gap.position().wrapping_sub(start)).unwrap_or(usize::MAX);
        if behind < stream.len() {
            feed(&mut gap, start, stream, behind + 1..stream.len(), drop);
            assert_eq!(gap, before, "read over a gap at {behind}");
        }
    }

    let mut other = stream.to_vec();
    for (at, byte) in other.iter_mut().enumerate() {
        let is_asked = u32::try_from(at).is_ok_and(|at| asked.binary_search(&(start + at)).is_ok());
        if !is_asked {
            *byte = !*byte;
        }
    }
    let mut same = reader;
    feed(&mut same, start, &other, 0..other.len(), drop);
    assert_eq!(same, whole, "a byte that was not asked for matters");
    whole
}

fn feed<R: Reader>(
    reader: &mut R,
    start: u32,
    stream: &[u8],
    part: std::ops::Range<usize>,
    mut asked: impl FnMut(u32),
) {
    let at = |place: usize| start + u32::try_from(place).unwrap_or(u32::MAX - start);
    let steps = at(part.len()) - start + 1;
    let (first, end) = (at(part.start), at(part.end));
    let is_enough = advance(reader, first, end, steps, |offset| {
        assert!(
            first <= offset && offset < end,
            "{offset} is not in {first}..{end}"
        );
        asked(offset);
        let place = usize::try_from(offset - start).unwrap_or(usize::MAX);
        stream.get(place).copied()
    });
    assert!(is_enough, "more steps than bytes");
}
