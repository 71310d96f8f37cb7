//! Near names: what somebody may have meant.

/// The option that is nearest to `word`, less than three edits away; case does not count. `None` if there is none, or
/// if `word` is one of them.
pub fn nearest<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIMIT: usize = 3;
    let word = word.to_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for option in options {
        let distance = distance(&word, &option.to_lowercase());
        if distance == 0 {
            return None;
        }
        if distance < best.map_or(LIMIT, |(best, _)| best) {
            best = Some((distance, option));
        }
    }
    best.map(|(_, option)| option)
}

/// `did you mean X?`.
pub fn did_you_mean<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, options).map(|option| format!("did you mean {option}?"))
}

/// The number of characters to insert, delete, replace or swap with the next to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, right) in b.iter().enumerate() {
            let mut edits = (last[j] + usize::from(left != right))
                .min(row[j] + 1)
                .min(last[j + 1] + 1);
            if i > 0 && j > 0 && *left == b[j - 1] && a[i - 1] == *right {
                edits = edits.min(before[j - 1] + 1);
            }
            row.push(edits);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn swapped_letters_are_one_edit() {
        assert_eq!(nearest("RNU", ["ENV", "RUN"]), Some("RUN"));
        assert_eq!(nearest("frmo", ["FROM", "USER"]), Some("FROM"));
        assert_eq!(nearest("ab", ["ba"]), Some("ba"));
        assert_eq!(nearest("", ["abc"]), None);
    }
}
