//! Runs containers for real: in this process as root, in a worker as root, and in workers of a plain user.
//!
//! Has a `main` of its own, since the program is executed again as the worker. Needs root, `/bin/busybox` and, for the
//! plain user's part, the user `kilntest` with subordinate ids (`useradd -m kilntest`); what is missing is said.

mod cases;
mod front;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("worker") => front::worker(&args[1..]),
        Some("front") => front::run(&args[1], &args[2..]),
        _ => front::all(&args),
    }
}
