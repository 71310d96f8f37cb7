//! Certificates as text, and as Java's key store.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
const END: &[u8] = b"-----END CERTIFICATE-----";

/// A certificate in DER, whatever it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate(Vec<u8>);

impl Certificate {
    /// The text form, as RFC 7468 has it.
    pub(super) fn to_pem(&self) -> Vec<u8> {
        let mut pem = BEGIN.to_vec();
        for line in STANDARD.encode(&self.0).as_bytes().chunks(64) {
            pem.push(b'\n');
            pem.extend(line);
        }
        pem.push(b'\n');
        pem.extend(END);
        pem.push(b'\n');
        pem
    }

    /// Whether `bytes` hold it, in DER or as text.
    pub(super) fn is_in(&self, bytes: &[u8]) -> bool {
        // A line in the middle: the first ones are the same for many certificates of one authority.
        let text = STANDARD.encode(&self.0);
        let lines: Vec<&[u8]> = text.as_bytes().chunks(64).collect();
        memchr::memmem::find(bytes, lines[lines.len() / 2]).is_some()
            || memchr::memmem::find(bytes, &self.0).is_some()
    }
}

/// The places of the blocks in `pem`, and what each holds; a block that is no base64 is passed over.
fn blocks(pem: &[u8]) -> impl Iterator<Item = (std::ops::Range<usize>, Certificate)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at + memchr::memmem::find(&pem[at..], BEGIN)?;
            let body = start + BEGIN.len();
            let end = body + memchr::memmem::find(&pem[body..], END)?;
            at = end + END.len();
            let text: Vec<u8> = pem[body..end]
                .iter()
                .copied()
                .filter(|byte| !byte.is_ascii_whitespace())
                .collect();
            if let Ok(der) = STANDARD.decode(text)
                && !der.is_empty()
            {
                return Some((start..at, Certificate(der)));
            }
        }
    })
}

/// All certificates of a text, each once.
pub(super) fn parse(pem: &[u8]) -> Vec<Certificate> {
    let mut found = Vec::new();
    for (_, certificate) in blocks(pem) {
        if !found.contains(&certificate) {
            found.push(certificate);
        }
    }
    found
}

/// `pem` without the blocks of `unwanted`, each with the line end behind it; `None` when there are none.
pub(super) fn without(pem: &[u8], unwanted: &[Certificate]) -> Option<Vec<u8>> {
    let mut left = Vec::with_capacity(pem.len());
    let mut from = 0;
    for (range, certificate) in blocks(pem) {
        if unwanted.contains(&certificate) {
            left.extend(&pem[from..range.start]);
            from = range.end + usize::from(pem.get(range.end) == Some(&b'\n'));
        }
    }
    (from > 0).then(|| {
        left.extend(&pem[from..]);
        left
    })
}

/// A JKS key store of trusted certificates, which every Java reads: magic, version 2, entries, and a SHA-1 over the
/// password and all before it.
pub(super) fn java_key_store(certificates: &[Certificate]) -> Vec<u8> {
    const TRUSTED: u32 = 2;
    /// The password that Java's own key stores have.
    const PASSWORD: &str = "changeit";
    let mut store = 0xfeed_feed_u32.to_be_bytes().to_vec();
    let number = |store: &mut Vec<u8>, number: usize| {
        store.extend(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
    };
    let text = |store: &mut Vec<u8>, text: &str| {
        store.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        store.extend(text.as_bytes());
    };
    number(&mut store, 2);
    number(&mut store, certificates.len());
    for (at, Certificate(der)) in certificates.iter().enumerate() {
        store.extend(TRUSTED.to_be_bytes());
        text(&mut store, &format!("host-{at}"));
        store.extend(0_u64.to_be_bytes());
        text(&mut store, "X.509");
        number(&mut store, der.len());
        store.extend(der);
    }
    let mut sum = Sha1::new();
    for unit in PASSWORD.encode_utf16() {
        sum.update(unit.to_be_bytes());
    }
    sum.update(b"Mighty Aphrodite");
    sum.update(&store);
    store.extend(sum.finalize());
    store
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(byte: u8) -> Certificate {
        Certificate(vec![byte; 200])
    }

    #[test]
    fn text_and_back() {
        let [a, b] = [certificate(1), certificate(2)];
        let mut text = b"# comment\r\n".to_vec();
        text.extend(a.to_pem());
        text.extend(b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n");
        text.extend(b.to_pem());
        text.extend(a.to_pem());
        text.extend(b"-----BEGIN CERTIFICATE-----\nAAAA");
        assert_eq!(parse(&text), [a.clone(), b.clone()]);
        assert!(
            a.is_in(&text) && a.is_in(&[7; 9].into_iter().chain(a.0.clone()).collect::<Vec<_>>())
        );
        assert!(!certificate(3).is_in(&text));
    }

    #[test]
    fn only_unwanted_blocks_go() {
        let [a, b] = [certificate(1), certificate(2)];
        let before = [b"head\n".to_vec(), b.to_pem()].concat();
        let text = [before.clone(), a.to_pem(), b"tail".to_vec()].concat();
        assert_eq!(
            without(&text, std::slice::from_ref(&a)),
            Some([before, b"tail".to_vec()].concat())
        );
        assert_eq!(without(&b.to_pem(), &[a]), None);
    }
}
