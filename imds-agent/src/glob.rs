//! Patterns with `*` (any run of characters) and `?` (any one), as in IAM policies and in lists of tap names.

/// Whether the whole of `text` matches `pattern`. Takes at most `pattern * text` steps.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at_pattern, mut at_text) = (0, 0);
    // Where the last star is, and how far it reaches at present.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(at_text) {
        match (pattern.get(at_pattern), star) {
            (Some(b'*'), _) => {
                star = Some((at_pattern, at_text));
                at_pattern += 1;
            }
            (Some(&wanted), _) if wanted == b'?' || wanted == byte => {
                at_pattern += 1;
                at_text += 1;
            }
            (_, Some((at_star, reach))) => {
                star = Some((at_star, reach + 1));
                at_pattern = at_star + 1;
                at_text = reach + 1;
            }
            (_, None) => return false,
        }
    }
    pattern.iter().skip(at_pattern).all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "tap0"),
            ("tap*", "tap"),
            ("tap*", "tap17"),
            ("tap?", "tap1"),
            ("*a*b*c", "xxaxbxbxcxc"),
            ("sts:*Role", "sts:AssumeRole"),
            ("**", "x"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "x"),
            ("tap", "tap0"),
            ("tap?", "tap"),
            ("tap*", "vtap"),
            ("*a*b", "ba"),
            ("?", ""),
            ("a*a", "a"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
