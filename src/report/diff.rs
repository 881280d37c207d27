//! Two texts, word by word: what one has that the other has not.

use super::html;

/// Words of a text that are compared; longer ones stand side by side without marks.
const MOST_WORDS: usize = 1200;

/// HTML of both texts, with `<del>` around what only the first has and `<ins>` around what only the second has.
pub(super) fn marked(before: &str, after: &str) -> [String; 2] {
    let (a, b) = (words(before), words(after));
    if a.len() > MOST_WORDS || b.len() > MOST_WORDS {
        return [html::text(before), html::text(after)];
    }
    let common = common(&a, &b);
    [
        put(&a, &common.iter().map(|c| c.0).collect::<Vec<_>>(), "del"),
        put(&b, &common.iter().map(|c| c.1).collect::<Vec<_>>(), "ins"),
    ]
}

/// Words, and the white space between them.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = 0;
    let mut before = None;
    for (at, c) in text.char_indices() {
        let kind = (c.is_whitespace(), !c.is_alphanumeric() && !c.is_whitespace());
        // Every mark of punctuation is a word of its own.
        if before.is_some_and(|b| b != kind || kind.1) {
            words.push(&text[start..at]);
            start = at;
        }
        before = Some(kind);
    }
    if start < text.len() {
        words.push(&text[start..]);
    }
    words
}

/// Places of a longest common subsequence.
fn common(a: &[&str], b: &[&str]) -> Vec<(usize, usize)> {
    let wide = b.len() + 1;
    let mut longest = vec![0u16; (a.len() + 1) * wide];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * wide + j] = match a[i] == b[j] {
                true => longest[(i + 1) * wide + j + 1] + 1,
                false => longest[(i + 1) * wide + j].max(longest[i * wide + j + 1]),
            };
        }
    }
    let (mut i, mut j, mut places) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            places.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * wide + j] >= longest[i * wide + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    places
}

fn put(words: &[&str], common: &[usize], tag: &str) -> String {
    let mut out = String::new();
    let mut at = 0;
    for next in common.iter().copied().chain([words.len()]) {
        if at < next {
            out += &format!("<{tag}>{}</{tag}>", html::text(&words[at..next].concat()));
        }
        out += &words.get(next).map_or_else(String::new, |word| html::text(word));
        at = next + 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_differs_is_marked() {
        assert_eq!(
            marked("a good film, sir", "a bad film!"),
            ["a <del>good</del> film<del>, sir</del>", "a <ins>bad</ins> film<ins>!</ins>"]
        );
        assert_eq!(marked("<b>", "<b>x"), ["&lt;b&gt;", "&lt;b&gt;<ins>x</ins>"]);
        assert_eq!(marked("", "x"), ["", "<ins>x</ins>"]);
        let long = "w ".repeat(MOST_WORDS);
        assert!(!marked(&long, "w").concat().contains('<'));
    }

    proptest! {
        /// Without its marks each side is its text; what is unmarked is the same on both.
        #[test]
        fn nothing_is_lost(a in "[ab ,]{0,40}", b in "[ab ,]{0,40}") {
            let [before, after] = marked(&a, &b);
            let without = |html: &str, tag: &str| html.replace(&format!("<{tag}>"), "").replace(&format!("</{tag}>"), "");
            prop_assert_eq!((without(&before, "del"), without(&after, "ins")), (a, b));
            let unmarked = |html: &str, tag: &str| {
                let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
                let parts = html.split(&open).map(|p| p.split(&close).last().unwrap().to_owned());
                parts.collect::<String>()
            };
            prop_assert_eq!(unmarked(&before, "del"), unmarked(&after, "ins"));
        }
    }
}
