//! The `kiln` binary.

mod args;
mod certificates;
mod command_line;
mod commands;
mod container_args;
mod context;
mod credentials;
mod docker_flags;
mod format;
mod later;
mod listing;
mod long_names;
mod manifest_args;
mod reference;
mod settings;
mod signals;
mod storage_args;
mod worker;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else, since namespaces can only be entered while there is a single thread.
    if let Some(code) = worker::serve_if_asked() {
        return code;
    }
    commands::main()
}
