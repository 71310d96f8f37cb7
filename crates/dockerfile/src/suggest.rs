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

/// The number of characters to insert, delete or replace to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
