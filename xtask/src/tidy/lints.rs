//! What a source says of lints for itself and for all modules in it: its inner attributes.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, LexError, TokenStream, TokenTree};

/// The level that each lint is set to by `#![...]`, outside of tests; where there are several the last is in force.
pub fn levels(source: &str) -> Result<BTreeMap<String, String>> {
    let tokens: TokenStream = source.parse().map_err(|error: LexError| anyhow!("{error}"))?;
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut levels = BTreeMap::new();
    for window in tokens.windows(3) {
        if let [
            TokenTree::Punct(hash),
            TokenTree::Punct(bang),
            TokenTree::Group(attribute),
        ] = window
            && (hash.as_char(), bang.as_char()) == ('#', '!')
            && attribute.delimiter() == Delimiter::Bracket
        {
            read(attribute.stream(), &mut levels);
        }
    }
    Ok(levels)
}

/// Reads one attribute: `level(lints)`, or `cfg_attr(not(test), level(lints))`.
fn read(attribute: TokenStream, levels: &mut BTreeMap<String, String>) {
    let mut tokens = attribute.into_iter();
    let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(group))) = (tokens.next(), tokens.next()) else {
        return;
    };
    match name.to_string().as_str() {
        "cfg_attr" => {
            let mut parts = parts(&group).into_iter();
            if parts
                .next()
                .is_some_and(|condition| text(&condition) == "not(test)")
            {
                parts.for_each(|part| read(part, levels));
            }
        }
        level @ ("allow" | "expect" | "warn" | "deny" | "forbid") => {
            for lint in parts(&group) {
                levels.insert(text(&lint), level.to_owned());
            }
        }
        _ => {}
    }
}

/// What stands between the commas of `group`.
fn parts(group: &Group) -> Vec<TokenStream> {
    let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
    tokens
        .split(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ','))
        .map(|part| part.iter().cloned().collect())
        .collect()
}

/// Without spaces, which the compiler puts where it likes.
fn text(tokens: &TokenStream) -> String {
    tokens.to_string().replace(char::is_whitespace, "")
}
