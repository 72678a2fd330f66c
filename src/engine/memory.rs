//! How much memory this process may still take.

use std::fs;
use std::process::Command;

/// Bytes that are free for this process, as far as the system says: `MemAvailable` on Linux, and what the
/// control group leaves of its limit, whichever is less; on macOS half of the machine's memory, as what is
/// free there cannot be read without a system call. `None` where nothing can be read.
pub fn available() -> Option<u64> {
    if cfg!(target_os = "macos") {
        return Some(machine_memory()? / 2);
    }
    let system = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| mem_available(&text));
    match (system, control_group()) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (system, group) => system.or(group),
    }
}

/// The machine's memory by macOS's own tool.
fn machine_memory() -> Option<u64> {
    let output = Command::new("/usr/sbin/sysctl")
        .args(["-n", "hw.memsize"])
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// What the version 2 control group that a container's processes see as their root leaves free.
fn control_group() -> Option<u64> {
    let read = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup/{name}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line_of_available_memory() {
        let text = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    512 kB\n";
        assert_eq!(mem_available(text), Some(512 * 1024));
        assert_eq!(mem_available("MemTotal: 5 kB\n"), None);
    }
}
