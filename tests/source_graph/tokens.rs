//! One file: the paths it names, its string literals, its `unsafe`, its statics.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use std::str::FromStr;

/// A path as it stands in the source.
#[derive(Clone, Debug)]
pub struct Mention {
    /// Module in which it stands.
    pub module: Vec<String>,
    /// Its segments, `crate`, `self` and `super` included.
    pub path: Vec<String>,
    /// Where it stands in a `use`: the name it brings in (`*` for all).
    pub brings: Option<String>,
    /// Whether that `use` is public: a re-export.
    pub reexport: bool,
    /// Line, from 1.
    pub line: usize,
}

/// What one file names.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// Its module.
    pub module: Vec<String>,
    /// Modules that it declares, inline ones included.
    pub modules: Vec<Vec<String>>,
    /// Macros that it exports: they are named at the root.
    pub macros: Vec<String>,
    /// Paths.
    pub mentions: Vec<Mention>,
    /// String literals outside documentation, with their lines.
    pub strings: Vec<(String, usize)>,
    /// Lines with `unsafe`.
    pub unsafe_lines: Vec<usize>,
    /// `static` items outside `thread_local!`, with their lines.
    pub statics: Vec<(String, usize)>,
    /// Names of lints that it allows or denies, as `deny(unsafe_code)`.
    pub lints: Vec<String>,
}

