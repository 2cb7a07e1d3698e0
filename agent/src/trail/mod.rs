//! The audit file as it is read: by the history, by `musttls events` and `why`, and by `musttls top`.
//!
//! | file | content |
//! |---|---|
//! | `parts` | the audit file and those it was rotated into: what each is known by, its lines in both directions |
//! | `tail` | what has come since the last look, over rotation and truncation |
//! | [`record`] | what a line tells |

mod parts;
pub mod record;
mod tail;

pub use parts::{Part, parts, whole_lines};
pub use tail::Tail;
