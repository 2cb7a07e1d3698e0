//! For tests (feature `probe`): the kernel is asked what the gate finds in the policy's tables.

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{CgroupSkb, TestRun as _, TestRunOptions};
use musttls_common::probe::Probe;

use super::{Answers, Loaded, program, refused, take};

const PROGRAM: &str = "on_probe";

/// Bytes of an Ethernet header, which `BPF_PROG_TEST_RUN` takes off (`bpf_prog_test_run_skb`, `net/bpf/test_run.c`). Its last two say
/// what follows.
const ETHERNET_LEN: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// A gate that is attached nowhere, to be asked.
pub struct Prober {
    gate: Ebpf,
    probe: Array<MapData, Probe>,
    /// What the agent says of the conditions that sessions meet.
    pub answers: Answers,
}

impl Loaded {
    /// Loads the program that answers.
    pub fn prober(mut self) -> Result<Prober> {
        let gate = &mut self.gate;
        let asked: &mut CgroupSkb = program(gate, PROGRAM)?;
        asked.load().map_err(|error| refused(PROGRAM, error))?;
        Ok(Prober {
            probe: take(gate, "PROBE")?,
            answers: Answers(take(gate, "ANSWERS")?),
            gate: self.gate,
        })
    }
}

impl Prober {
    /// What the gate finds for the login that is the payload of `packet`, which begins with its IP header.
    pub fn ask(&mut self, question: Probe, packet: &[u8]) -> Result<Probe> {
        self.probe.set(0, question, 0).context("write map PROBE")?;
        let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        let mut frame = vec![0; ETHERNET_LEN - 2];
        frame.extend(if is_v4 {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        });
        frame.extend(packet);
        let asked: &mut CgroupSkb = program(&mut self.gate, PROGRAM)?;
        let run = asked.test_run(TestRunOptions {
            data_in: Some(&frame),
            ..TestRunOptions::new()
        });
        run.context("run the gate's program on_probe (BPF_PROG_TEST_RUN)")?;
        let answer = self.probe.get(&0, 0).context("read map PROBE")?;
        ensure!(
            answer.read_ns != 0,
            "the gate could not read the packet, or has no policy"
        );
        Ok(answer)
    }
}