impl File {
    /// `path` is below `src/`.
    pub fn parse(path: &str, text: &str) -> Self {
        let mut module: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|m| m == "mod") || path == "lib.rs" {
            module.pop();
        }
        let tokens = TokenStream::from_str(text).unwrap_or_else(|e| panic!("{path}: {e}"));
        let mut file = File { module: module.clone(), ..File::default() };
        file.scan(&module, tokens);
        file
    }

    fn scan(&mut self, module: &[String], tokens: TokenStream) {
        let t: Vec<TokenTree> = tokens.into_iter().collect();
        let mut i = 0;
        while i < t.len() {
            i = self.next(module, &t, i);
        }
    }

    /// Reads what begins at `i`; returns where the next begins.
    fn next(&mut self, module: &[String], t: &[TokenTree], i: usize) -> usize {
        match &t[i] {
            TokenTree::Punct(p) if p.as_char() == '#' => self.attribute(module, t, i),
            TokenTree::Ident(id) => match id.to_string().as_str() {
                "use" => self.import(module, t, i),
                "mod" if matches!(t.get(i + 1), Some(TokenTree::Ident(_))) => self.module(module, t, i),
                "macro_rules" if exported(t, i) => {
                    self.macros.push(t[i + 2].to_string());
                    i + 3
                }
                "unsafe" => {
                    self.unsafe_lines.push(id.span().start().line);
                    i + 1
                }
                "static" => {
                    let name = t[i + 1..].iter().find_map(|t| match t {
                        TokenTree::Ident(n) if *n != "mut" => Some(n.to_string()),
                        _ => None,
                    });
                    let lifetime = i > 0 && is(&t[i - 1], '\'');
                    if let (Some(name), false) = (name, lifetime) {
                        self.statics.push((name, id.span().start().line));
                    }
                    i + 1
                }
                // What is in it belongs to a thread, not to the process.
                "thread_local" => i + 3,
                _ => self.path(module, t, i),
            },
            TokenTree::Group(g) => {
                self.scan(module, g.stream());
                i + 1
            }
            TokenTree::Literal(l) => {
                let text = l.to_string();
                if text.contains('"') {
                    self.strings.push((text, l.span().start().line));
                }
                i + 1
            }
            TokenTree::Punct(_) => i + 1,
        }
    }

    fn attribute(&mut self, module: &[String], t: &[TokenTree], i: usize) -> usize {
        let at = if t.get(i + 1).is_some_and(|t| is(t, '!')) { i + 2 } else { i + 1 };
        let Some(TokenTree::Group(g)) = t.get(at) else { return i + 1 };
        let text = g.stream().to_string().replace(' ', "");
        if text == "cfg(test)" {
            return after_item(t, at + 1);
        }
        if text.starts_with("allow(") || text.starts_with("deny(") || text.starts_with("forbid(") {
            self.lints.push(text);
        } else if !text.starts_with("doc") {
            self.scan(module, g.stream());
        }
        at + 1
    }

    fn module(&mut self, module: &[String], t: &[TokenTree], i: usize) -> usize {
        let inner = [module, &[t[i + 1].to_string()]].concat();
        self.modules.push(inner.clone());
        if let Some(TokenTree::Group(g)) = t.get(i + 2) {
            self.scan(&inner, g.stream());
        }
        i + 3
    }

    fn import(&mut self, module: &[String], t: &[TokenTree], i: usize) -> usize {
        let end = (i..t.len()).find(|&j| is(&t[j], ';')).unwrap_or(t.len());
        // `pub use`, `pub(crate) use`, `pub(in path) use`.
        let public = (i.saturating_sub(2)..i).any(|j| matches!(&t[j], TokenTree::Ident(id) if *id == "pub"))
            && !(i.saturating_sub(2)..i).any(|j| is(&t[j], ';'));
        self.tree(module, &t[i + 1..end], &[], public);
        end + 1
    }

    fn tree(&mut self, module: &[String], t: &[TokenTree], before: &[String], reexport: bool) {
        let mut path = before.to_vec();
        let mut line = 0;
        for (j, token) in t.iter().enumerate() {
            match token {
                TokenTree::Ident(id) if *id == "as" => {
                    let name = t.get(j + 1).map(ToString::to_string);
                    return self.brought(module, path, name, reexport, line);
                }
                TokenTree::Ident(id) => {
                    line = id.span().start().line;
                    path.push(id.to_string());
                }
                TokenTree::Punct(p) if p.as_char() == '*' => {
                    return self.brought(module, path, Some("*".into()), reexport, p.span().start().line);
                }
                TokenTree::Group(g) => {
                    let inner: Vec<TokenTree> = g.stream().into_iter().collect();
                    for branch in inner.split(|t| is(t, ',')).filter(|b| !b.is_empty()) {
                        self.tree(module, branch, &path, reexport);
                    }
                    return;
                }
                _ => {}
            }
        }
        self.brought(module, path, None, reexport, line);
    }

    fn brought(&mut self, module: &[String], path: Vec<String>, name: Option<String>, reexport: bool, line: usize) {
        let mut path = path;
        if path.len() > 1 && path.last().is_some_and(|p| p == "self") {
            path.pop();
        }
        let name = name.or_else(|| path.last().cloned());
        self.mentions.push(Mention { module: module.to_vec(), path, brings: name, reexport, line });
    }

    /// `a::b::c`, and the macro `a!`.
    fn path(&mut self, module: &[String], t: &[TokenTree], i: usize) -> usize {
        let mut path = vec![t[i].to_string()];
        let mut j = i + 1;
        while j + 2 < t.len() && is(&t[j], ':') && is(&t[j + 1], ':') {
            let TokenTree::Ident(id) = &t[j + 2] else { break };
            path.push(id.to_string());
            j += 3;
        }
        let macro_call = t.get(j).is_some_and(|t| is(t, '!')) && matches!(t.get(j + 1), Some(TokenTree::Group(_)));
        if macro_call {
            path.last_mut().expect("one segment at least").push('!');
        }
        let field = i > 0 && is(&t[i - 1], '.');
        if (path.len() > 1 || macro_call) && !field {
            let line = t[i].span().start().line;
            self.mentions.push(Mention { module: module.to_vec(), path, brings: None, reexport: false, line });
        }
        j
    }
}

fn is(t: &TokenTree, c: char) -> bool {
    matches!(t, TokenTree::Punct(p) if p.as_char() == c)
}

/// Whether `#[macro_export]` stands right before the item at `i`.
fn exported(t: &[TokenTree], i: usize) -> bool {
    i > 0 && matches!(&t[i - 1], TokenTree::Group(g) if g.stream().to_string() == "macro_export")
}

/// Past the item that begins at `i`: its block, or its semicolon.
fn after_item(t: &[TokenTree], mut i: usize) -> usize {
    while i < t.len() {
        match &t[i] {
            TokenTree::Group(g) if braces(g) => return i + 1,
            TokenTree::Punct(p) if p.as_char() == ';' || p.as_char() == ',' => return i + 1,
            _ => i += 1,
        }
    }
    i
}

fn braces(g: &Group) -> bool {
    g.delimiter() == Delimiter::Brace
}
