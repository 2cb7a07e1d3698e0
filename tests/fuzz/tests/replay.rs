//! Every target on the corpus, on each beginning of its files, and on files changed at random from a fixed seed.
//!
//! `MUSTTLS_FUZZ_ROUNDS` says how many changed files each target gets, `MUSTTLS_FUZZ_SEED` from which seed.

#![cfg(test)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use musttls_fuzz::{ALL, Target};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Some seconds for all targets without optimisation.
const ROUNDS: u32 = 2_000;
/// Longest input, in bytes: the gate reads no more of a stream than its first kilobytes.
const LONGEST: usize = 4_096;

/// A place in an input: one of the first, where most decisions are, or any.
#[derive(Clone, Debug)]
struct Place(Option<usize>, Index);

impl Place {
    fn of(&self, input: &[u8]) -> usize {
        match self.0 {
            Some(early) => early.min(input.len()),
            None => self.1.index(input.len() + 1),
        }
    }
}

/// A change of an input.
#[derive(Clone, Debug)]
enum Change {
    /// A byte becomes another one.
    Set(Place, u8),
    /// A bit is turned over.
    Flip(Place, u8),
    /// Bytes come in.
    Insert(Place, Vec<u8>),
    /// Some bytes go.
    Remove(Place, usize),
    /// Some bytes come once more, elsewhere.
    Repeat(Place, usize, Place),
    /// Nothing comes behind.
    Cut(Place),
    /// What comes behind is from another file.
    Splice(Place, Index, Place),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        // Bytes at which readers decide: sequence ids, types, ends of ranges of lengths.
        let byte = || {
            prop_oneof![
                any::<u8>(),
                select(vec![
                    0, 1, 2, 3, 4, 5, 0x0a, 0x0b, 0x16, 0x7f, 0x80, 0xfb, 0xfc, 0xff
                ]),
            ]
        };
        let place = || (of(0_usize..48), any::<Index>()).prop_map(|(early, any)| Place(early, any));
        prop_oneof![
            4 => (place(), byte()).prop_map(|(at, byte)| Self::Set(at, byte)),
            4 => (place(), 0_u8..8).prop_map(|(at, bit)| Self::Flip(at, bit)),
            2 => (place(), vec(byte(), 1..9)).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
            2 => (place(), 1_usize..40).prop_map(|(at, len)| Self::Remove(at, len)),
            1 => (place(), 1_usize..40, place()).prop_map(|(from, len, to)| Self::Repeat(from, len, to)),
            1 => place().prop_map(Self::Cut),
            1 => (place(), any::<Index>(), place()).prop_map(|(at, file, from)| Self::Splice(at, file, from)),
        ]
    }

    fn apply(&self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        match self {
            Self::Set(place, byte) => {
                let place = place.of(input);
                input.truncate(LONGEST);
                match input.get_mut(place) {
                    Some(old) => *old = *byte,
                    None => input.push(*byte),
                }
            }
            Self::Flip(place, bit) => {
                let place = place.of(input);
                if let Some(byte) = input.get_mut(place) {
                    *byte ^= 1 << bit;
                }
            }
            Self::Insert(place, bytes) => {
                let place = place.of(input);
                input.splice(place..place, bytes.iter().copied());
            }
            Self::Remove(place, len) => {
                let place = place.of(input);
                let end = input.len().min(place + len);
                input.drain(place..end);
            }
            Self::Repeat(from, len, to) => {
                let from = from.of(input);
                let end = input.len().min(from + len);
                let bytes = input[from..end].to_vec();
                let to = to.of(input);
                input.splice(to..to, bytes);
            }
            Self::Cut(place) => {
                let place = place.of(input);
                input.truncate(place);
            }
            Self::Splice(place, file, from) => {
                let place = place.of(input);
                let other = file.get(corpus);
                input.truncate(place);
                input.extend(&other[from.of(other)..]);
            }
        }
        input.truncate(LONGEST);
    }
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(target.corpus);
    let mut files: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files
        .into_iter()
        .map(|path| {
            let bytes = fs::read(&path).unwrap();
            assert!(bytes.len() < 2048, "{} is large", path.display());
            (path, bytes)
        })
        .collect()
}

fn from_environment<T: std::str::FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Err(_) => default,
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}: `{text}` is no number")),
    }
}

/// Runs `target` on changed files and returns the smallest change that breaks a promise.
fn change(target: &Target, rounds: u32) -> Result<(), String> {
    let files: Vec<_> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
    let config = Config {
        cases: rounds,
        failure_persistence: None,
        ..Config::default()
    };
    let seed = from_environment("MUSTTLS_FUZZ_SEED", 1_u64).to_le_bytes();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed);
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, random);
    let inputs =
        (select(files.clone()), vec(Change::any(), 0..6)).prop_map(|(mut input, changes)| {
            for change in &changes {
                change.apply(&mut input, &files);
            }
            Input(input)
        });
    runner
        .run(&inputs, |input| {
            (target.run)(&input.0);
            Ok(())
        })
        .map_err(|error| format!("{}: {error}", target.name))
}

/// Shown as it can be written to a file.
struct Input(Vec<u8>);

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("printf '")?;
        for byte in &self.0 {
            write!(f, "\\x{byte:02x}")?;
        }
        f.write_str("' > FILE")
    }
}

#[test]
fn corpus_and_each_beginning_of_its_files_keep_every_promise() {
    for target in ALL {
        for (path, bytes) in corpus(target) {
            println!("{} {}", target.name, path.display());
            (target.run)(&bytes);
            // Each beginning of the first packets, then some.
            for end in (0..bytes.len().min(96)).chain((96..bytes.len()).step_by(97)) {
                (target.run)(&bytes[..end]);
            }
        }
    }
}

#[test]
fn changed_files_keep_every_promise() {
    let rounds = from_environment("MUSTTLS_FUZZ_ROUNDS", ROUNDS);
    let broken: Vec<_> = ALL
        .iter()
        .filter_map(|target| change(target, rounds).err())
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn broken_promise_is_found_and_shown() {
    fn no_login_claims_tls(stream: &[u8]) {
        assert!(stream.get(5).is_none_or(|flags| *flags != 0x42));
    }
    let target = Target {
        name: "false",
        corpus: "client",
        run: no_login_claims_tls,
    };
    let error = change(&target, 20_000).unwrap_err();
    assert!(error.contains("\\x42"), "{error}");
}

#[test]
fn every_file_belongs_to_a_target() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    for entry in fs::read_dir(top).unwrap() {
        let name = entry.unwrap().file_name();
        let is_used = ALL.iter().any(|target| name == target.corpus);
        assert!(is_used, "no target for tests/corpus/{}", name.display());
    }
}
