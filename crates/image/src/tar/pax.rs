//! PAX records: `length keyword=value\n`, the length counting itself.

use super::Fault;

/// The records of one extended header, in order; a later one wins over an earlier one.
#[derive(Default)]
pub(super) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, Fault> {
        const BAD: Fault = "damaged PAX record";
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let space = bytes
                .iter()
                .take(20)
                .position(|&byte| byte == b' ')
                .ok_or(BAD)?;
            let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| BAD)?;
            if length <= space + 1 || length > bytes.len() {
                return Err(BAD);
            }
            let (record, rest) = bytes.split_at(length);
            let (newline, record) = record[space + 1..].split_last().ok_or(BAD)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
            if *newline != b'\n'
                || key.is_empty()
                || key.contains(&0)
                || is_text && value.contains(&0)
            {
                return Err(BAD);
            }
            records.push((key.to_vec(), value.to_vec()));
            bytes = rest;
        }
        Ok(Self(records))
    }

    /// All records in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(key, value)| (&key[..], &value[..]))
    }

    /// The last record of a key; an empty value takes back what an earlier header said, so it is as good as none.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let (_, value) = self.0.iter().rev().find(|(known, _)| known == key)?;
        (!value.is_empty()).then_some(value)
    }

    /// A whole number.
    pub(super) fn number(&self, key: &[u8]) -> Result<Option<i64>, Fault> {
        self.get(key).map(decimal).transpose()
    }

    /// A time, with a fraction or without.
    pub(super) fn time(&self, key: &[u8]) -> Result<Option<(i64, u32)>, Fault> {
        self.get(key).map(time).transpose()
    }
}

/// A decimal number with an optional minus.
pub(super) fn decimal(text: &[u8]) -> Result<i64, Fault> {
    const BAD: Fault = "a PAX number is no number";
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let value = digits.iter().try_fold(0_i64, |value, digit| {
        value.checked_mul(10)?.checked_add(i64::from(digit - b'0'))
    });
    value
        .map(|value| if negative { -value } else { value })
        .ok_or(BAD)
}

fn time(text: &[u8]) -> Result<(i64, u32), Fault> {
    const BAD: Fault = "a PAX time is no time";
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let whole = parts.next().unwrap_or_default();
    let seconds = decimal(whole).map_err(|_| BAD)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    // What is finer than a nanosecond is cut.
    let nanoseconds = (0..9).fold(0, |value, at| {
        value * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'))
    });
    if whole.starts_with(b"-") && nanoseconds > 0 {
        return Ok((
            seconds.checked_sub(1).ok_or(BAD)?,
            1_000_000_000 - nanoseconds,
        ));
    }
    Ok((seconds, nanoseconds))
}

/// The text of a time: without the fraction's trailing zeros.
pub(super) fn time_text((seconds, nanoseconds): (i64, u32)) -> String {
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    let (sign, seconds, nanoseconds) = if seconds < 0 {
        ("-", -(seconds + 1), 1_000_000_000 - nanoseconds)
    } else {
        ("", seconds, nanoseconds)
    };
    format!("{sign}{seconds}.{nanoseconds:09}")
        .trim_end_matches('0')
        .to_owned()
}

/// Appends one record.
pub(super) fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The space, the equals sign and the newline.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times() {
        let cases = [
            ("0", (0, 0)),
            ("1.5", (1, 500_000_000)),
            ("1.000000001", (1, 1)),
            ("1.0000000019", (1, 1)),
            ("1.", (1, 0)),
            ("-1", (-1, 0)),
            ("-1.25", (-2, 750_000_000)),
            ("-0.5", (-1, 500_000_000)),
        ];
        for (text, value) in cases {
            assert_eq!(time(text.as_bytes()), Ok(value), "{text}");
        }
        for text in [
            "",
            ".",
            ".5",
            "x",
            "1.x",
            "1.-5",
            "--1",
            "1e3",
            "99999999999999999999",
        ] {
            assert!(time(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn damaged() {
        let cases: &[&[u8]] = &[
            b"5 a=b",
            b"6 a=bx",
            b"7 a=b\n",
            b"a=b\n",
            b"0 a=b\n",
            b"3 \n",
            b"5 ab\n",
            b"6 =ab\n",
            b"-6 a=b\n",
            b"10 path=\0x\n",
        ];
        for bytes in cases {
            assert!(
                Records::parse(bytes).is_err(),
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
        assert!(Records::parse(b"6 a=b\n").is_ok());
    }

    proptest! {
        #[test]
        fn round_trip(key in "[^=\\x00]{1,120}", value in proptest::collection::vec(any::<u8>(), 0..1100), seconds in -1_i64 << 40..1 << 40, nanoseconds in 0..1_000_000_000_u32) {
            let mut bytes = Vec::new();
            put_record(&mut bytes, key.as_bytes(), &value);
            put_record(&mut bytes, b"mtime", time_text((seconds, nanoseconds)).as_bytes());
            let records = Records::parse(&bytes);
            prop_assume!(!matches!(key.as_str(), "path" | "linkpath" | "uname" | "gname" | "mtime"));
            let records = records.unwrap();
            prop_assert_eq!(records.iter().next().unwrap(), (key.as_bytes(), &value[..]));
            prop_assert_eq!(records.time(b"mtime").unwrap(), Some((seconds, nanoseconds)));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60), text in "[0-9]{1,2} [a-z]{0,3}=?[a-z]{0,4}\n?") {
            let _ = Records::parse(&bytes);
            let _ = Records::parse(text.as_bytes());
            let _ = time(&bytes);
        }
    }
}
