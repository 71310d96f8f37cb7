//! Writes a number of seconds as people do: `how-long 90061` prints `1day 1h 1m 1s`.

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let Some(seconds) = seconds else {
        eprintln!("usage: how-long SECONDS");
        return ExitCode::from(2);
    };
    println!(
        "{}",
        humantime::format_duration(Duration::from_secs(seconds))
    );
    ExitCode::SUCCESS
}
