//! Text of strangers in a page: escaped, and with what would deceive a reader made visible.

use crate::say;
use std::fmt::Write;

/// `text` between tags or in a quoted attribute. Control characters and what turns the direction of text are shown as escapes; line
/// ends and tabs stay.
pub(super) fn text(text: &str) -> String {
    let plain = say::plain(text);
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// `value` inside a `<script>`: JSON that ends no script and begins no comment.
pub(super) fn json(value: &serde_json::Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => {
                // Writing to text does not fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// A table that can be scrolled sideways, by keyboard too. `head` and `rows` are HTML; of each row the first cell is its heading.
pub(super) fn table(name: &str, head: &[String], rows: &[Vec<String>]) -> String {
    let mut out = format!(
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table>\n<thead><tr>",
        text(name)
    );
    head.iter().for_each(|cell| {
        // A heading must say something; a corner says nothing.
        let _ = if cell.is_empty() { write!(out, "<td></td>") } else { write!(out, "<th scope=\"col\">{cell}</th>") };
    });
    out += "</tr></thead>\n<tbody>\n";
    for row in rows {
        out += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            let _ = match i {
                0 => write!(out, "<th scope=\"row\">{cell}</th>"),
                _ => write!(out, "<td>{cell}</td>"),
            };
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n"
}

/// A section with its heading.
pub(super) fn section(id: &str, title: &str, inner: &str) -> String {
    format!("<section id=\"{id}\" aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{title}</h2>\n{inner}</section>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_strangers_is_text() {
        let hostile = "</script><img src=x onerror=\"a('b')\">&amp;\u{202e}\u{2028}\u{0}\u{1b}\n\té";
        let shown = text(hostile);
        assert_eq!(
            shown,
            "&lt;/script&gt;&lt;img src=x onerror=&quot;a(&#39;b&#39;)&quot;&gt;&amp;amp;\\u{202e}\\u{2028}\\u{0}\\u{1b}\n\té"
        );
        let value = serde_json::json!({"</script><!--": hostile, "x": "\u{7f}\u{85}"});
        let text = json(&value);
        assert!(!text.contains(['<', '>', '&', '\u{2028}', '\u{7f}', '\u{85}']), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
