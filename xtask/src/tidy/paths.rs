//! The paths that a Rust source names: `use` trees unfolded, comments and texts left out, tests left out.

use std::iter;

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, LexError, TokenStream, TokenTree};

/// One path, as it stands in the source: `crate::http::Request` is three segments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    pub segments: Vec<String>,
    pub line: usize,
}

impl Path {
    /// Whether `wanted` (`Instant::now`) stands somewhere in the path.
    pub fn contains(&self, wanted: &str) -> bool {
        let wanted: Vec<&str> = wanted.split("::").collect();
        self.segments
            .windows(wanted.len())
            .any(|window| window.iter().eq(wanted.iter().copied()))
    }
}

/// All paths in `source`, single words included.
pub fn paths(source: &str) -> Result<Vec<Path>> {
    let mut found = Vec::new();
    walk(
        source.parse().map_err(|error: LexError| anyhow!("{error}"))?,
        &mut found,
    );
    Ok(found)
}

fn walk(stream: TokenStream, found: &mut Vec<Path>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at = match token {
            _ if is_test_attribute(&tokens, at) => after_item(&tokens, at),
            TokenTree::Ident(_) => read_path(&tokens, at, &[], found),
            TokenTree::Group(group) => {
                walk(group.stream(), found);
                at + 1
            }
            _ => at + 1,
        };
    }
}

/// Reads the path that starts at `at` behind `prefix`, and returns where it ends.
fn read_path(tokens: &[TokenTree], mut at: usize, prefix: &[String], found: &mut Vec<Path>) -> usize {
    let mut segments = prefix.to_vec();
    let mut line = 0;
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(ident)) => {
                segments.push(ident.to_string());
                line = ident.span().start().line;
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                read_tree(group, &segments, found);
                return at + 1;
            }
            _ => break,
        }
        if !is_double_colon(tokens, at + 1) {
            at += 1;
            break;
        }
        at += 3;
    }
    if segments.len() > prefix.len() {
        found.push(Path { segments, line });
    }
    at
}

/// Reads the branches of a `use` tree.
fn read_tree(group: &Group, prefix: &[String], found: &mut Vec<Path>) {
    let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
    let commas = tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| is_punct(Some(token), ','))
        .map(|(at, _)| at + 1);
    for start in iter::once(0).chain(commas) {
        read_path(&tokens, start, prefix, found);
    }
}

fn is_test_attribute(tokens: &[TokenTree], at: usize) -> bool {
    let Some(TokenTree::Group(group)) = tokens.get(at + 1) else {
        return false;
    };
    is_punct(tokens.get(at), '#') && group.stream().to_string().replace(' ', "") == "cfg(test)"
}

/// The end of the item whose attribute stands at `at`: after its braces, or its semicolon.
fn after_item(tokens: &[TokenTree], at: usize) -> usize {
    let is_end = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        other => is_punct(Some(other), ';'),
    };
    tokens
        .iter()
        .skip(at)
        .position(is_end)
        .map_or(tokens.len(), |offset| at + offset + 1)
}

fn is_double_colon(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<String> {
        paths(source)
            .unwrap()
            .into_iter()
            .map(|path| path.segments.join("::"))
            .collect()
    }

    #[test]
    fn use_trees_unfold() {
        let source = "use crate::{http::{Request, Response}, now::Now}; use std::fs as files;";
        let found = texts(source);
        for path in [
            "crate::http::Request",
            "crate::http::Response",
            "crate::now::Now",
            "std::fs",
        ] {
            assert!(
                found.iter().any(|text| text == path),
                "{path} is not in {found:?}"
            );
        }
    }

    #[test]
    fn expressions_and_macros_are_read_but_texts_comments_and_tests_are_not() {
        let source = r##"
            /// std::fs
            fn f() { let t = Instant::now(); log!("{}", ::std::env::args()); let s = "std::net"; /* a::b */ }
            #[cfg(test)]
            mod tests { fn g() { std::thread::sleep(x) } }
            fn after() { c::d() }
        "##;
        let found = texts(source);
        assert!(found.contains(&"Instant::now".to_owned()), "{found:?}");
        assert!(found.contains(&"std::env::args".to_owned()), "{found:?}");
        assert!(found.contains(&"c::d".to_owned()), "{found:?}");
        assert!(
            !found
                .iter()
                .any(|text| text.contains("fs") || text.contains("net") || text.contains("thread"))
        );
        assert!(!found.contains(&"a::b".to_owned()));
    }

    #[test]
    fn lines_are_those_of_the_source() {
        let found = paths("\n\nuse a::b;").unwrap();
        assert_eq!(found.last().unwrap().line, 3);
    }
}
