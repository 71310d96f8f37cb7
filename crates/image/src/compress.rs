//! Compression of layers: told by their first bytes when read, the same bytes on every machine when written.
//!
//! A digest of compressed bytes must not depend on how many processors there are, nor on how the bytes arrive. So gzip
//! is written as members of one fixed size of input, each compressed by itself; and zstd always by its multithreaded
//! encoder, whose output does not depend on the number of threads, while that of its plain one differs from it.

use std::io::{self, BufRead, Read, Write};

use libdeflater::CompressionLvl;

use crate::gzip::Gzip;
use crate::media_type;

/// The most memory that an xz stream may demand, in KiB; `xz -9` demands 65 MiB.
const XZ_MEMORY: u32 = 512 << 10;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952, one or several members.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Only read.
    Bzip2,
    /// Only read.
    Xz,
}

/// How many bytes [`Compression::sniff`] wants to see.
pub const MAGIC_LEN: usize = 6;

impl Compression {
    /// Tells by the first [`MAGIC_LEN`] bytes; fewer only where there are no more.
    pub fn sniff(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            // A frame, or a skippable one in front of it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            // With the start of the first block or of the end, since `BZh1` could start a file name in a tar.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }

    /// What a layer's media type says; `None` for what is no layer that Kiln can read.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        if !media_type::is_layer(media_type) {
            return None;
        }
        let plain = media_type.split_once("tar").map(|(_, suffix)| suffix)?;
        match plain {
            "" => Some(Self::None),
            "+gzip" | ".gzip" => Some(Self::Gzip),
            "+zstd" | ".zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The OCI media type of a layer compressed like this; `None` where there is none.
    pub fn oci_layer(self) -> Option<&'static str> {
        match self {
            Self::None => Some(media_type::OCI_LAYER),
            Self::Gzip => Some(media_type::OCI_LAYER_GZIP),
            Self::Zstd => Some(media_type::OCI_LAYER_ZSTD),
            Self::Bzip2 | Self::Xz => None,
        }
    }

    /// Docker's media type of a layer compressed like this; `None` where there is none.
    pub fn docker_layer(self) -> Option<&'static str> {
        match self {
            Self::None => Some(media_type::DOCKER_LAYER),
            Self::Gzip => Some(media_type::DOCKER_LAYER_GZIP),
            Self::Zstd => Some(media_type::DOCKER_LAYER_ZSTD),
            Self::Bzip2 | Self::Xz => None,
        }
    }

    /// The level used where none is given.
    pub fn default_level(self) -> i32 {
        match self {
            // The fastest one whose results are no larger than those of the usual encoders at their usual level.
            Self::Gzip => 4,
            Self::Zstd => 3,
            Self::None | Self::Bzip2 | Self::Xz => 0,
        }
    }

    /// Names the encoder for records: the same id and the same input always give the same bytes. A test with known
    /// outputs tells when a new version of a library asks for a new id.
    pub fn encoder_id(self, level: i32) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Gzip => format!("gzip-libdeflate-1-{level}"),
            Self::Zstd => format!("zstd-1-{level}"),
            Self::Bzip2 => "bzip2".to_owned(),
            Self::Xz => "xz".to_owned(),
        }
    }
}

/// Whether the first bytes (at least [`MAGIC_LEN`] where there are so many) are those of something compressed.
pub fn is_compressed(magic: &[u8]) -> bool {
    Compression::sniff(magic) != Compression::None
}

/// Finds out how `source` is compressed and decompresses it, all its members or frames. Damage and a cut-off end are
/// errors of the reader.
pub fn decoder<'a>(
    mut source: impl BufRead + Send + 'a,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut magic = Vec::with_capacity(MAGIC_LEN);
    (&mut source)
        .take(MAGIC_LEN as u64)
        .read_to_end(&mut magic)?;
    let compression = Compression::sniff(&magic);
    let source = io::Cursor::new(magic).chain(source);
    Ok((
        compression,
        match compression {
            Compression::None => Box::new(source),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
            Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
            Compression::Xz => {
                Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, XZ_MEMORY))
            }
        },
    ))
}

