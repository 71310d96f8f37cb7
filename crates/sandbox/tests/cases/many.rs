//! Many containers.

use std::fs;
use std::time::{Duration, Instant};

use kiln_sandbox::{Cancel, Exit, Network, spawn};

use super::{Privilege, Root, chain, children, run};

pub(super) fn many_in_a_row(_: Privilege) {
    let root = Root::new();
    let process = root.process(&["/bin/busybox", "true"]);
    let cancel = Cancel::new().unwrap();
    let mut times: Vec<Duration> = (0..100)
        .map(|_| {
            let started = Instant::now();
            assert!(spawn(&process).unwrap().wait(&cancel).unwrap().success());
            started.elapsed()
        })
        .collect();
    times.sort();
    eprintln!(
        "  a container takes {:?} (median), {:?} at most",
        times[50], times[99]
    );
    // Far from the usual time, for a busy machine.
    assert!(times[50] < Duration::from_millis(50), "{:?}", times[50]);
}

pub(super) fn many_at_once(_: Privilege) {
    let root = Root::new();
    let before = fs::read_dir("/proc/self/fd").unwrap().count();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let root = &root;
            scope.spawn(move || {
                for round in 0..50u8 {
                    let mut process = root.sh(&format!("echo {thread}-{round}; exit {round}"));
                    process.cwd = format!("/work/{thread}/{round}").into();
                    if round % 10 == 0 {
                        process.network = Network::None;
                    }
                    let (exit, text) =
                        run(process).unwrap_or_else(|error| panic!("{}", chain(&error)));
                    assert_eq!(
                        (exit, text),
                        (Exit::Code(round), format!("{thread}-{round}\n"))
                    );
                }
            });
        }
    });
    assert_eq!(children(), 0);
    assert_eq!(
        fs::read_dir("/proc/self/fd").unwrap().count(),
        before,
        "descriptors are left"
    );
}
