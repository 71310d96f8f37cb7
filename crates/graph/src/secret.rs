//! Which variables hold secrets.

/// Whether a variable of this name is taken to hold a secret, by the words of the check `SecretsUsedInArgOrEnv`: its value
/// is not shown, nor kept where others can read it.
pub fn is_secret_name(name: &str) -> bool {
    const WORDS: [&str; 10] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    let name = name.to_lowercase();
    let mut words = name.split('_');
    words.any(|word| WORDS.contains(&word)) && !name.split('_').any(|word| word == "public")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words() {
        for name in ["API_KEY", "token", "My_Password", "AUTH_URL"] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["MONKEY", "PUBLIC_KEY", "KEYS", "TOKENS_OF_LOVE", ""] {
            assert!(!is_secret_name(name), "{name}");
        }
    }
}
