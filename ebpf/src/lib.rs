//! Marker crate: see `main.rs` for the gate.
#![no_std]
