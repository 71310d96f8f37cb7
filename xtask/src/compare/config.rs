//! Differences between two image configs, but for what is new in each build: times, ids, digests.

use serde_json::Value;

/// Keys that no two builds share.
const OWN: [&str; 5] = ["created", "id", "container", "diff_ids", "docker_version"];

/// One line for each differing value, with its path. A key that is null is as good as missing.
pub fn config_differences(ours: &Value, theirs: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("config", ours, theirs, &mut found);
    found
}

fn compare(at: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(left), Value::Object(right)) => {
            let mut keys: Vec<&String> = left.keys().chain(right.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys.into_iter().filter(|key| !OWN.contains(&key.as_str())) {
                let side = |map: &serde_json::Map<String, Value>| {
                    map.get(key).cloned().unwrap_or(Value::Null)
                };
                compare(&format!("{at}.{key}"), &side(left), &side(right), found);
            }
        }
        (Value::Array(left), Value::Array(right)) => {
            for number in 0..left.len().max(right.len()) {
                let side = |list: &[Value]| list.get(number).cloned().unwrap_or(Value::Null);
                compare(&format!("{at}[{number}]"), &side(left), &side(right), found);
            }
        }
        _ if ours == theirs => {}
        _ => {
            if !ours.is_null() {
                found.push(format!("- {at} = {ours}"));
            }
            if !theirs.is_null() {
                found.push(format!("+ {at} = {theirs}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_and_ids_are_left_out_the_rest_is_told_with_its_path() {
        let ours = json!({"created": "1", "config": {"Env": ["A=1", "B=2"], "Cmd": null},
            "rootfs": {"diff_ids": ["x"]}, "history": [{"created": "1", "created_by": "RUN a"}]});
        let theirs = json!({"created": "2", "config": {"Env": ["A=1"]},
            "rootfs": {"diff_ids": ["y"]}, "history": [{"created": "2", "created_by": "RUN b"}]});
        assert_eq!(
            config_differences(&ours, &theirs),
            [
                "- config.config.Env[1] = \"B=2\"",
                "- config.history[0].created_by = \"RUN a\"",
                "+ config.history[0].created_by = \"RUN b\"",
            ]
        );
    }
}
