//! What a build must not leave behind: processes, and mounts in any namespace.

use std::fs;
use std::time::{Duration, Instant};

/// The processes that have `needle` in their arguments, their environment or their mounts, but for `known`.
pub fn of(needle: &str, known: &[u32]) -> Vec<String> {
    let myself = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if known.contains(&pid) {
            continue;
        }
        let text = |file: &str| {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let mount = text("mountinfo")
            .lines()
            .find(|line| line.contains(needle))
            .map(str::to_owned);
        if let Some(mount) = mount {
            found.push(format!(
                "process {pid} ({}) has the mount {mount}",
                text("cmdline").trim()
            ));
        } else if pid != myself
            && (text("cmdline").contains(needle) || text("environ").contains(needle))
        {
            found.push(format!("process {pid}: {}", text("cmdline").trim()));
        }
    }
    found
}

/// Waits until nothing is left; fails after ten seconds.
#[track_caller]
pub fn none(needle: &str, known: &[u32]) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let left = of(needle, known);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left behind:\n{}", left.join("\n"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_is_found_by_its_arguments_and_gone_after_its_end() {
        let needle = "leftover-4711.5";
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", needle])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("sh starts");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while super::of(needle, &[]).is_empty() {
            assert!(std::time::Instant::now() < end, "never seen");
        }
        assert!(super::of(needle, &[child.id()]).is_empty());
        drop(child.stdin.take());
        child.wait().expect("ends");
        super::none(needle, &[]);
    }
}
