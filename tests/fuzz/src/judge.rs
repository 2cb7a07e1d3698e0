//! What one segment of the client's stream proves.

use musttls_common::judge::{Judgement, Segment, judge, may_overtake};
use musttls_common::mysql::{FLAGS_HIGH_OFFSET, FLAGS_HIGH_SSL, FLAGS_LOW_OFFSET, Greeting};
use musttls_common::verdict::Hold;

const GREETINGS: [Greeting; 6] = [
    Greeting::Unknown,
    Greeting::WithoutTls,
    Greeting::WithTls,
    Greeting::Error,
    Greeting::Foreign,
    Greeting::MysqlX,
];
/// Starts of the segments that are tried: around the flags, and a keep-alive probe.
const STARTS: std::ops::Range<i32> = -2..9;
/// Lengths that are tried beside that of the whole stream.
const LENGTHS: std::ops::Range<u32> = 1..12;

/// Judges every short segment of the stream around the flags, and the whole, and asserts what a server can rely on
/// that takes any mixture of those that passed.
pub fn target(stream: &[u8]) {
    let Ok(whole) = u32::try_from(stream.len()) else {
        return;
    };
    for greeting in GREETINGS {
        for claimed in [false, true] {
            for start in STARTS {
                for len in LENGTHS.chain([whole.saturating_add_signed(-start)]) {
                    for urgent in [false, true] {
                        let segment = Segment { start, len, urgent };
                        if len > 0 && segment.end() <= i64::from(whole) {
                            one(stream, segment, greeting, claimed);
                        }
                    }
                }
            }
        }
    }
}

fn one(stream: &[u8], segment: Segment, greeting: Greeting, claimed: bool) {
    let byte_at = |offset: i64| stream.get(usize::try_from(offset).ok()?).copied();
    let judgement = judge(segment, greeting, claimed, |index| {
        assert!(index < segment.len, "read behind the segment");
        byte_at(i64::from(segment.start) + i64::from(index))
    });
    let case = || format!("{segment:?} {greeting:?} claimed: {claimed}");
    for ahead_from in [None, Some(6), Some(36)] {
        let overtakes = may_overtake(segment, greeting, ahead_from, |index| {
            byte_at(i64::from(segment.start) + i64::from(index))
        });
        let is_behind = segment.start > FLAGS_HIGH_OFFSET.cast_signed();
        let may = is_behind && !segment.urgent && greeting == Greeting::WithTls;
        assert!(may || !overtakes, "{} ahead of {ahead_from:?}", case());
    }
    let (low, high) = (
        segment.covers(FLAGS_LOW_OFFSET),
        segment.covers(FLAGS_HIGH_OFFSET),
    );
    match judgement {
        Judgement::Neutral => {
            assert!(!low && !high, "{}: flags passed unseen", case());
            let is_head = segment.end() <= i64::from(FLAGS_LOW_OFFSET);
            assert!(is_head || claimed, "{}: passed before a claim", case());
        }
        Judgement::Claim => {
            assert!(low && high, "{}: a claim of one flag byte", case());
            assert_eq!(greeting, Greeting::WithTls, "{}", case());
        }
        Judgement::SplitClaim => assert!(high && !low, "{}", case()),
        Judgement::Plaintext(_) | Judgement::Hold(_) => {}
    }
    if segment.urgent {
        assert_eq!(judgement, Judgement::Hold(Hold::Urgent), "{}", case());
        return;
    }
    let is_claim = matches!(judgement, Judgement::Claim | Judgement::SplitClaim);
    if is_claim || judgement == Judgement::Neutral {
        let wrong_id = segment.covers(3) && byte_at(3) != Some(1);
        assert!(!wrong_id, "{}: what is no login passed", case());
    }
    if is_claim {
        let flags = byte_at(i64::from(FLAGS_HIGH_OFFSET)).unwrap_or_default();
        assert_ne!(flags & FLAGS_HIGH_SSL, 0, "{}: no claim of TLS", case());
    }
    // A claim that passed before opens nothing that it could not have passed itself.
    if claimed && (low || high) {
        let before = judge(segment, greeting, false, |index| {
            byte_at(i64::from(segment.start) + i64::from(index))
        });
        assert_eq!(judgement, before, "{}", case());
    }
}
