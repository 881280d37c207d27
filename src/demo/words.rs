//! Words and text: what is between them.

/// Whether a word sticks to the one before it.
fn sticks(word: &str) -> bool {
    matches!(word, "." | ",")
}

/// Words to text: spaces between them, none before punctuation.
pub fn join<S: AsRef<str>>(words: &[S]) -> String {
    let mut text = String::new();
    for w in words {
        if !text.is_empty() && !sticks(w.as_ref()) {
            text.push(' ');
        }
        text += w.as_ref();
    }
    text
}

/// Text to words: the inverse of [`join`].
pub fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for part in text.split_whitespace() {
        let word = part.trim_end_matches(|c: char| c.is_ascii_punctuation());
        words.extend((!word.is_empty()).then(|| word.to_owned()));
        words.extend(part[word.len()..].chars().map(String::from));
    }
    words
}