/// Compresses what is written to it. The output depends on the bytes, the kind and the level alone. Must be ended with
/// [`Encoder::finish`].
#[derive(Debug)]
pub struct Encoder<W: Write>(Kind<W>);

enum Kind<W: Write> {
    None(W),
    Gzip(Gzip<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> std::fmt::Debug for Kind<W> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::None(_) => "None",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl<W: Write> Encoder<W> {
    /// Starts compressing in up to `threads` threads. Levels: gzip 1 to 12, zstd 1 to 22.
    ///
    /// # Errors
    /// For a kind that is only read, and for an unknown level.
    pub fn new(compression: Compression, level: i32, threads: usize, out: W) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let threads = threads.max(1);
        Ok(Self(match compression {
            Compression::None => Kind::None(out),
            Compression::Gzip => {
                let known = CompressionLvl::new(level).ok().filter(|_| level > 0);
                let level = known.ok_or_else(|| {
                    invalid(format!("gzip compression levels are 1 to 12, not {level}"))
                })?;
                Kind::Gzip(Gzip::new(level, threads, out))
            }
            Compression::Zstd => {
                if !(1..=22).contains(&level) {
                    return Err(invalid(format!(
                        "zstd compression levels are 1 to 22, not {level}"
                    )));
                }
                let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
                encoder.multithread(u32::try_from(threads).unwrap_or(1))?;
                Kind::Zstd(encoder)
            }
            Compression::Bzip2 | Compression::Xz => {
                return Err(invalid(
                    "layers can be compressed with gzip and zstd only".to_owned(),
                ));
            }
        }))
    }

    /// Writes the end and gives back the destination.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Kind::None(mut out) => {
                out.flush()?;
                Ok(out)
            }
            Kind::Gzip(gzip) => gzip.finish(),
            Kind::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::None(out) => out.write(bytes),
            Kind::Gzip(gzip) => gzip.write(bytes),
            Kind::Zstd(encoder) => encoder.write(bytes),
        }
    }

    /// Does nothing but for uncompressed output: a flush in the middle would change the bytes.
    fn flush(&mut self) -> io::Result<()> {
        if let Kind::None(out) = &mut self.0 {
            out.flush()
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;
    use crate::gzip::MEMBER;

    /// Text that compresses, the same everywhere.
    fn sample(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"etaoin shrdlu\n"[(state >> 24) as usize % 14]
        };
        (0..len).map(|_| next()).collect()
    }

    fn compressed(compression: Compression, threads: usize, step: usize, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(
            compression,
            compression.default_level(),
            threads,
            Vec::new(),
        )
        .unwrap();
        for part in bytes.chunks(step) {
            encoder.write_all(part).unwrap();
            encoder.flush().unwrap();
        }
        encoder.finish().unwrap()
    }

    fn plain(bytes: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let mut all = Vec::new();
        // A buffer smaller than the magic: it must not be looked for in one read.
        let (compression, mut decoder) = decoder(io::BufReader::with_capacity(3, bytes))?;
        decoder.read_to_end(&mut all)?;
        Ok((compression, all))
    }

    #[test]
    fn the_same_bytes_however_they_come() {
        let bytes = sample((5 << 20) + 123);
        for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
            let once = compressed(compression, 1, usize::MAX, &bytes);
            assert_eq!(plain(&once).unwrap(), (compression, bytes.clone()));
            for (threads, step) in [(2, 7_777), (3, 1 << 20), (4, usize::MAX)] {
                assert!(
                    compressed(compression, threads, step, &bytes) == once,
                    "{compression:?} {threads} {step}"
                );
            }
        }
    }

    #[test]
    fn known_outputs() {
        let bytes = sample(3_000_000);
        let sum = |compression| {
            let sum = sha2::Sha256::digest(compressed(compression, 2, 4096, &bytes));
            crate::Digest::new(sum.into()).hex()[..16].to_owned()
        };
        // When a new version of a library changes these, `encoder_id` must change, too.
        assert_eq!(
            sum(Compression::Gzip),
            "1505d29f20344e27",
            "{}",
            Compression::Gzip.encoder_id(4)
        );
        assert_eq!(
            sum(Compression::Zstd),
            "837c3297ef81856d",
            "{}",
            Compression::Zstd.encoder_id(3)
        );
    }

    #[test]
    fn small_and_empty() {
        for len in [0, 1, 5, MEMBER - 1, MEMBER, MEMBER + 1] {
            for compression in [Compression::Gzip, Compression::Zstd] {
                let bytes = sample(len);
                let packed = compressed(compression, 2, 1 << 16, &bytes);
                assert_eq!(plain(&packed).unwrap(), (compression, bytes), "{len}");
            }
        }
        assert_eq!(plain(b"").unwrap(), (Compression::None, Vec::new()));
        assert_eq!(plain(b"abc").unwrap(), (Compression::None, b"abc".to_vec()));
        let gzip = compressed(Compression::Gzip, 1, 1, b"x");
        assert_eq!(gzip[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    }

    #[test]
    fn other_formats_are_read() {
        let bytes = sample(100_000);
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&bytes).unwrap();
        let bzip2 = bzip2.finish().unwrap();
        assert_eq!(plain(&bzip2).unwrap(), (Compression::Bzip2, bytes.clone()));
        let twice = [&bzip2[..], &bzip2].concat();
        assert_eq!(plain(&twice).unwrap().1.len(), 200_000);
        // `printf kiln | xz`, twice: streams can follow each other.
        assert_eq!(
            plain(&[XZ, XZ].concat()).unwrap(),
            (Compression::Xz, b"kilnkiln".to_vec())
        );
        let skippable = [
            &[0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..],
            &compressed(Compression::Zstd, 1, 99, &bytes),
        ]
        .concat();
        assert_eq!(plain(&skippable).unwrap(), (Compression::Zstd, bytes));
    }

    #[test]
    fn damage_is_noticed() {
        let bytes = sample(50_000);
        for compression in [Compression::Gzip, Compression::Zstd] {
            let packed = compressed(compression, 1, 99, &bytes);
            assert!(
                plain(&packed[..packed.len() - 3]).is_err(),
                "{compression:?}"
            );
            assert!(
                plain(&[&packed[..], b"garbage"].concat()).is_err(),
                "{compression:?}"
            );
        }
        let mut flipped = compressed(Compression::Gzip, 1, 99, &bytes);
        let last = flipped.len() - 6;
        flipped[last] ^= 1;
        assert!(plain(&flipped).is_err());
        assert!(plain(&XZ[..30]).is_err());
        for (compression, level) in [
            (Compression::Gzip, 0),
            (Compression::Gzip, 13),
            (Compression::Zstd, 23),
            (Compression::Xz, 6),
        ] {
            assert!(Encoder::new(compression, level, 1, Vec::new()).is_err());
        }
    }

    #[test]
    fn media_types() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            for media_type in [compression.oci_layer(), compression.docker_layer()] {
                assert_eq!(
                    Compression::of_media_type(media_type.unwrap()),
                    Some(compression)
                );
            }
        }
        for (media_type, expected) in [
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                Some(Compression::Gzip),
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                Some(Compression::Gzip),
            ),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", None),
            ("application/vnd.oci.image.config.v1+json", None),
        ] {
            assert_eq!(Compression::of_media_type(media_type), expected);
        }
    }

    const XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x03, 0x6b, 0x69, 0x6c,
        0x6e, 0x00, 0x1e, 0x95, 0x71, 0xd5, 0xd0, 0xa7, 0xee, 0xec, 0x00, 0x01, 0x1c, 0x04, 0x6f,
        0x2c, 0x9c, 0xc1, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];
}
