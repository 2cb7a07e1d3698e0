//! Several files as one: a value of a later layer wins, servers and exceptions add up.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Error};

use super::layers::{Layer, Layers};
use super::walk::Value;

/// Sections that add up. All other arrays are values: the later one replaces.
const ADDED: [&str; 2] = ["server", "exception"];
/// Sections of single keys, each of which a later layer may set.
const JOINED: [&str; 4] = ["audit", "history", "metrics", "control"];

/// Largest file of which every syntax error is told; of a larger one, the first.
const RECOVER_MAX: usize = 256 * 1024;

/// All layers as one table, whose places are those in all texts together; `None` after a syntax error, each of which is
/// given to `wrong` with its layer.
pub(super) fn whole(layers: &Layers, mut wrong: impl FnMut(&Layer, &Error)) -> Option<DeTable<'_>> {
    let mut whole = DeTable::new();
    let mut is_good = true;
    for layer in layers.files() {
        match DeTable::parse(layer.text()) {
            Ok(table) => lay_over(&mut whole, moved_table(table.into_inner(), layer.start())),
            Err(first) => {
                is_good = false;
                if layer.text().len() <= RECOVER_MAX {
                    for error in &DeTable::parse_recoverable(layer.text()).1 {
                        wrong(layer, error);
                    }
                } else {
                    wrong(layer, &first);
                }
            }
        }
    }
    is_good.then_some(whole)
}

/// Lays `above` over `below`. Where one of two sections is of a wrong type, it is the one that stays, for its mistake to be told.
fn lay_over<'t>(below: &mut DeTable<'t>, above: DeTable<'t>) {
    for (key, value) in above {
        let name: &str = key.get_ref();
        let (adds, joins) = (ADDED.contains(&name), JOINED.contains(&name));
        let at = value.span();
        let rest = match (
            below.get_mut(name).map(Spanned::get_mut),
            value.into_inner(),
        ) {
            (Some(DeValue::Array(former)), DeValue::Array(added)) if adds => {
                for one in added {
                    former.push(one);
                }
                continue;
            }
            (Some(DeValue::Table(former)), DeValue::Table(joined)) if joins => {
                for (key, value) in joined {
                    former.insert(key, value);
                }
                continue;
            }
            // It has been wrong before this layer.
            (Some(former), _) if adds && former.as_array().is_none() => continue,
            (Some(former), _) if joins && former.as_table().is_none() => continue,
            (_, value) => value,
        };
        below.insert(key, Spanned::new(at, rest));
    }
}

fn moved_table(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    // Of the lowest layer, which may be large and is most often the only one.
    if by == 0 {
        return table;
    }
    table
        .into_iter()
        .map(|(key, value)| {
            let at = moved_range(&key.span(), by);
            (Spanned::new(at, key.into_inner()), moved(value, by))
        })
        .collect()
}

fn moved(value: Value<'_>, by: usize) -> Value<'_> {
    let at = moved_range(&value.span(), by);
    let value = match value.into_inner() {
        DeValue::Array(values) => DeValue::Array(
            values
                .into_iter()
                .map(|value| moved(value, by))
                .collect::<DeArray<'_>>(),
        ),
        DeValue::Table(table) => DeValue::Table(moved_table(table, by)),
        single => single,
    };
    Spanned::new(at, value)
}

const fn moved_range(at: &Range<usize>, by: usize) -> Range<usize> {
    at.start + by..at.end + by
}
