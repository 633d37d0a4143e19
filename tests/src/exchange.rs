//! The text form of golden exchanges, as far as others than their player read it.

/// The bytes of a line: `\r`, `\n`, `\t`, `\\`, `\x00`; `\*8192 x` repeats the rest of the line.
pub fn unescape(line: &str) -> Vec<u8> {
    if let Some(repeat) = line.strip_prefix("\\*") {
        let (count, rest) = repeat.split_once(' ').expect("a count and what to repeat");
        return unescape(rest).repeat(count.parse().expect("a count"));
    }
    let mut bytes = Vec::new();
    let mut rest = line.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next().expect("what is escaped") {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'x' => {
                let digits = [rest.next().expect("a digit"), rest.next().expect("a digit")];
                let digits = str::from_utf8(&digits).expect("digits");
                u8::from_str_radix(digits, 16).expect("digits")
            }
            itself => itself,
        });
    }
    bytes
}
