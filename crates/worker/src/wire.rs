//! Messages on a socket: a length, then the bytes; descriptors ride with the first byte.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use kiln_image::LayerIndex;
use kiln_source::{Stamp, Stamps};
use postcard::ser_flavors::Size;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Stamps that are sent together.
const STAMPS: usize = 1024;

/// No job passes more descriptors than this.
const MOST_FDS: usize = 4;

/// Sends one message with descriptors.
pub(crate) fn send(
    socket: &UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    // Gone through twice, since the list of a large context's files is worth no copy in memory.
    let length = postcard::serialize_with_flavor(message, Size::default());
    let head = (length.map_err(io::Error::other)? as u64).to_le_bytes();
    send_with_fds(socket.as_fd(), &head, fds)?;
    let socket = io::BufWriter::with_capacity(64 * 1024, socket);
    let mut socket = postcard::to_io(message, socket).map_err(io::Error::other)?;
    socket.flush()
}

/// Receives one message with its descriptors; `None` when the other side closed the connection instead.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0; 8];
    let (got, fds) = receive_with_fds(socket.as_fd(), &mut head)?;
    if got == 0 {
        return Ok(None);
    }
    let mut socket = socket;
    socket.read_exact(&mut head[got..])?;
    let mut body = vec![0; u64::from_le_bytes(head) as usize];
    socket.read_exact(&mut body)?;
    let message = postcard::from_bytes(&body).map_err(io::Error::other)?;
    Ok(Some((message, fds)))
}

/// Sends what was found in a folder of the machine. In parts, so that a large context is in memory once on each side.
pub(crate) fn send_scan(
    socket: &UnixStream,
    index: &LayerIndex,
    stamps: &Stamps,
) -> io::Result<()> {
    let mut socket = io::BufWriter::with_capacity(64 * 1024, socket);
    let mut send = |part: &[u8]| {
        socket.write_all(&(part.len() as u64).to_le_bytes())?;
        socket.write_all(part)
    };
    for part in index.parts() {
        send(&part)?;
    }
    send(&[])?;
    for part in stamps.as_slice().chunks(STAMPS) {
        send(&postcard::to_stdvec(part).map_err(io::Error::other)?)?;
    }
    send(&[])?;
    socket.flush()
}

/// Receives what [`send_scan`] sends.
pub(crate) fn receive_scan(socket: &UnixStream) -> io::Result<(LayerIndex, Stamps)> {
    // Not ahead: what follows is somebody else's.
    let mut socket = socket;
    let mut part = || {
        let mut length = [0; 8];
        socket.read_exact(&mut length)?;
        let mut part = vec![0; u64::from_le_bytes(length) as usize];
        socket.read_exact(&mut part)?;
        Ok(part)
    };
    let mut parts = || {
        let part = part();
        match &part {
            Ok(part) if part.is_empty() => None,
            _ => Some(part),
        }
    };
    let index = LayerIndex::from_parts(std::iter::from_fn(&mut parts)).map_err(io::Error::other)?;
    let mut stamps: Vec<Stamp> = Vec::with_capacity(index.entries().len());
    for part in std::iter::from_fn(parts) {
        let part: Vec<Stamp> = postcard::from_bytes(&part?).map_err(io::Error::other)?;
        stamps.extend(part);
    }
    Ok((index, stamps.into()))
}

/// Writes `bytes`, descriptors attached to the first of them.
pub(crate) fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one message",
        ));
    }
    let sent = loop {
        match sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut rest = &bytes[sent..];
    while !rest.is_empty() {
        let sent = rustix::net::send(socket, rest, SendFlags::NOSIGNAL)?;
        rest = &rest[sent..];
    }
    Ok(())
}

/// Reads once into `bytes`, and takes the descriptors that came along.
pub(crate) fn receive_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match recvmsg(
            socket,
            &mut [IoSliceMut::new(bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((got.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use kiln_image::{Entry, LayerPath};

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_as_sent() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let long = "x".repeat(3_000_000);
        let sender = std::thread::spawn({
            let (file, long) = (file.try_clone().unwrap(), long.clone());
            move || {
                send(&a, &("first", 7_u32), &[file.as_fd()]).unwrap();
                send(&a, &long, &[]).unwrap();
            }
        });
        let ((text, number), fds) = receive::<(String, u32)>(&b).unwrap().unwrap();
        assert_eq!((text.as_str(), number, fds.len()), ("first", 7, 1));
        std::fs::File::from(fds.into_iter().next().unwrap())
            .write_all(b"through")
            .unwrap();
        assert_eq!(receive::<String>(&b).unwrap().unwrap().0, long);
        sender.join().unwrap();
        assert!(
            receive::<String>(&b).unwrap().is_none(),
            "a closed connection is not an error"
        );
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn what_was_found_arrives_in_parts() {
        let file = |at: usize| Entry::dir(LayerPath::clean(format!("{at:05}")), 0o7, 1, 2, (3, 4));
        let index = LayerIndex::new((0..2_000).map(file).collect());
        let stat = rustix::fs::stat("/").unwrap();
        let stamps = Stamps::from(vec![Stamp::of(&stat); 2_000]);
        let (a, b) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send_scan(&a, &index, &stamps).unwrap();
                send(&a, &"next", &[]).unwrap();
            });
            assert_eq!(receive_scan(&b).unwrap(), (index.clone(), stamps.clone()));
            // Nothing of what follows was read ahead.
            assert_eq!(receive::<String>(&b).unwrap().unwrap().0, "next");
        });
        send(&a, &9_u8, &[]).unwrap();
        drop(a);
        assert!(receive_scan(&b).is_err(), "cut off");
    }

    #[test]
    fn a_cut_message_is_an_error() {
        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(&[9, 0, 0, 0, 0, 0, 0, 0, 1, 2]).unwrap();
        drop(a);
        assert!(receive::<String>(&b).is_err());
    }
}
