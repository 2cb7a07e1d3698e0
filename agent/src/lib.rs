//! The agent: finds servers, compiles the policy, loads the gate, carries out refusals, keeps the record.

pub mod audit;
pub mod bypass;
pub mod capability;
pub mod cipher;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod confine;
pub mod console;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod doctor;
pub mod error;
pub mod except;
pub mod login;
pub mod metrics;
pub mod older;
pub mod policy;
pub mod refusal;
pub mod scan;
pub mod servers;
pub mod socket;
pub mod status;
