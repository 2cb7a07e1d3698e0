//! Listeners that are covered by their place (network namespace, address, port), because no descriptor leads to them or theirs may
//! not be duplicated.
//!
//! Where the kernel tells the gate of namespaces, a place is one listener's, or those of one user (`SO_REUSEPORT`). Where it does not,
//! a server's place is covered in every namespace.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::linux::fs::MetadataExt as _;

use musttls_common::session::{Listener as Tag, ListenerClass, Place};

use super::{Listener, NewListener};
use crate::address::octets;
use crate::datapath::Listeners;
use crate::error;
use crate::socket;

/// The network namespace of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// The one with this cookie.
    Cookie(u64),
    /// Not the agent's own. Which, the kernel does not tell.
    NotOurs,
    /// Any.
    Unknown,
}

/// The network namespace of the agent.
#[derive(Debug)]
struct Own {
    cookie: u64,
    /// Device and inode number of its file (namespaces(7)).
    file: (u64, u64),
}

impl Own {
    fn find() -> Option<Self> {
        let socket = File::from(
            rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::DGRAM,
                None,
            )
            .ok()?,
        );
        Some(Self {
            cookie: socket::netns_cookie(&socket).ok()?,
            file: namespace_file("self")?,
        })
    }
}

fn namespace_file(pid: &str) -> Option<(u64, u64)> {
    let file = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
    Some((file.st_dev(), file.st_ino()))
}

/// The places that are covered.
#[derive(Debug)]
pub(super) struct Places {
    /// None where the gate cannot tell namespaces.
    own: Option<Own>,
    /// What is to be covered, as the look that goes on finds it.
    wanted: HashMap<Place, Tag>,
    /// What the gate has.
    covered: HashMap<Place, Tag>,
    /// Why something of that is missing.
    missing: HashMap<Place, String>,
}

impl Places {
    pub(super) fn new(tells_namespaces: bool) -> Self {
        Self {
            own: tells_namespaces.then(Own::find).flatten(),
            wanted: HashMap::new(),
            covered: HashMap::new(),
            missing: HashMap::new(),
        }
    }

    /// The namespace of a TCP listener that procfs lists for process `pid`: so it is the process's own.
    pub(super) fn of_process(&self, pid: i32) -> Namespace {
        match (&self.own, namespace_file(&pid.to_string())) {
            (Some(own), Some(file)) if own.file == file => Namespace::Cookie(own.cookie),
            (Some(_), Some(_)) => Namespace::NotOurs,
            _ => Namespace::Unknown,
        }
    }

    /// Has a listener's place covered. Returns whether that is new.
    pub(super) fn want(&mut self, address: SocketAddr, namespace: Namespace, tag: Tag) -> bool {
        let mut any = tag;
        let namespace = match (&self.own, namespace) {
            (Some(_), known) => known,
            (None, _) => Namespace::Unknown,
        };
        match (namespace, &self.own) {
            (Namespace::Cookie(cookie), _) => {
                any = Tag { here: 0, ..tag };
                self.add(place(cookie, address), tag);
            }
            (Namespace::NotOurs, Some(own)) => {
                let nothing = Tag::named(0, ListenerClass::Other);
                self.add(place(own.cookie, address), nothing);
            }
            (Namespace::NotOurs | Namespace::Unknown, _) => {}
        }
        let any_place = place(Place::ANY_NAMESPACE, address);
        self.add(any_place, any);
        !self.covered.contains_key(&any_place)
    }

    /// Of two claims to a place the stricter one holds.
    fn add(&mut self, place: Place, tag: Tag) {
        let strictness = |tag: &Tag| {
            let class = match ListenerClass::from_u8(tag.class) {
                ListenerClass::Classic => 3,
                ListenerClass::X => 2,
                ListenerClass::Pending => 1,
                ListenerClass::Other => 0,
            };
            (tag.here, class)
        };
        let known = self.wanted.entry(place).or_insert(tag);
        if strictness(&tag) > strictness(known) {
            *known = tag;
        }
    }

    /// The look has come to its end: the gate gets what is wanted, and what is not is taken back, since others may listen there.
    pub(super) fn settle(&mut self, maps: &mut Listeners) {
        let wanted = std::mem::take(&mut self.wanted);
        self.missing.clear();
        let left = self.covered.keys().filter(|it| !wanted.contains_key(it));
        for place in left.copied().collect::<Vec<_>>() {
            if take_back(maps, place) {
                self.covered.remove(&place);
                if place.netns == Place::ANY_NAMESPACE {
                    tracing::info!(
                        port = place.port,
                        "no server listens there any more: no longer covered"
                    );
                }
            }
        }
        // The entry for any namespace first: without it the gate does not look for others.
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        wanted.sort_unstable_by_key(|(place, _)| (place.port, place.addr, place.netns));
        for (place, tag) in wanted {
            if self.covered.get(&place) == Some(&tag) {
                continue;
            }
            match maps.tag_place(place, tag) {
                Ok(()) => {
                    self.covered.insert(place, tag);
                }
                Err(full) => {
                    self.missing.insert(place, format!("{full:#}"));
                }
            }
        }
    }

