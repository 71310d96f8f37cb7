//! Blobs that are sent while they are made.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use kiln_image::Descriptor;
use kiln_registry::{Client, ClientConfig, Error, Growing, Pushed, Source};

use crate::faults::Uploads;
use crate::support::{Registry, Reply, Server, client, config, descriptor, noise, pull};

/// A blob of which a part more is there each time it is looked at.
struct Parts {
    bytes: Arc<Vec<u8>>,
    there: Arc<Mutex<usize>>,
    step: usize,
    /// What its readers end with.
    broken: bool,
}

impl Parts {
    fn new(bytes: &[u8], step: usize) -> Self {
        Self {
            bytes: Arc::new(bytes.to_vec()),
            there: Arc::default(),
            step,
            broken: false,
        }
    }
}

impl Source for Parts {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(PartsReader {
            bytes: Arc::clone(&self.bytes),
            offset: offset as usize,
            there: Arc::clone(&self.there),
            step: self.step,
            broken: self.broken,
        }))
    }
}

impl Growing for Parts {
    fn complete(&self) -> io::Result<Option<Descriptor>> {
        let mut there = self.there.lock().unwrap();
        *there += self.step;
        Ok((*there >= self.bytes.len()).then(|| descriptor(&self.bytes)))
    }
}

struct PartsReader {
    bytes: Arc<Vec<u8>>,
    offset: usize,
    there: Arc<Mutex<usize>>,
    step: usize,
    broken: bool,
}

impl Read for PartsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = &self.bytes[self.offset..];
        let count = left.len().min(self.step).min(buffer.len());
        if count == 0 && self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        buffer[..count].copy_from_slice(&left[..count]);
        self.offset += count;
        let mut there = self.there.lock().unwrap();
        *there = self.offset.max(*there);
        Ok(count)
    }
}

fn methods(server: &Server) -> Vec<String> {
    let requests = server.requests().into_iter();
    requests.map(|request| request.method).collect()
}

#[test]
fn a_real_registry_takes_them() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let client = client();
    let reference = registry.reference("growing");
    for length in [0, 1, 3_000_000] {
        let bytes = noise(length);
        let pushed = client
            .push_growing(&reference, &Parts::new(&bytes, 70_000), &())
            .unwrap();
        assert_eq!(pushed, Pushed::Uploaded);
        assert!(pull(&client, &reference, &descriptor(&bytes), &[]).unwrap() == bytes);
    }
}

#[test]
fn one_stream_without_a_length() {
    let bytes = noise(1_000_000);
    let server = Uploads::of(&bytes, usize::MAX);
    let pushed = client()
        .push_growing(&server.reference("x"), &Parts::new(&bytes, 10_000), &())
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(methods(&server), ["POST", "PATCH", "PUT"]);
    assert_eq!(server.requests()[1].header("content-range"), "");
}

#[test]
fn a_cut_stream_goes_on_where_it_was() {
    let bytes = noise(1_000_000);
    let server = Uploads::of(&bytes, 400_000);
    let pushed = client()
        .push_growing(&server.reference("x"), &Parts::new(&bytes, 10_000), &())
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let ranges = server.requests().into_iter();
    let ranges: Vec<_> = ranges
        .map(|request| request.header("content-range").to_owned())
        .filter(|range| !range.is_empty())
        .collect();
    assert_eq!(ranges, ["400000-999999", "800000-999999"]);
    assert_eq!(methods(&server).last().unwrap(), "PUT");
}

#[test]
fn who_wants_lengths_gets_them() {
    let bytes = noise(300_000);
    for refusal in [400, 404, 411, 501] {
        let mut uploads = Uploads::new();
        let expected = bytes.clone();
        let server = Server::start(move |request| {
            if !request.header("transfer-encoding").is_empty() {
                return Reply::new(refusal);
            }
            let reply = uploads.answer(request);
            assert!(!uploads.finished || uploads.kept == expected);
            reply
        });
        let pushed = client()
            .push_growing(&server.reference("x"), &Parts::new(&bytes, 10_000), &())
            .unwrap();
        assert_eq!(pushed, Pushed::Uploaded, "{refusal}");
        assert_eq!(
            methods(&server),
            ["POST", "PATCH", "HEAD", "POST", "PATCH", "PUT"],
            "{refusal}"
        );
    }
}

#[test]
fn pieces_of_a_size_wait_for_the_whole() {
    let bytes = noise(300_000);
    let mut uploads = Uploads::new();
    let server = Server::start(move |request| uploads.answer(request));
    let client = Client::new(ClientConfig {
        upload_chunk: Some(200_000),
        ..config()
    });
    let pushed = client
        .push_growing(&server.reference("x"), &Parts::new(&bytes, 10_000), &())
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(methods(&server), ["HEAD", "POST", "PATCH", "PATCH", "PUT"]);
}

#[test]
fn what_the_registry_has_is_not_sent_to_the_end() {
    let bytes = noise(32 << 20);
    // Reads no more than the beginning of the stream, and never answers it.
    let server = Server::with_limit(1 << 16, |request| match request.method.as_str() {
        "HEAD" => Reply::new(200),
        "POST" => Reply::new(202).header("location", "/v2/x/blobs/uploads/1"),
        "PATCH" => Reply::silence(),
        _ => Reply::new(204),
    });
    let blob = Parts::new(&bytes, 256 << 10);
    *blob.there.lock().unwrap() = bytes.len();
    let pushed = client()
        .push_growing(&server.reference("x"), &blob, &())
        .unwrap();
    assert_eq!(pushed, Pushed::Existed);
    let methods = methods(&server);
    assert!(!methods.contains(&"PUT".to_owned()), "{methods:?}");
    assert_eq!(methods.last().unwrap(), "DELETE");
}

#[test]
fn what_breaks_is_not_sent() {
    let mut uploads = Uploads::new();
    let server = Server::start(move |request| uploads.answer(request));
    let mut blob = Parts::new(&noise(300_000), 10_000);
    blob.broken = true;
    let error = client()
        .push_growing(&server.reference("x"), &blob, &())
        .unwrap_err();
    assert!(
        matches!(&error, Error::Source(error) if error.kind() == io::ErrorKind::BrokenPipe),
        "{error}"
    );
    assert!(!methods(&server).contains(&"PUT".to_owned()));
}