    /// Whether a server may listen where this listener does, at a place that is not covered.
    pub(super) fn is_missing(&self, listener: &NewListener) -> bool {
        self.missing.keys().any(|place| {
            let is_there = listener.netns == Place::ANY_NAMESPACE
                || [Place::ANY_NAMESPACE, listener.netns].contains(&place.netns);
            let is_bound = listener.address.is_none_or(|address| address == place.addr);
            is_there && is_bound && place.port == u32::from(listener.port)
        })
    }

    /// Why a listener is not covered, if so.
    pub(super) fn missing(&self, listener: &Listener) -> Option<&String> {
        let any = place(Place::ANY_NAMESPACE, listener.address);
        let own = match listener.namespace {
            Namespace::Cookie(cookie) => self.missing.get(&place(cookie, listener.address)),
            Namespace::NotOurs | Namespace::Unknown => None,
        };
        self.missing.get(&any).or(own)
    }

    /// What covers a listener that the gate asks about, if that is certain: in the namespace with this cookie, at the address that it is
    /// bound to, if that is known.
    pub(super) fn covering(&self, netns: u64, address: Option<[u8; 16]>, port: u16) -> Option<Tag> {
        let at = |netns: u64| {
            let mut covered = self.covered.iter();
            let found = covered.find(|(place, _)| {
                place.netns == netns
                    && place.port == u32::from(port)
                    && address.is_none_or(|address| place.addr == address)
            });
            found.map(|(_, tag)| *tag)
        };
        let own = (netns != Place::ANY_NAMESPACE).then(|| at(netns)).flatten();
        let any = || at(Place::ANY_NAMESPACE).filter(|any| any.here != 0);
        own.or_else(any)
            .filter(|tag| tag.class != ListenerClass::Other as u8)
    }

    /// Takes back what a former agent has covered and this one has not.
    pub(super) fn forget_former(&self, maps: &mut Listeners) {
        for place in maps.places() {
            if !self.covered.contains_key(&place) {
                take_back(maps, place);
            }
        }
    }
}

fn take_back(maps: &mut Listeners, place: Place) -> bool {
    let untagged = maps.untag_place(place);
    if let Err(error) = &untagged {
        tracing::warn!(
            port = place.port,
            error = error::text(error),
            help = "musttls disarm takes everything off; then start again",
            "a port at which no server listens stays covered"
        );
    }
    untagged.is_ok()
}

fn place(netns: u64, address: SocketAddr) -> Place {
    Place {
        netns,
        addr: octets(address.ip()),
        port: u32::from(address.port()),
        _pad: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u64 = 7;
    const OTHER: u64 = 9;

    fn places(tells_namespaces: bool) -> Places {
        Places {
            own: tells_namespaces.then_some(Own {
                cookie: OWN,
                file: (0, 0),
            }),
            wanted: HashMap::new(),
            covered: HashMap::new(),
            missing: HashMap::new(),
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The classes of what covers a place: in the agent's namespace, in another, where that is not known.
    fn covering(places: &mut Places, at: &str) -> [Option<u8>; 3] {
        places.covered = places.wanted.clone();
        let at = place(0, address(at));
        let port = u16::try_from(at.port).unwrap();
        [OWN, OTHER, 0].map(|netns| {
            let tag = places.covering(netns, Some(at.addr), port);
            tag.map(|tag| tag.class)
        })
    }

    #[test]
    fn place_counts_in_its_namespace_at_its_address() {
        let classic = Tag::named(0, ListenerClass::Classic);
        let yes = Some(ListenerClass::Classic as u8);
        for (tells, namespace, expected) in [
            (true, Namespace::Cookie(OTHER), [None, yes, None]),
            (true, Namespace::Cookie(OWN), [yes, None, None]),
            // The gate is told that it is not here.
            (true, Namespace::NotOurs, [None, yes, yes]),
            (true, Namespace::Unknown, [yes, yes, yes]),
            (false, Namespace::Cookie(OTHER), [yes, yes, yes]),
            (false, Namespace::NotOurs, [yes, yes, yes]),
        ] {
            let mut places = places(tells);
            places.want(address("0.0.0.0:389"), namespace, classic);
            let found = covering(&mut places, "0.0.0.0:389");
            assert_eq!(found, expected, "{tells} {namespace:?}");
            assert_eq!(covering(&mut places, "127.0.0.2:389"), [None; 3]);
            assert_eq!(covering(&mut places, "0.0.0.0:390"), [None; 3]);
        }
    }

    /// A program cannot weaken what is said of a server at the same place.
    #[test]
    fn stricter_of_two_claims_to_a_place_holds() {
        let at = address("0.0.0.0:3306");
        let [classic, x] = [ListenerClass::Classic, ListenerClass::X].map(|it| Tag::named(0, it));
        for order in [[classic, x], [x, classic]] {
            let mut places = places(false);
            for tag in order {
                places.want(at, Namespace::Unknown, tag);
            }
            let found = covering(&mut places, "0.0.0.0:3306");
            assert_eq!(found, [Some(ListenerClass::Classic as u8); 3]);
        }
        // Elsewhere and here.
        let mut places = places(true);
        places.want(at, Namespace::NotOurs, x);
        places.want(at, Namespace::Cookie(OWN), classic);
        let found = covering(&mut places, "0.0.0.0:3306");
        let class = |class: ListenerClass| Some(class as u8);
        let x = class(ListenerClass::X);
        assert_eq!(found, [class(ListenerClass::Classic), x, x]);
    }
}
